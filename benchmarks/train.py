"""`emerald-jax bench train` as a script: python benchmarks/train.py [--help]."""

import sys

from emerald_jax.cli import main

if __name__ == "__main__":
    sys.exit(main(["bench", "train", *sys.argv[1:]]))
