"""Scores of uniformly random play next to the published random scores: a check of the adapters.

Atari games are also played by the protocol of the published scores (Mnih et al., 2015). ``agrees``:
the numbers differ by less than 1.96 standard errors plus the rounding of the published one.

Command: python -m benchmarks.random_play [NAME ...]  (minutes on one CPU core)
Result:  benchmarks/results/random_play.json
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from typing import Any

import numpy as np

from benchmarks.suite.harness import run_script
from emerald_jax.config import EnvsConfig
from emerald_jax.envs.base import Episode
from emerald_jax.envs.playing import is_whole, play_randomly
from emerald_jax.envs.registry import PROCGEN
from emerald_jax.scores import atari_game, crafter, crafter_score, success_rates

GAMES = ("Pong", "Boxing", "Breakout", "Freeway", "MsPacman")
NAMES = (
    *("crafter", "gymnax:Breakout-MinAtar", *(f"atari:{game}" for game in GAMES)),
    *("vizdoom:Basic", "vizdoom:HealthGatheringSupreme", "miniworld:Hallway"),
    *("miniworld:FourRooms", "memory_maze:9x9", *(f"procgen:{game}" for game in PROCGEN)),
    *("dmc:walker-walk", "dmc:cartpole-swingup", "dmc:reacher-easy"),
    *("gym:Pendulum-v1", "gym:Reacher-v5"),
)
#: Families whose worlds run in processes; a few of them use all cores.
PROCESSES = ("crafter", "vizdoom", "miniworld", "memory_maze", "dmc", "gym")
#: Episodes where 100 take too long: one of Memory Maze has 1000 steps of an eighth of a second.
EPISODES = {"crafter": 256, "memory_maze": 4, "dmc": 20}
#: Settings behind the published random scores of Atari: one action every sixth frame, episodes of
#: at most 18 000 frames. No error is given: that of 30 episodes with our variance is assumed.
MNIH = {"frame_skip": 6, "time_limit": 3000}
MNIH_EPISODES, ROUNDING = 30, 0.05
#: Changes to the settings, each a row; how a task is drawn does not change its rewards.
CHANGES = {
    "atari": ({}, MNIH),
    "dmc": ({"fast_render": True},),
    "gym": ({"image_key": "render"},),
    "procgen": ({}, {"distribution_mode": "easy"}),
}
Z = 1.96


def measure(name: str, changes: dict[str, Any], episodes: int) -> dict[str, Any]:
    """One row: ``episodes`` of random play in ``name`` under ``changes`` to its settings."""
    began = time.perf_counter()
    count = 4 if name.partition(":")[0] in PROCESSES else 10
    size = 16 if name.startswith("gymnax:") else 64
    envs = EnvsConfig(count=min(count, episodes), image_size=size, **changes)
    spec, played = play_randomly(name, envs, episodes)
    complete = [episode for episode in played if is_whole(episode)]
    scores = [episode.score for episode in complete]
    row = {
        "env": name,
        "settings": {"image_size": size, "time_limit": spec.time_limit, **changes},
        "episodes": len(complete),
        "left_out": len(played) - len(complete),
        "return": round(statistics.fmean(scores), 3),
        "standard_error": round(statistics.stdev(scores) / len(scores) ** 0.5, 3),
        "length": round(statistics.fmean(episode.length for episode in complete), 1),
        "steps": sum(episode.length for episode in complete),
    }
    row |= against_crafter(complete) if name == "crafter" else against_atari(name, row)
    return row | {"seconds": round(time.perf_counter() - began, 1)}


def against_atari(name: str, row: dict[str, Any]) -> dict[str, Any]:
    """The published random score of a game, and whether ours agrees."""
    if (game := atari_game(name)) is None:
        return {}
    theirs = row["standard_error"] * (row["episodes"] / MNIH_EPISODES) ** 0.5
    allowed = Z * (row["standard_error"] ** 2 + theirs**2) ** 0.5 + ROUNDING
    off = abs(row["return"] - game["random"])
    return {"published": game["random"], "agrees": bool(off <= allowed)}


def against_crafter(complete: list[Episode]) -> dict[str, Any]:
    """Crafter's score and rates, and the published ones; our error from 2000 bootstrap samples."""
    unlocked = [episode.extra["achievements"] for episode in complete]
    names = sorted(unlocked[0])
    rates = success_rates(unlocked, names)
    score = crafter_score(rates)
    table = np.array([[episode[name] > 0 for name in names] for episode in unlocked])
    drawn = np.random.default_rng(0).integers(len(table), size=(2000, len(table)))
    samples = table[drawn].mean(1) * 100
    error = float(np.std(np.expm1(np.log1p(samples).mean(1))))
    known = crafter()["training_episodes_first_1M"]["random"]
    return {
        "score": round(score, 2),
        "score_standard_error": round(error, 2),
        "rates": {name: round(rate, 2) for name, rate in rates.items()},
        "published": known["score"],
        "published_std": known["score_std"],
        "agrees": bool(abs(score - known["score"]) <= known["score_std"] + Z * error),
        "published_return": known["return"],
    }


def play(*names: str, episodes: int | None = None) -> dict[str, Any]:
    """Play ``names`` (default: all) for ``episodes`` (default: 100, see :data:`EPISODES`)."""
    rows = []
    for name in names or NAMES:
        family = name.partition(":")[0]
        count = episodes or EPISODES.get(family, 100)
        for changes in CHANGES.get(family, ({},)):
            rows.append(measure(name, changes, count))
            print(json.dumps(rows[-1]), file=sys.stderr)
    return {"rows": rows}


if __name__ == "__main__":
    run_script(play, "random_play")
