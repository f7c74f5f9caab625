"""Does EMERALD learn from one command? The quickstart on five seeds.

Claim: mean return of the last 100 training episodes of at least 0.9 on every seed, each within four
minutes on two CPU cores (random play: about -0.6, perfect: 1).
Source: own target; the game is Catch (bsuite, through gymnax) shown as a 16x16 image.
Command: python experiments/quickstart.py          (seeds one after another, 15 minutes)
Result:  experiments/results/quickstart/
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from emerald_jax.viz.curves import seeds_figure

RESULTS = Path(__file__).parent / "results" / "quickstart"


def run_seed(seed: int, runs: Path, cores: str) -> dict:
    """Train one seed in a process of its own, as a user would, and read its episodes."""
    logdir = runs / f"quickstart-{seed}"
    command = [sys.executable, "-m", "emerald_jax", "train", "quickstart"]
    command += ["--seed", str(seed), "--logdir", str(logdir)]
    if cores:
        command = ["taskset", "-c", cores, *command]
    began = time.monotonic()
    subprocess.run(command, check=True, env={**os.environ, "XDG_CACHE_HOME": str(logdir / "cache")})
    seconds = time.monotonic() - began
    rows = [json.loads(line) for line in (logdir / "episodes.jsonl").read_text().splitlines()]
    scores = np.array([row["score"] for row in rows])
    steps = np.array([row["step"] for row in rows])
    window = np.convolve(scores, np.ones(100) / 100, "valid")
    solved = np.flatnonzero(window >= 0.9)
    grid = np.linspace(0, len(window) - 1, 60).astype(int)
    return {
        "seed": seed,
        "last_100": float(scores[-100:].mean()),
        "first_100": float(scores[:100].mean()),
        "steps_to_0.9": int(steps[99 + solved[0]]) if solved.size else None,
        "seconds": round(seconds, 1),
        "cores": cores or "all",
        "curve": [[int(steps[99 + i]), round(float(window[i]), 3)] for i in grid],
        "config": json.loads((logdir / "config.json").read_text()),
    }


def main() -> None:
    """Run the seeds and write one JSON each; finished seeds are not run again."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    parser.add_argument("--cores", default="", help="pin to these cores (taskset), such as 0")
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    for seed in options.seeds:
        path = options.out / f"seed_{seed}.json"
        if path.exists():
            continue
        result = run_seed(seed, options.runs, options.cores)
        result["machine"] = f"{platform.machine()}, {os.cpu_count()} cores"
        path.write_text(json.dumps(result, indent=1) + "\n")
        print({k: v for k, v in result.items() if k not in ("curve", "config")}, flush=True)
    draw(options.out)


def draw(folder: Path) -> None:
    """``curve.png``: all seeds that have been run."""
    seeds = {}
    for path in sorted(folder.glob("seed_*.json")):
        curve = np.array(json.loads(path.read_text())["curve"], np.float64)
        seeds[path.stem] = (curve[:, 0], curve[:, 1])
    figure = seeds_figure(seeds, title="Catch: mean return of the last 100 episodes", goal=0.9)
    figure.savefig(folder / "curve.png")


if __name__ == "__main__":
    main()
