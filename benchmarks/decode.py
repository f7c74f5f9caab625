"""`emerald-jax bench decode` as a script: python benchmarks/decode.py [--help]."""

import sys

from emerald_jax.cli import main

if __name__ == "__main__":
    sys.exit(main(["bench", "decode", *sys.argv[1:]]))
