"""Runs beside the published numbers: one table and one figure per benchmark.

``runs.py`` reads run directories and says which of them may be averaged; a file per benchmark knows
its protocols and names every deviation from them; ``tables.py`` writes Markdown.
"""
