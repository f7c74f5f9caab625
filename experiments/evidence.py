"""Does the agent learn? Whole runs as a user would start them, seed by seed, and their curves.

Claim: each row of ``RUNS`` reaches its goal on every seed, in its time.
Source: own goals; Crafter's is DreamerV3's 14.5 % after 1 M steps (published by Curious Replay).
Command: python experiments/evidence.py quickstart|minatar|crafter|pong [--seeds 0 1 2]
Cost: quickstart four minutes a seed and minatar up to two hours a seed, on two CPU cores; crafter
    and pong ask for a GPU: 25 minutes and some hours.
Result: experiments/results/NAME/: seed_N.json and seed_N.png of every seed, curve.png of all
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from emerald_jax.ops.scores import crafter_score, success_rates
from emerald_jax.studies.results import machine
from emerald_jax.training.recorder import achievements_of
from emerald_jax.viz.curves import learning_curve, seeds_figure

HERE = Path(__file__).resolve().parent
#: Training episodes that count as a run's score, and points of a curve that is kept.
LAST, POINTS = 100, 120


@dataclasses.dataclass(frozen=True)
class Run:
    """What is shown to learn.

    Attributes:
        words: of ``emerald-jax train``.
        seeds: by default.
        goal: mean score of the last 100 training episodes to reach; None where the return says
            less than what ``emerald-jax report`` makes of the run directory.
        title: of the figure.
    """

    words: tuple[str, ...]
    seeds: tuple[int, ...]
    goal: float | None
    title: str


RUNS = {
    "quickstart": Run(("quickstart",), (0, 1, 2, 3, 4), 0.9, "Catch: mean return"),
    "minatar": Run(("minatar",), (0, 1, 2), 10.0, "Breakout-MinAtar: mean return"),
    "crafter": Run(("crafter", "--max-minutes", "25"), (0,), None, "Crafter: mean return"),
    "pong": Run(("atari100k",), (0,), None, "Pong, 100k steps: mean return"),
}


def run_seed(words: tuple[str, ...], seed: int, runs: Path, cores: str) -> dict[str, Any]:
    """Train one seed in a process of its own and read what it has written.

    Args:
        words: of ``emerald-jax train``.
        seed: of the run.
        runs: where run directories lie; one that has begun goes on.
        cores: CPU cores to pin to, such as ``0``; empty takes all.
    """
    logdir = runs / f"{words[0]}-{seed}"
    command = [sys.executable, "-m", "emerald_jax", "train", *words]
    command += ["--seed", str(seed), "--logdir", str(logdir)]
    pinned = ["taskset", "-c", cores] if cores else []
    began = time.monotonic()
    subprocess.run([*pinned, *command], check=True)
    found = read_run(logdir)
    return {
        "command": " ".join(["emerald-jax", "train", *words, "--seed", str(seed)]),
        "seed": seed,
        **found,
        "seconds": round(time.monotonic() - began, 1),
        "cores": cores or "all",
        "machine": machine(),
    }


def read_run(logdir: Path) -> dict[str, Any]:
    """What a run directory tells: scores, curve, metrics in thirty points, configuration."""
    rows = [json.loads(line) for line in (logdir / "episodes.jsonl").read_text().splitlines()]
    numbers = [json.loads(line) for line in (logdir / "metrics.jsonl").read_text().splitlines()]
    scores = np.array([row["score"] for row in rows])
    steps = np.array([row["step"] for row in rows])
    width = min(LAST, len(scores))  # Atari's 100k steps may be a few dozen episodes
    window = np.convolve(scores, np.ones(width) / width, "valid")
    kept = np.unique(np.linspace(0, len(window) - 1, POINTS).astype(int))
    evaluation = next((row for row in reversed(numbers) if "eval/return" in row), {})
    unlocked = [achievements_of(row) for row in rows]
    rates = success_rates(unlocked, sorted(unlocked[0])) if all(unlocked) else {}
    return {
        "last_100": float(scores[-LAST:].mean()),
        "first_100": float(scores[:LAST].mean()),
        "evaluation": {k: v for k, v in evaluation.items() if k.startswith("eval/")},
        "achievements": rates,
        "score": crafter_score(rates) if rates else None,
        "env_steps": int(numbers[-1]["step"]),
        "updates": max((int(row.get("train/updates", 0)) for row in numbers), default=0),
        "curve": [[int(steps[width - 1 + i]), round(float(window[i]), 3)] for i in kept],
        "metrics": _thinned([row for row in numbers if any(n.startswith("loss/") for n in row)]),
        "config": json.loads((logdir / "config.json").read_text()),
    }


def _thinned(rows: list[dict[str, float]]) -> dict[str, list[float | None]]:
    """Metrics of a run by name, as means over equal parts of it, to four digits."""
    parts = np.array_split(np.arange(len(rows)), min(len(rows), POINTS // 4))
    names = ["step", *sorted(n for n in rows[-1] if n.startswith(("loss/", "model/", "behavior/")))]
    return {name: [_mean([rows[i].get(name) for i in part]) for part in parts] for name in names}


def _mean(values: list[float | None]) -> float | None:
    """To four digits; what was not finite was logged as null and does not count."""
    finite = [value for value in values if value is not None]
    return float(f"{np.mean(finite):.4g}") if finite else None


def main() -> None:
    """Run the seeds and write one JSON each; finished seeds are not run again."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("name", choices=tuple(RUNS))
    parser.add_argument("--seeds", type=int, nargs="+", default=None)
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    parser.add_argument("--cores", default="", help="pin to these cores (taskset), such as 0")
    parser.add_argument("--out", type=Path, default=None, help="results (experiments/results/NAME)")
    options = parser.parse_args()
    run, out = RUNS[options.name], options.out or HERE / "results" / options.name
    out.mkdir(parents=True, exist_ok=True)
    for seed in options.seeds or run.seeds:
        path = out / f"seed_{seed}.json"
        if path.exists():
            continue
        result = run_seed(run.words, seed, options.runs, options.cores)
        path.write_text(json.dumps(result) + "\n")
        learning_curve(options.runs / f"{run.words[0]}-{seed}", out / f"seed_{seed}.png")
        kept = ("curve", "config", "metrics")
        print({k: v for k, v in result.items() if k not in kept}, flush=True)
    draw(run, out)


def draw(run: Run, folder: Path) -> None:
    """``curve.png``: all seeds that have been run."""
    seeds = {}
    for path in sorted(folder.glob("seed_*.json")):
        curve = np.array(json.loads(path.read_text())["curve"], np.float64)
        seeds[path.stem] = (curve[:, 0], curve[:, 1])
    title = f"{run.title} of the last {LAST} episodes"
    seeds_figure(seeds, title=title, goal=run.goal).savefig(folder / "curve.png")


if __name__ == "__main__":
    main()
