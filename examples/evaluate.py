"""Evaluate one checkpoint of a run, or compare all that it kept.

python examples/evaluate.py runs/quickstart-0 [--episodes 64]
"""

from __future__ import annotations

import argparse
from pathlib import Path

import emerald_jax as ej


def main() -> None:
    """Run the example."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run")
    parser.add_argument("--episodes", type=int, default=64)
    options = parser.parse_args()

    for path in sorted(Path(options.run, "checkpoints").glob("[0-9]*"), key=lambda p: int(p.name)):
        report = ej.evaluate_run(options.run, options.episodes, checkpoint=int(path.name))
        print(f"{report.updates:>9,} updates: mean return {report.score:.3f}")


if __name__ == "__main__":
    main()
