"""A run on disk: its directory, its rows, its checkpoints and its replay, safe from kills.

``rundir.py`` says what lies where, ``files.py`` how a file gets there whole, ``durable.py`` how it
is told that it still is, ``orbax_steps.py`` is all that knows orbax. ``snapshots.py`` saves and
restores a run's two halves as one: ``checkpoint.py`` and ``replay_files.py``. Nothing here knows a
network.
"""
