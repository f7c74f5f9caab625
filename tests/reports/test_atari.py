"""Atari 100k: normalised scores, aggregates, and deviations from the protocol."""

import math

import pytest

from emerald_jax.envs.registry import ATARI_100K
from emerald_jax.reports import atari
from emerald_jax.reports.runs import read_runs
from emerald_jax.scores import atari100k


@pytest.fixture
def play(make_run):
    """``play(game, mean_return, seed=…, envs=…, **changes)``: an evaluated run."""

    def make(game, mean_return, *, seed=0, envs=None, **changes):
        result = {"env": f"atari:{game}", "updates": 98_976, "seed": 0, "mode": "sample"}
        result |= {"env_steps": 100_000, "episodes": 100, "return": mean_return, **changes}
        name = f"{game}-{seed}-{len(changes)}-{envs}"
        return make_run(
            name, "atari100k", env=f"atari:{game}", seed=seed, envs=envs, evals=[result]
        )

    return make


def test_aggregates_by_hand(play):
    # Boxing: random 0.1, human 12.1, so 6.1 and 12.1 are 0.5 and 1. Pong: random -20.7.
    paths = [play("Boxing", 6.1), play("Boxing", 12.1, seed=1), play("Pong", -20.7)]
    runs = read_runs(paths)
    (entry,) = atari.entries(runs)
    assert entry.normalised["Boxing"] == pytest.approx([0.5, 1.0])
    assert entry.aggregates["mean"].value == pytest.approx(0.375)  # of 0.75 and 0
    assert entry.aggregates["mean"].low == pytest.approx(0.25)
    assert entry.all_deviations
    table = atari.table(runs, [entry])
    row = table.rows[0]
    assert row[:3] == ("ours: atari100k", "2", "3")
    assert row[-1] == "**no**: 2 of 26 games"
    # The published methods over the same two games are in the table too.
    assert any(row[0] == "diamond (published means of these games)" for row in table.rows)
    assert any("differ in their number of runs" in note for note in table.notes)
    (boxing, pong) = atari.games_table([entry]).rows
    assert boxing[:4] == ("Boxing", "9.1 (0.75) of 6.1, 12.1", "0.1", "12.1")
    assert pong[1] == "-20.7 (0.00)"


def test_all_games_meet_the_protocol(play):
    known = atari100k()["games"]
    paths = [play(game, known[game]["diamond"]) for game in ATARI_100K]
    (entry,) = atari.entries(read_runs(paths))
    assert not entry.all_deviations
    assert entry.aggregates["mean"].value == pytest.approx(1.459, abs=1e-3)
    assert math.isnan(entry.aggregates["mean"].low)
    row = atari.table([], [entry]).rows[0]
    assert row[-1] == "yes"
    assert not any("these games" in row[0] for row in atari.table([], [entry]).rows)


@pytest.mark.parametrize(
    ("changes", "envs", "deviation"),
    [
        ({"episodes": 10}, None, "10 of 100 episodes"),
        ({"env_steps": 40_000}, None, "after 40,000 of 100,000 steps"),
        ({"mode": "mode"}, None, "likeliest action"),
        ({}, {"frame_skip": 6}, "frame skip 6, not 4"),
        ({}, {"image_size": 32}, "images of 32 pixels, not 64"),
        ({}, {"time_limit": 100}, "time limit 400 frames, not 108,000"),
    ],
)
def test_results_that_deviate_from_the_protocol_are_not_averaged(play, changes, envs, deviation):
    runs = read_runs([play("Pong", 20.0), play("Pong", 0.0, seed=1, envs=envs, **changes)])
    found = atari.entries(runs)
    assert [entry.deviations for entry in found] == [(), (deviation,)]
    assert [entry.returns["Pong"] for entry in found] == [[20.0], [0.0]]
    assert atari.table(runs, found).rows[1][-1] == f"**no**: {deviation}; 1 of 26 games"
