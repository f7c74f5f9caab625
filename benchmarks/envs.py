"""`emerald-jax bench envs` as a script: python benchmarks/envs.py [--help]."""

import sys

from emerald_jax.cli import main

if __name__ == "__main__":
    sys.exit(main(["bench", "envs", *sys.argv[1:]]))
