"""Does the agent learn? Complete runs with the commands of a user, seed by seed.

Command: python -m experiments.evidence NAME [--seeds 0 1 2]
    NAME is quickstart, minatar, pendulum, doom, hallway, leaper, cartpole, crafter or pong. The
    same command resumes a stopped run, and skips seeds that have a result.
Time: quickstart 3 minutes a seed on two CPU cores, minatar 60, pendulum 35 to 50 and hallway 20 on
    one. Estimated: cartpole 84 and leaper 60; crafter 25 minutes and pong some hours on a GPU.
Result: results/quickstart, ten seeds, results/hallway, three, and results/minatar_held, two: all
    reach our goals. results/pendulum: one of two seeds does. results/cartpole: the one seed does
    not. Doom and leaper were not learned. Minatar's present preset was not run to its end.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from matplotlib.figure import Figure

from emerald_jax.look import figures
from emerald_jax.reports.runs import NONE, Table
from emerald_jax.run.directory import (
    EPISODES_FILE,
    METRICS_FILE,
    read_rows,
    write_atomic,
    write_json,
)
from emerald_jax.run.log import achievements_of, is_whole_row
from emerald_jax.scores import crafter_score, success_rates
from experiments.study.page import write_page

HERE = Path(__file__).resolve().parent
#: Training episodes that count as a run's score, and points of the curve in a result.
LAST, POINTS = 100, 120
#: Columns of a page's table: heading, key in a result, format.
_COLUMNS = (
    ("seed", "seed", "d"),
    (f"last {LAST} episodes", "last_100", ".2f"),
    (f"first {LAST} episodes", "first_100", ".2f"),
    ("evaluation", "eval/return", ".2f"),
    ("standard error", "eval/return_error", ".2f"),
    ("episodes", "episodes", ",d"),
    ("env steps", "env_steps", ",d"),
    ("updates", "updates", ",d"),
    ("wall time, s", "seconds", ",.0f"),
)


@dataclasses.dataclass(frozen=True)
class Run:
    """One kind of run.

    ``arguments`` are those of ``emerald-jax train``; ``goal`` is a mean score of the last training
    episodes, None where ``emerald-jax report`` scores the run.
    """

    arguments: tuple[str, ...]
    seeds: tuple[int, ...]
    goal: float | None
    title: str  # of the figure
    minutes: float = 0.0  # time limit of a run; 0 for none


#: The quickstart's networks for worlds with exact laws: no noise in the model, rates that fall.
_EXACT = (
    *("quickstart", "--model.dropout", "0", "--model.unimix", "1e-3", "--model.bins", "127"),
    *("--optim.critic-lr", "3e-3", "--optim.anneal", "--behavior.horizon", "15"),
)
#: Numbers as actions. The discount is short: the critic learns the returns of 20 steps, not of 100.
_PENDULUM = (
    *(*_EXACT, "--env", "experiments.study.pendulum:make_env", "--envs.frame-skip", "2"),
    *("--steps", "50000", "--train-ratio", "32"),
    *("--behavior.gamma", "0.95", "--behavior.entropy", "1e-3"),
)
#: Rendered worlds at 32 pixels.
_SEEN = (*_EXACT, "--envs.image-size", "32", "--train-ratio", "16")
_DOOM = (*_SEEN, "--env", "vizdoom:Basic", "--steps", "40000", "--behavior.gamma", "0.97")
#: Returns are far below 1 at first: the quickstart's entropy bonus would drown their differences.
_HALLWAY = (
    *(*_SEEN, "--env", "miniworld:Hallway", "--steps", "30000"),
    *("--behavior.gamma", "0.99", "--behavior.entropy", "1e-3"),
)
_CARTPOLE = (
    *(*_EXACT, "--env", "dmc:cartpole-swingup", "--envs.frame-skip", "4"),
    *("--envs.image-size", "32", "--envs.fast-render", "--steps", "20000", "--train-ratio", "96"),
    *("--optim.model-lr", "1e-3", "--behavior.gamma", "0.98", "--behavior.entropy", "1e-3"),
)
#: On black: with pictures behind them, 600 updates of a larger model showed no log and no car.
_LEAPER = (
    *(*_SEEN, "--env", "procgen:leaper", "--envs.distribution-mode", "easy"),
    *("--envs.no-backgrounds", "--steps", "40000", "--train-ratio", "32"),
    *("--optim.model-lr", "2e-3", "--behavior.gamma", "0.97", "--behavior.entropy", "1e-3"),
)
RUNS = {
    "quickstart": Run(("quickstart",), (0, 1, 2, 3, 4), 0.9, "Catch"),
    "minatar": Run(("minatar",), (0, 1, 2), 10.0, "Breakout-MinAtar"),
    # Random play has about -1,240, the best play about -150.
    "pendulum": Run(_PENDULUM, (0, 1, 2), -255.0, "Pendulum"),
    # Of random play and of the best: -154 and about 85; 0.25 and about 0.9; 78 and 1,000.
    "doom": Run(_DOOM, (0, 1, 2), 50.0, "ViZDoom Basic"),
    "hallway": Run(_HALLWAY, (0, 1, 2), 0.6, "MiniWorld Hallway"),
    # Random play has 2.1, going up all the time 3.5, the best play 10.
    "leaper": Run(_LEAPER, (0, 1, 2), 5.0, "Procgen's Leaper"),
    "cartpole": Run(_CARTPOLE, (0, 1, 2), 300.0, "cartpole-swingup"),
    "crafter": Run(("crafter",), (0,), None, "Crafter", minutes=25.0),
    "pong": Run(("atari100k", "--env", "atari:Pong"), (0,), None, "Pong"),
}


def run_seed(run: Run, seed: int, logdir: Path, cores: str) -> dict[str, Any]:
    """Train one seed in its own process on some cores, or resume its run, and read its result.

    Machine, commit and seconds of every process are kept in a file next to the run directory.
    SystemExit where another program started the run, or where training was stopped.
    """
    notes, known = logdir.with_name(f"{logdir.name}.json"), {"done": 0, "sittings": []}
    if notes.is_file():
        known = json.loads(notes.read_text())
    elif logdir.exists():
        refuse(f"{logdir} was not begun by this script: choose another --runs")
    known["cores"] = cores or "all"
    if not known["done"]:
        command = ["train", *run.arguments, "--seed", str(seed)]
        if run.minutes:
            left = run.minutes - sum(s["seconds"] for s in known["sittings"]) / 60
            command += ["--max-minutes", f"{max(left, 0.1):.2f}"]
        # The result names no path of this machine.
        sitting = {"command": " ".join(["emerald-jax", *command]), "machine": _machine()}
        command += ["--logdir", str(logdir)]
        # Every seed compiles by itself, like the first run of a user.
        env = {**os.environ, "XDG_CACHE_HOME": str(logdir.with_name(f"{logdir.name}-cache"))}
        pinned = ["taskset", "-c", cores] if cores else []
        began = time.monotonic()
        code = _wait([*pinned, sys.executable, "-m", "emerald_jax", *command], env)
        known["sittings"].append({**sitting, "seconds": round(time.monotonic() - began, 1)})
        known["done"] += code == 0
        write_json(notes, known)
        if code:
            sys.exit(code)
    seconds = round(sum(s["seconds"] for s in known["sittings"]), 1)
    return {"seed": seed, "seconds": seconds, **known, **read_run(logdir)}


def refuse(why: str, program: str = "evidence") -> NoReturn:
    """Exit with one line and code 2."""
    sys.stderr.write(f"{program}: {why}\n")
    sys.exit(2)


def _wait(command: list[str], env: dict[str, str]) -> int:
    """Run a command to its end; Ctrl-C reaches it too, and it may need time to save."""
    with subprocess.Popen(command, env=env) as process:
        while process.returncode is None:
            with contextlib.suppress(KeyboardInterrupt):
                process.wait()
    return process.returncode


def _machine() -> str:
    """Hardware and commit, from another process: the process that asks JAX holds the GPU."""
    code = "from benchmarks.suite.machine import machine_line; print(machine_line())"
    return subprocess.check_output([sys.executable, "-c", code], text=True).strip()


def read_run(logdir: Path) -> dict[str, Any]:
    """Read scores, curve, metrics in thirty points and settings from a run directory."""
    rows = [row for row in read_rows(logdir / EPISODES_FILE) if is_whole_row(row)]
    numbers = read_rows(logdir / METRICS_FILE)
    if not rows:
        refuse(f"no episode of {logdir} has ended: train it for longer")
    scores, steps = (np.array([row[k] for row in rows], np.float64) for k in ("score", "step"))
    width = min(LAST, max(1, len(scores) // 4))  # some runs have a few dozen episodes
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

    def mean(part: list[dict[str, float]], name: str) -> float | None:
        finite = [row[name] for row in part if row.get(name) is not None]  # null: not finite
        return float(f"{np.mean(finite):.4g}") if finite else None

    if not rows:
        return {}
    names = ["step", *sorted(n for n in rows[-1] if n.startswith(("loss/", "model/", "behavior/")))]
    parts = np.array_split(rows, min(len(rows), POINTS // 4))
    return {name: [mean(part, name) for part in parts] for name in names}


def main() -> None:
    """Run the seeds without a result and write one JSON each; draw the curves and the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("name", choices=tuple(RUNS))
    add("--seeds", type=int, nargs="+")
    add("--runs", type=Path, default=Path("runs/evidence"))
    add("--cores", default="", help="pin to these cores (taskset), such as 0")
    add("--out", type=Path, help="results (experiments/results/NAME)")
    options = parser.parse_args()
    run, out = RUNS[options.name], options.out or HERE / "results" / options.name
    for folder in (out, options.runs):
        folder.mkdir(parents=True, exist_ok=True)
    for seed in options.seeds or run.seeds:
        path = out / f"seed_{seed}.json"
        if path.exists():
            print(f"{path} exists: seed {seed} is not run again", flush=True)
            continue
        logdir = options.runs / f"{options.name}-{seed}"
        result = run_seed(run, seed, logdir, options.cores)
        figures.save(figures.curve_figure(logdir), out / f"seed_{seed}.png")
        write_atomic(path, (json.dumps(result) + "\n").encode())
        shown = ("seed", "last_100", "evaluation", "env_steps", "updates", "seconds")
        print({name: result[name] for name in shown}, flush=True)
    draw(run, out)
    print(write_seeds_page(out, run.goal))


def draw(run: Run, folder: Path) -> Path:
    """``curve.png``: all seeds with a result."""
    seeds = {}
    for path in sorted(folder.glob("seed_*.json")):
        curve = np.array(json.loads(path.read_text())["curve"], np.float64)
        seeds[path.stem] = (curve[:, 0], curve[:, 1])
    title = f"{run.title}: mean return, up to {LAST} episodes"
    figure = seeds_figure(seeds, title=title, goal=run.goal)
    return figures.save(figure, folder / "curve.png")


def seeds_figure(seeds: figures.Series, *, title: str, goal: float | None = None) -> Figure:
    """One quantity of several runs: each run as a thin line, their mean, and a band around them.

    The band contains all runs, over the steps that all of them have; ``goal`` is a horizontal line.
    """
    figure, (axis,) = figures.new_figure(5.6, 3.6)
    begin = max(steps[0] for steps, _ in seeds.values())
    end = min(steps[-1] for steps, _ in seeds.values())
    grid = np.linspace(begin, end, 200)
    values = np.stack([np.interp(grid, *points) for points in seeds.values()])
    axis.fill_between(grid, values.min(0), values.max(0), color=figures.BLUE, alpha=0.18, lw=0)
    for steps, found in seeds.values():
        axis.plot(steps, found, "-", color=figures.GREY, linewidth=0.7)
    mean = f"mean of {len(seeds)} seeds" if len(seeds) > 1 else "one seed"
    axis.plot(grid, values.mean(0), "-", color=figures.BLUE, linewidth=2, label=mean)
    if goal is not None:
        axis.axhline(goal, color=figures.ORANGE, linewidth=1, linestyle="--", label=f"{goal:g}")
    figures.heading(axis, title)
    figures.over_steps(axis)
    return figures.fit(figures.add_legend(figure, columns=2))


def write_seeds_page(folder: Path, goal: float | None = None) -> Path:
    """Write the page of a folder of results, one row per seed."""
    about = f"[`python -m experiments.evidence`](../../evidence.py): {__doc__.splitlines()[0]}"
    if goal is not None:
        about += f"\n\nGoal: a mean of the last {LAST} training episodes of at least {goal:g}."
    rows, sittings = [], []
    for path in sorted(folder.glob("*_*.json")):
        result = json.loads(path.read_text())
        values = {**result, **result["evaluation"]}
        cells = (f"{values[k]:{form}}" if k in values else NONE for _, k, form in _COLUMNS)
        rows.append((path.stem, *cells))
        sittings += result["sittings"]
    table = Table(columns=("result", *(c[0] for c in _COLUMNS)), rows=rows).markdown()
    lists = []
    for heading, key in (("Commands", "command"), ("Hardware and commits", "machine")):
        lines = "\n".join(f"- `{line}`" for line in dict.fromkeys(s[key] for s in sittings))
        lists.append(f"{heading}:\n\n{lines}")
    return write_page(folder, about, [table, *lists])


if __name__ == "__main__":
    main()
