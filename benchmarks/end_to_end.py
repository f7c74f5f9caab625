"""`emerald-jax bench end-to-end` as a script: python benchmarks/end_to_end.py [--help]."""

import sys

from emerald_jax.cli import main

if __name__ == "__main__":
    sys.exit(main(["bench", "end-to-end", *sys.argv[1:]]))
