"""Scores by hand, against scipy, and against published tables."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.stats

from emerald_jax.scores import (
    aggregate,
    atari100k,
    crafter_score,
    human_normalised,
    interquartile_mean,
    success_rates,
)


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


def test_human_normalised_by_hand():
    # Pong: random -20.7, human 14.6; a score of 14.6 is 1, of -20.7 is 0, halfway is a half.
    assert human_normalised(14.6, -20.7, 14.6) == 1
    assert human_normalised(-3.05, -20.7, 14.6) == pytest.approx(0.5)


def test_aggregates_by_hand():
    # Means over runs 2, 5, 90: their mean is 97 / 3, their median 5. The nine runs, sorted, are
    # 1 2 3 | 4 5 6 | 60 90 120; a quarter of nine, rounded down, is two, so the middle is 3 to 60.
    found = aggregate({"a": [1, 2, 3], "b": [6, 5, 4], "c": [90, 60, 120]}, samples=200)
    assert found["mean"].value == pytest.approx(97 / 3)
    assert found["median"].value == 5
    assert found["iqm"].value == pytest.approx((3 + 4 + 5 + 6 + 60) / 5)


@pytest.mark.parametrize("n", [1, 3, 4, 5, 26, 130])
def test_iqm_is_scipys_trimmed_mean(n):
    values = np.random.default_rng(n).normal(size=(3, n)) ** 3
    expected = [scipy.stats.trim_mean(row, 0.25) for row in values]
    np.testing.assert_allclose(interquartile_mean(values), expected)


def test_intervals_are_those_of_all_bootstrap_samples():
    # Two runs, 0 and 1, of one game: the mean of a sample is 0, 1/2 or 1 with probability 1/4, 1/2,
    # 1/4, so 95 % reach from 0 to 1. A second game of equal runs halves every deviation.
    found = aggregate({"a": [0.0, 1.0]}, samples=2000)["mean"]
    assert found == (0.5, 0.0, 1.0)
    found = aggregate({"a": [0.0, 1.0], "b": [3.0, 3.0]}, samples=2000)["mean"]
    assert found == (1.75, 1.5, 2.0)


def test_runs_are_drawn_within_their_own_game():
    # Each game's runs are equal, so stratified samples are all alike however far apart games are.
    scores = {"a": [0.0] * 3, "b": [10.0] * 3, "c": [500.0] * 3}
    for interval in aggregate(scores, samples=100).values():
        assert interval.low == interval.value == interval.high


def test_intervals_cover_the_truth_at_their_level():
    # 200 studies of 4 games x 10 runs around known means: a percentile interval from ten runs is
    # known to be a little short, so between 85 and 99 % of them hold the true mean.
    rng = np.random.default_rng(0)
    truth = np.array([0.0, 1.0, 2.0, 5.0])
    hits = 0
    for study in range(200):
        scores = {str(i): rng.normal(mean, 1.0, 10) for i, mean in enumerate(truth)}
        found = aggregate(scores, samples=300, seed=study)["mean"]
        hits += found.low <= truth.mean() <= found.high
    assert 170 <= hits <= 198


def test_one_run_per_game_has_no_interval():
    found = aggregate({"a": [1.0], "b": [3.0]})
    assert found["mean"].value == 2
    assert math.isnan(found["mean"].low)
    assert math.isnan(found["iqm"].high)
    with pytest.raises(ValueError, match="at least one run of every game"):
        aggregate({"a": [1.0], "b": []})
    with pytest.raises(ValueError, match="at least one run of every game"):
        aggregate({})


def test_published_means_and_medians_follow_from_the_published_games():
    # DIAMOND's own table: mean 1.459 and median 0.373 over its 26 games.
    table = atari100k()
    scores = {
        game: [human_normalised(row["diamond"], row["random"], row["human"])]
        for game, row in table["games"].items()
    }
    found = aggregate(scores)
    assert found["mean"].value == pytest.approx(table["aggregate"]["diamond"]["mean"], abs=1e-3)
    assert found["median"].value == pytest.approx(table["aggregate"]["diamond"]["median"], abs=1e-3)
