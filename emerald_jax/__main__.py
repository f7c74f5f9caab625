"""``python -m emerald_jax`` is ``emerald-jax``."""

import sys

from emerald_jax.cli import main

if __name__ == "__main__":
    sys.exit(main())
