"""Our runs compared with published numbers: one table and one figure per benchmark.

``runs.py`` reads run directories, decides which of them may be averaged, and writes tables. One
file per benchmark knows its protocols and names every deviation from them. ``write.py`` writes the
report.
"""
