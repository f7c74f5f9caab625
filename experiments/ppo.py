"""PPO on MinAtar, the model-free baseline beside our agents: rejax' implementation, run by us.

Command: python -m experiments.ppo [--game Breakout-MinAtar] [--steps 1000000] [--seeds 3]
    Needs `pip install emerald_jax[baseline]`.
Settings: common ones for PPO on MinAtar, with a constant learning rate; not tuned.
Time: all seeds are one program; seconds for a million steps, half a minute to compile.
Result: results/ppo.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import gymnax
import jax
import numpy as np

from benchmarks.suite.machine import machine_line
from emerald_jax.look import figures
from emerald_jax.reports.runs import Table
from emerald_jax.run.directory import write_json
from experiments.study.page import write_page

HERE = Path(__file__).resolve().parent
SETTINGS = {
    "num_envs": 64,
    "num_steps": 128,
    "num_epochs": 4,
    "num_minibatches": 8,
    "learning_rate": 5e-4,
    "max_grad_norm": 0.5,
    "gamma": 0.99,
    "gae_lambda": 0.95,
    "ent_coef": 0.01,
    "agent_kwargs": {"activation": "relu", "hidden_layer_sizes": [64, 64]},
}
#: Points of a curve; each is the mean of 128 episodes.
POINTS = 20


class OneEnd:
    """A gymnax environment whose ``step`` gives one flag for both ends, as rejax expects."""

    def __init__(self, env: Any) -> None:
        self._env = env

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):  # asked while it is copied
            raise AttributeError(name)
        return getattr(self._env, name)

    def step(self, *arguments: Any) -> tuple:
        """Observation, state, reward, whether the episode ended, info."""
        seen, state, reward, terminated, truncated, info = self._env.step(*arguments)
        return seen, state, reward, terminated | truncated, info


def train(game: str, steps: int, seeds: int) -> dict[str, Any]:
    """Train all seeds in one program; their curves and the CPU time."""
    from rejax import PPO  # an extra

    env, params = gymnax.make(game)
    every = max(1, steps // POINTS)
    lengths = {"total_timesteps": steps, "eval_freq": every, "skip_initial_evaluation": True}
    algorithm = PPO.create(env=OneEnd(env), env_params=params, **SETTINGS, **lengths)
    keys = jax.random.split(jax.random.key(0), seeds)
    program = jax.jit(jax.vmap(algorithm.train)).lower(keys).compile()
    began = time.process_time()
    _, (_, returns) = jax.block_until_ready(program(keys))
    seconds = time.process_time() - began
    returns = np.asarray(returns, np.float64)  # [seeds, points, episodes]
    errors = returns[:, -1].std(-1, ddof=1) / returns.shape[-1] ** 0.5
    return {
        "game": game,
        "steps": steps,
        "settings": SETTINGS,
        "return": returns[:, -1].mean(-1).round(2).tolist(),
        "error": errors.round(2).tolist(),
        "curve": returns.mean(-1).round(2).tolist(),
        "cpu_seconds": round(seconds / seeds, 1),
        "machine": machine_line(),
    }


def draw(folder: Path) -> Path:
    """``curve.png``: all seeds of all results in the folder, a panel for each game."""
    found = _results(folder)
    figure, axes = figures.new_figure(4.2 * len(found), 3.4, columns=len(found))
    for axis, result in zip(axes, found, strict=True):
        curves = np.array(result["curve"])
        steps = np.linspace(0, result["steps"], curves.shape[1] + 1)[1:]
        for curve in curves:
            axis.plot(steps, curve, color=figures.BLUE, linewidth=1)
        figures.heading(axis, result["game"])
        figures.over_steps(axis)
    return figures.save(figures.fit(figure), folder / "curve.png")


def _results(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]


def write_results(folder: Path) -> Path:
    """Draw the results in the folder, and write its page."""
    draw(folder)
    found, rows = _results(folder), []
    for result in found:
        each = zip(result["return"], result["error"], strict=True)
        each = ", ".join(f"{value:.2f} ± {error:.2f}" for value, error in each)
        mean, cpu = f"{np.mean(result['return']):.2f}", f"{result['cpu_seconds']:,.1f}"
        rows.append((result["game"], f"{result['steps']:,}", mean, each, cpu))
    columns = ("game", "env steps", "mean return", "seeds, 128 episodes each", "CPU s a seed")
    settings = ", ".join(f"`{name}` {value}" for name, value in SETTINGS.items())
    machines = "\n".join(dict.fromkeys(f"- machine: {r['machine']}" for r in found))
    about = f"[`python -m experiments.ppo`](../../ppo.py): {__doc__.splitlines()[0]}"
    table = Table(columns=columns, rows=rows).markdown()
    return write_page(folder, about, [table, f"- settings: {settings}\n{machines}"])


def main(arguments: list[str] | None = None) -> None:
    """Train one game and write the page again."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--game", default="Breakout-MinAtar")
    add("--steps", type=int, default=1_000_000)
    add("--seeds", type=int, default=3)
    add("--out", type=Path, default=HERE / "results" / "ppo")
    options = parser.parse_args(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    result = train(options.game, options.steps, options.seeds)
    write_json(options.out / f"{options.game}-{options.steps}.json", result)
    print(write_results(options.out).read_text())


if __name__ == "__main__":
    main()
