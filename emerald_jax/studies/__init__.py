"""Machinery of the experiments: recorded data sets, resumable cells, measures, tables, figures."""
