"""A package, so that its helpers are found before the ``tests`` that opensimplex installs."""
