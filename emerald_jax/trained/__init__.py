"""A trained agent in the hand: ``loaded.py`` acts and imagines with it, the others look at it.

``recordings.py`` finds real frames, ``dreaming.py`` goes on from them, ``filming.py`` puts both
side by side, ``looking.py`` looks inside a forward pass, ``inspection.py`` reports it all.
"""
