"""`emerald-jax bench replay` as a script: python benchmarks/replay.py [--help]."""

import sys

from emerald_jax.cli import main

if __name__ == "__main__":
    sys.exit(main(["bench", "replay", *sys.argv[1:]]))
