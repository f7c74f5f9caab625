"""How it learns: ``update.py`` is the one train step, ``loop.py`` a run; devices, evaluation."""
