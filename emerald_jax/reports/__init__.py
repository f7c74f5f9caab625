"""Our runs compared with published numbers: one table and one figure per benchmark.

``runs.py`` reads run directories and decides which of them may be averaged; one file per benchmark
names every deviation from its protocols; ``write.py`` writes the report.
"""
