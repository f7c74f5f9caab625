"""The benchmark suite: one file per benchmark, a shared harness, a format for what they find.

``suite.py`` knows the benchmarks by name, ``harness.py`` times them, ``report.py`` says what a
result looks like, ``flops.py`` counts the useful work and ``ceiling.py`` measures what the machine
could do at best. ``tables.py``, ``figures.py`` and ``compare.py`` read results back.
"""
