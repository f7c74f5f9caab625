"""Benchmark scores: Crafter's score, aggregates over Atari games, and published numbers.

Crafter's score is Hafner's (arXiv 2109.06780). Aggregates over Atari games are those of Agarwal et
al. (arXiv 2108.13264, section 4): mean, median and interquartile mean (IQM), with stratified
bootstrap intervals. Published numbers and their sources are package data, ``data/*.json``.
"""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from importlib import resources
from typing import Any, NamedTuple

import numpy as np

#: Bootstrap samples per interval: enough that their own error is far below the interval's width.
SAMPLES = 10_000
#: Bootstrap samples computed at a time, which bounds the memory.
_CHUNK = 500


def success_rates(episodes: Iterable[Mapping[str, int]], names: Iterable[str]) -> dict[str, float]:
    """Per cent of episodes (name -> times unlocked) that unlocked each achievement at all."""
    episodes = list(episodes)
    if not episodes:
        raise ValueError("success rates need at least one episode")
    count = len(episodes)
    return {name: 100.0 * sum(e.get(name, 0) > 0 for e in episodes) / count for name in names}


def crafter_score(rates: Mapping[str, float]) -> float:
    """Crafter's score in per cent: the shifted geometric mean of success rates (Hafner 2021).

    exp(mean_i ln(1 + s_i)) - 1, s_i in per cent: rare achievements count more than frequent ones.
    """
    return math.exp(sum(math.log1p(rate) for rate in rates.values()) / len(rates)) - 1.0


def human_normalised(score: float, random: float, human: float) -> float:
    """(score - random) / (human - random): 0 is random play, 1 human play."""
    return (score - random) / (human - random)


class Interval(NamedTuple):
    """A statistic and the bounds of its 95 % interval, which are NaN if there is none."""

    value: float
    low: float
    high: float


def aggregate(
    scores: Mapping[str, Sequence[float]], *, samples: int = SAMPLES, seed: int = 0
) -> dict[str, Interval]:
    """Mean, median, IQM and optimality gap over games, with stratified bootstrap intervals.

    ``scores``: game -> one score per run. ``mean`` and ``median`` are over games, of each game's
    mean over runs; ``iqm`` is the mean of the middle half of all runs of all games, each with equal
    weight; ``gap`` is the mean over all runs of how far they stay below 1. Each of the bootstrap's
    ``samples`` resamples every game's runs with replacement; the interval is the middle 95 % over
    samples. With one run per game there is no interval. ValueError without games, or if a game has
    no runs.
    """
    if not scores or not all(len(runs) for runs in scores.values()):
        raise ValueError("an aggregate needs at least one run of every game")
    runs = [np.asarray(values, np.float64) for values in scores.values()]
    values = _aggregates([run[None] for run in runs])
    if max(map(len, runs)) == 1:
        return {name: Interval(float(v[0]), math.nan, math.nan) for name, v in values.items()}
    rng = np.random.default_rng(seed)
    parts = []
    for start in range(0, samples, _CHUNK):
        count = min(_CHUNK, samples - start)
        drawn = [run[rng.integers(len(run), size=(count, len(run)))] for run in runs]
        parts.append(_aggregates(drawn))
    result = {}
    for name, value in values.items():
        resampled = np.concatenate([part[name] for part in parts])
        result[name] = Interval(float(value[0]), *np.percentile(resampled, [2.5, 97.5]).tolist())
    return result


def interquartile_mean(values: np.ndarray) -> np.ndarray:
    """Mean of the middle half, `[..., n]` -> `[...]`; each dropped quarter is rounded down."""
    n = values.shape[-1]
    cut = n // 4
    return np.sort(values, axis=-1)[..., cut : n - cut].mean(-1)


def _aggregates(games: Sequence[np.ndarray]) -> dict[str, np.ndarray]:
    """Aggregates `[samples]` of games `[samples, runs]`."""
    means = np.stack([game.mean(1) for game in games], axis=1)
    every = np.concatenate(games, axis=1)
    return {
        "mean": means.mean(1),
        "median": np.median(means, axis=1),
        "iqm": interquartile_mean(every),
        "gap": np.maximum(1 - every, 0).mean(1),
    }


def crafter() -> dict[str, Any]:
    """Scores in per cent, returns and success rates of Crafter, by protocol and by method."""
    return _read("crafter.json")


def atari100k() -> dict[str, Any]:
    """The protocol of Atari 100k, returns by game and method, and published aggregates."""
    return _read("atari100k.json")


def atari200m() -> dict[str, Any]:
    """Random and human scores of 57 Atari games, and published scores at 10, 50, 200 M frames."""
    return _read("atari200m.json")


def procgen() -> dict[str, Any]:
    """Bounds of normalised Procgen scores by game, and published scores up to 50 M steps."""
    return _read("procgen.json")


def dmc_vision() -> dict[str, Any]:
    """Published returns of 20 DM Control tasks, learned from pixels, up to 1 M frames."""
    return _read("dmc_vision.json")


@functools.cache
def _read(name: str) -> dict[str, Any]:
    return json.loads(resources.files("emerald_jax").joinpath("data", name).read_text("utf-8"))


def atari_game(env: str) -> dict[str, float] | None:
    """Published returns by method of ``env``, such as ``atari:Pong``; None outside the 26 games."""
    family, _, game = env.partition(":")
    return atari100k()["games"].get(game) if family == "atari" else None
