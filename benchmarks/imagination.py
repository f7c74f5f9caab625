"""`emerald-jax bench imagination` as a script: python benchmarks/imagination.py [--help]."""

import sys

from emerald_jax.cli import main

if __name__ == "__main__":
    sys.exit(main(["bench", "imagination", *sys.argv[1:]]))
