"""Does the agent learn? Whole runs as a user would start them, seed by seed, and their curves.

Claim: quickstart and minatar reach their goal on every seed; crafter and pong have no goal here,
    ``emerald-jax report`` puts their run directories beside the published numbers.
Source: own goals, below in ``RUNS``.
Command: python experiments/evidence.py quickstart|minatar|crafter|pong [--seeds 0 1 2]
    A run that was stopped goes on; a seed whose result is there is not run again.
Cost: quickstart three minutes a seed on two CPU cores, minatar 80 minutes a seed on one; crafter
    and pong ask for a GPU: 25 minutes and some hours (estimated).
Result: experiments/results/NAME/: seed_N.json and seed_N.png of every seed, curve.png of all
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from emerald_jax.look.figures import learning_curve, seeds_figure
from emerald_jax.run.directory import EPISODES_FILE, METRICS_FILE, read_rows
from emerald_jax.run.files import write_atomic
from emerald_jax.run.log import achievements_of, is_whole_row
from emerald_jax.scores import crafter_score, success_rates

HERE = Path(__file__).resolve().parent
#: Training episodes that count as a run's score, and points of a curve that is kept.
LAST, POINTS = 100, 120


@dataclasses.dataclass(frozen=True)
class Run:
    """What is shown to learn.

    Attributes:
        stages: words of ``emerald-jax train``, one command after another on the same directory.
        seeds: by default.
        goal: mean score of the last 100 training episodes to reach; None where the return says
            less than what ``emerald-jax report`` makes of the run directory.
        title: of the figure.
        minutes: after which a run ends; 0 sets no limit.
    """

    stages: tuple[tuple[str, ...], ...]
    seeds: tuple[int, ...]
    goal: float | None
    title: str
    minutes: float = 0.0


#: A steady learning rate keeps the model of Breakout from becoming exact, and a wrong dream of the
#: ball is a lost game; so learning rates, at last the entropy too, are lowered as the agent learns.
#: After 600,000 steps it returns 6, and most games end at a few places that the model is sure to be
#: the end, whatever is done there. So from then on chance gets longer arms, what it finds is shown
#: more often than it happens, and a smaller replay shows it sooner.
_SEARCH = ("--behavior.noise-hold", "3", "--replay.best-of", "16", "--replay.capacity", "100000")
_LATER = ("--optim.actor_lr", "3e-4", "--optim.critic_lr", "3e-4", *_SEARCH)
_SURE = ("--behavior.entropy", "1e-3")
_BREAKOUT = (
    ("minatar", "--steps", "600000"),
    ("minatar", "--steps", "1600000", "--optim.model_lr", "5e-4", *_LATER),
    ("minatar", "--steps", "2300000", "--optim.model_lr", "2e-4", *_LATER, *_SURE),
)
RUNS = {
    "quickstart": Run((("quickstart",),), (0, 1, 2, 3, 4), 0.9, "Catch"),
    "minatar": Run(_BREAKOUT, (0, 1, 2), 10.0, "Breakout-MinAtar"),
    "crafter": Run((("crafter",),), (0,), None, "Crafter", minutes=25.0),
    "pong": Run((("atari100k", "--env", "atari:Pong"),), (0,), None, "Pong"),
}


def run_seed(run: Run, seed: int, logdir: Path, cores: str) -> dict[str, Any]:
    """Train one seed in a process of its own, or finish its run, and read what it has written.

    What this script knows of a run lies beside its directory: machine, commit and the seconds of
    every sitting. So they are those of the training, whenever the result is written.

    Args:
        run: what is shown to learn.
        seed: of the run.
        logdir: its run directory.
        cores: CPU cores to pin to, such as ``0``; empty takes all.

    Raises:
        SystemExit: the directory holds a run that this script did not begin, or training ended
            otherwise than by finishing.
    """
    notes = logdir.with_name(f"{logdir.name}.json")
    if logdir.exists() and not notes.is_file():
        refuse(f"{logdir} was not begun by this script: choose another --runs")
    known = json.loads(notes.read_text()) if notes.is_file() else {"done": 0, "sittings": []}
    known["cores"] = cores or "all"
    for words in run.stages[known["done"] :]:
        command = ["train", *words, "--seed", str(seed)]
        if run.minutes:
            left = run.minutes - sum(s["seconds"] for s in known["sittings"]) / 60
            command += ["--max-minutes", f"{max(left, 0.1):.2f}"]
        # Where the directory lies is nobody's business who reads the result.
        sitting = {"command": " ".join(["emerald-jax", *command]), "machine": _machine()}
        command += ["--logdir", str(logdir)]
        # Every seed compiles by itself, as the first run of a user does.
        env = {**os.environ, "XDG_CACHE_HOME": str(logdir.with_name(f"{logdir.name}-cache"))}
        pinned = ["taskset", "-c", cores] if cores else []
        began = time.monotonic()
        code = _wait([*pinned, sys.executable, "-m", "emerald_jax", *command], env)
        known["sittings"].append({**sitting, "seconds": round(time.monotonic() - began, 1)})
        known["done"] += code == 0
        write_atomic(notes, json.dumps(known).encode())
        if code:
            sys.exit(code)
    seconds = round(sum(s["seconds"] for s in known["sittings"]), 1)
    return {"seed": seed, "seconds": seconds, **known, **read_run(logdir)}


def refuse(why: str) -> NoReturn:
    """Leave with one line and exit code 2."""
    sys.stderr.write(f"evidence: {why}\n")
    sys.exit(2)


def _wait(command: list[str], env: dict[str, str]) -> int:
    """Run a command to its end; Ctrl-C reaches it too, and it may take its time to save."""
    with subprocess.Popen(command, env=env) as process:
        while True:
            try:
                return process.wait()
            except KeyboardInterrupt:
                continue


def _machine() -> str:
    """Where and with which code; asked in a process of its own, since a GPU is held by who asks."""
    asked = "from emerald_jax.run.machine import machine_line; print(machine_line())"
    return subprocess.check_output([sys.executable, "-c", asked], text=True).strip()


def read_run(logdir: Path) -> dict[str, Any]:
    """What a run directory tells: scores, curve, metrics in thirty points, configuration.

    Raises:
        SystemExit: no episode has ended yet.
    """
    rows = [row for row in read_rows(logdir / EPISODES_FILE) if is_whole_row(row)]
    numbers = read_rows(logdir / METRICS_FILE)
    if not rows:
        refuse(f"no episode of {logdir} has ended: train it for longer")
    scores = np.array([row["score"] for row in rows], np.float64)
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
        "episodes": len(rows),
        "evaluation": {k: v for k, v in evaluation.items() if k.startswith("eval/")},
        "achievements": rates,
        "score": crafter_score(rates) if rates else None,
        "env_steps": max((int(row["step"]) for row in numbers), default=int(steps[-1])),
        "updates": max((int(row.get("train/updates", 0)) for row in numbers), default=0),
        "curve": [[int(steps[width - 1 + i]), round(float(window[i]), 3)] for i in kept],
        "metrics": _thinned([row for row in numbers if any(n.startswith("loss/") for n in row)]),
        "config": {**json.loads((logdir / "config.json").read_text()), "logdir": logdir.name},
    }


def _thinned(rows: list[dict[str, float]]) -> dict[str, list[float | None]]:
    """Metrics of a run by name, as means over equal parts of it, to four digits."""
    if not rows:
        return {}
    parts = np.array_split(np.arange(len(rows)), min(len(rows), POINTS // 4))
    names = ["step", *sorted(n for n in rows[-1] if n.startswith(("loss/", "model/", "behavior/")))]
    return {name: [_mean([rows[i].get(name) for i in part]) for part in parts] for name in names}


def _mean(values: list[float | None]) -> float | None:
    """To four digits; what was not finite was logged as null and does not count."""
    finite = [value for value in values if value is not None]
    return float(f"{np.mean(finite):.4g}") if finite else None


def main() -> None:
    """Run the seeds and write one JSON each; seeds with a result are not run again."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("name", choices=tuple(RUNS))
    parser.add_argument("--seeds", type=int, nargs="+", default=None)
    parser.add_argument("--runs", type=Path, default=Path("runs/evidence"))
    parser.add_argument("--cores", default="", help="pin to these cores (taskset), such as 0")
    parser.add_argument("--out", type=Path, default=None, help="results (experiments/results/NAME)")
    options = parser.parse_args()
    run, out = RUNS[options.name], options.out or HERE / "results" / options.name
    out.mkdir(parents=True, exist_ok=True)
    options.runs.mkdir(parents=True, exist_ok=True)
    for seed in options.seeds or run.seeds:
        path = out / f"seed_{seed}.json"
        if path.exists():
            print(f"{path} is there: seed {seed} is not run again", flush=True)
            continue
        logdir = options.runs / f"{options.name}-{seed}"
        result = run_seed(run, seed, logdir, options.cores)
        learning_curve(logdir, out / f"seed_{seed}.png")
        write_atomic(path, (json.dumps(result) + "\n").encode())
        shown = ("seed", "last_100", "evaluation", "env_steps", "updates", "seconds")
        print({name: result[name] for name in shown}, flush=True)
    draw(run, out)


def draw(run: Run, folder: Path) -> None:
    """``curve.png``: all seeds that have been run."""
    seeds = {}
    for path in sorted(folder.glob("seed_*.json")):
        curve = np.array(json.loads(path.read_text())["curve"], np.float64)
        seeds[path.stem] = (curve[:, 0], curve[:, 1])
    title = f"{run.title}: mean return, up to {LAST} episodes"
    seeds_figure(seeds, title=title, goal=run.goal).savefig(folder / "curve.png")


if __name__ == "__main__":
    main()
