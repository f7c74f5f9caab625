"""Crafter's score by hand."""

from __future__ import annotations

import pytest

from emerald_jax.ops.scores import crafter_score, success_rates


def test_rates_count_episodes_not_unlocks():
    episodes = [{"wood": 3}, {"wood": 1, "iron": 0}, {}, {"stone": 1}]
    rates = success_rates(episodes, ["wood", "stone", "iron"])
    assert rates == {"wood": 50.0, "stone": 25.0, "iron": 0.0}
    with pytest.raises(ValueError, match="at least one episode"):
        success_rates([], ["wood"])


def test_score_is_a_shifted_geometric_mean():
    # exp((ln 100 + ln 1 + ln 10) / 3) - 1 = exp(ln 1000 / 3) - 1 = 9, for 99 %, 0 % and 9 %.
    assert crafter_score({"a": 99.0, "b": 0.0, "c": 9.0}) == pytest.approx(9)
    assert crafter_score({"a": 100.0, "b": 100.0}) == pytest.approx(100)
    assert crafter_score({"a": 0.0}) == 0
