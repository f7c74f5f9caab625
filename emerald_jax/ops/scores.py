"""Scores of benchmarks, as plain numbers."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping


def success_rates(episodes: Iterable[Mapping[str, int]], names: Iterable[str]) -> dict[str, float]:
    """Share of episodes that unlocked each achievement at least once.

    Args:
        episodes: one mapping per episode, achievement name -> times unlocked.
        names: all achievements, so that one never unlocked counts as 0.

    Returns:
        name -> rate in per cent.
    """
    episodes = list(episodes)
    if not episodes:
        raise ValueError("success rates need at least one episode")
    return {
        name: 100.0 * sum(e.get(name, 0) > 0 for e in episodes) / len(episodes) for name in names
    }


def crafter_score(rates: Mapping[str, float]) -> float:
    """Crafter's score: the geometric mean of success rates, shifted by one (Hafner 2021).

    exp(mean_i ln(1 + s_i)) - 1, which rewards rare achievements more than frequent ones.

    Args:
        rates: name -> success rate s_i in per cent, 0 to 100.

    Returns:
        The score in per cent.
    """
    return math.exp(sum(math.log1p(rate) for rate in rates.values()) / len(rates)) - 1.0
