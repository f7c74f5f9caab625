"""Evaluate every checkpoint of a run.

python examples/evaluate.py runs/quickstart-0 [--episodes 64]
"""

from __future__ import annotations

from pathlib import Path

import tyro

import emerald_jax as ej


def main(run: str, /, episodes: int = 64) -> None:
    """Play ``episodes`` episodes with every checkpoint of a run directory."""
    folder = Path(run, "checkpoints")
    for number in sorted(int(path.name) for path in folder.glob("[0-9]*")):
        report = ej.evaluate_run(run, episodes, checkpoint=number)
        print(f"{report.updates:>9,} updates: mean return {report.score:.3f}")


if __name__ == "__main__":
    tyro.cli(main)
