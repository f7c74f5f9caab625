"""Crafter's two protocols, and results that must not be averaged."""

import pytest

from emerald_jax.reports import crafter
from emerald_jax.reports.runs import read_runs


def results(*paths):
    return crafter.entries(read_runs(paths))


def test_training_counts_the_first_million_steps(make_run, crafter_episodes):
    # 100 episodes of 10 000 steps are the first million; the 50 that follow, which achieve
    # something, do not count.
    rows = crafter_episodes(100, 10_000, wood=False)
    rows += crafter_episodes(50, 10_000, wood=True, score=7.0)
    (entry,) = results(make_run("a", "crafter", episodes=rows))
    assert entry.protocol == crafter.TRAINING
    assert entry.deviations == ()
    (seed,) = entry.results
    assert (seed.episodes, seed.mean_return, seed.score) == (100, 1.0, 0.0)


def test_too_few_steps_are_labelled(make_run, crafter_episodes):
    (entry,) = results(make_run("a", "crafter", episodes=crafter_episodes(98, 10_000, wood=True)))
    assert entry.deviations == ("980,000 of 1,000,000 steps",)
    # As in the benchmark's own scripts, 10 000 steps may be missing.
    (entry,) = results(make_run("b", "crafter", episodes=crafter_episodes(99, 10_000, wood=True)))
    assert entry.deviations == ()


def test_seeds_are_averaged_and_pooled(make_run, evaluation):
    runs = [
        make_run("a", "crafter", seed=0, evals=[evaluation(wood=100.0)]),
        make_run("b", "crafter", seed=1, evals=[evaluation(wood=0.0, episodes=768)]),
    ]
    (entry,) = results(*runs)
    # One seed achieves one of 22 always: exp(ln(101) / 22) - 1; the other nothing.
    one = 101 ** (1 / 22) - 1
    assert entry.score == pytest.approx(one / 2)
    # Of 1024 episodes a quarter achieved it.
    assert entry.pooled_rates["collect_wood"] == 25
    row = crafter.table(read_runs(runs), [entry]).rows[-6]
    assert row[0] == "ours: crafter"
    assert row[4:6] == ("2", "1024")
    assert row[-1] == "yes"


@pytest.mark.parametrize(
    ("changes", "deviation"),
    [
        ({"episodes": 16}, "16 of 256 episodes"),
        ({"env_steps": 1_000_000}, "after 1,000,000 of 10,000,000 steps"),
        ({"mode": "mode"}, "likeliest action"),
        ({"time_limit": 500}, "time limit 500, not 10,000"),
        ({"image_size": 32}, "images of 32 pixels, not 64"),
        ({"left_out": 3}, "3 episodes left out"),
    ],
)
def test_a_deviation_from_the_protocol_has_its_own_row(make_run, evaluation, changes, deviation):
    runs = [
        make_run("a", "crafter", evals=[evaluation()]),
        make_run("b", "crafter", seed=1, evals=[evaluation(**changes)]),
    ]
    found = results(*runs)
    assert [len(entry.results) for entry in found] == [1, 1]
    assert sorted(entry.deviations for entry in found) == [(), (deviation,)]
    assert any(row[-1] == f"**no**: {deviation}" for row in crafter.table([], found).rows)


def test_other_settings_are_another_agent(make_run, evaluation):
    runs = [
        make_run("a", "crafter", evals=[evaluation()]),
        make_run("b", "crafter", seed=1, train_ratio=8.0, evals=[evaluation()]),
        make_run("c", "crafter", seed=2, steps=20_000_000, evals=[evaluation()]),
    ]
    found = results(*runs)
    assert [entry.label for entry in found] == ["ours: crafter", "ours: crafter, train_ratio 8.0"]
    assert [len(entry.results) for entry in found] == [2, 1]


def test_a_second_evaluation_is_not_a_second_seed(make_run, evaluation):
    run = make_run("a", "crafter", evals=[evaluation(), evaluation(seed=1, wood=0.0)])
    (entry,) = results(run)
    assert len(entry.results) == 1
    assert entry.pooled_rates["collect_wood"] == 100


def test_left_out_episodes_are_noted(make_run, crafter_episodes):
    rows = crafter_episodes(5, 100, wood=True)
    rows[2]["fault"] = "died"
    runs = read_runs([make_run("a", "crafter", episodes=rows, resumes=[200, 200, 300])])
    (entry,) = crafter.entries(runs)
    assert entry.results[0].episodes == 4
    notes = " ".join(crafter.table(runs, [entry]).notes)
    # Two places of interruption, 16 environments each.
    assert "1 that a fault of the environment cut short and 32 that were open" in notes
    assert "Never evaluated" in notes
