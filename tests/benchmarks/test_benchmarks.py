"""Each benchmark on tiny shapes: its grid on this machine, and one measurement."""

from __future__ import annotations

from contextlib import nullcontext
from functools import partial
from unittest import mock

import jax
import numpy as np
import pytest

from benchmarks import decode, end_to_end, envs, imagination, replay, train
from benchmarks.suite import harness
from benchmarks.suite.harness import Budget, Options, full_context_starts
from benchmarks.suite.report import PARTS
from emerald_jax.presets import get_preset
from tests.benchmarks.report_cases import make_row
from tests.model_cases import (
    BATCH,
    little_optimisation,
    make_batch,
    sequence_keys,
    small_learner,
    state_shapes,
)

PAPER, TINY = get_preset("crafter"), get_preset("tiny")
SHORT = Budget(0.01, least=2, most=3)


@pytest.fixture(autouse=True)
def _quickly():
    """A fixed ceiling, little optimisation, and the compilation cache."""
    with (
        mock.patch.object(harness, "_rate", return_value=1e9),
        mock.patch.object(harness, "no_compilation_cache", nullcontext),
        mock.patch.object(harness, "compile_program", lambda lowered, **_: lowered.compile()),
        little_optimisation(),
    ):
        yield


def test_a_cpu_changes_one_thing_at_a_time():
    points = imagination.points(Options(), PAPER)
    here = points[0]
    assert here == (3, 15, 256, "float32", 1)
    assert len(set(points)) == len(points)
    assert all(sum(a != b for a, b in zip(p, here, strict=True)) <= 1 for p in points)
    assert {p.steps for p in points} == {0, 1, 3, 8}
    assert {p.horizon for p in points} == {5, 15, 30}
    assert {p.starts for p in points} == {64, 256, 1024}
    assert {p.devices for p in points} == {1, 2, 4, 8}


def test_the_complete_grid_and_named_points():
    points = imagination.points(Options(full=True, devices=(1,)), PAPER)
    assert points == [(3, 15, 256, "float32", 1)], "only the named points are measured"
    with mock.patch.object(imagination, "on_cpu", return_value=False):
        grid = imagination.points(Options(), PAPER)
    assert len(grid) == 4 * 3 * 4 * 2 * 4
    assert {p.starts for p in grid} == {64, 256, 1024, 4096}
    named = Options(decode_steps=(0, 8), starts=(64,), devices=(1, 2))
    assert [p[:3] for p in imagination.points(named, PAPER)][::2] == [(0, 15, 64), (8, 15, 64)]
    assert len(imagination.points(Options(quick=True), PAPER)) == 2
    assert Options(quick=True).config().preset == "crafter-small"
    assert Options(quick=True, preset="tiny").config().preset == "tiny"
    assert Options().config().preset == "crafter"


def test_points_that_cannot_be_measured_have_a_reason():
    point = imagination.Point(3, 15, 256, "float32", 1)
    assert imagination.obstacle(PAPER, point) == ""
    assert "a multiple of 16" in imagination.obstacle(PAPER, point._replace(starts=100))
    assert "do not divide" in imagination.obstacle(PAPER, point._replace(starts=64, devices=3))
    assert "512 tokens" in imagination.obstacle(PAPER, point._replace(steps=513))


def test_imagination_is_measured():
    options = Options(preset="tiny", quick=True, seconds=0.01, starts=(8, 9), devices=(2,))
    row, reason = imagination.measure(options)
    assert "imagination S=3 H=3 starts=9" in reason
    assert row.case == {
        "preset": "tiny",
        "S": 3,
        "H": 3,
        "starts": 8,
        "dtype": "float32",
        "devices": 2,
    }
    assert row.value.repeats >= 2
    assert row.value.lowest <= 24 / row.facts["seconds"] <= row.value.highest
    work = row.facts["useful_flops"] / row.facts["seconds"] / 1e9
    assert row.facts["share_of_ceiling"] == pytest.approx(work)


def test_starts_have_a_full_real_context():
    """In shape and visibility as an update makes them after a carry of valid tokens."""
    learner = small_learner()
    made = full_context_starts(learner, BATCH)
    batch = make_batch(learner)
    state = state_shapes(learner)
    passed = jax.eval_shape(
        partial(train.read, learner=learner), state.params["world_model"], batch, sequence_keys(0)
    )[1]
    real = jax.eval_shape(partial(train.make_starts, learner=learner), passed)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), made) == jax.tree.map(
        lambda x: (x.shape, x.dtype), real
    )
    flags = [x for x in jax.tree.leaves(made) if x.dtype == bool]
    assert flags
    assert all(x.all() for x in flags), "no real token is hidden"
    # Rollouts differ by sequence and by start.
    assert len(np.unique(made.state.h[..., 0])) == made.state.h[..., 0].size


def test_the_parts_of_an_update_fit_together():
    learner, batch, keys = small_learner(), make_batch(small_learner()), sequence_keys(0)
    state = state_shapes(learner)
    grads, passed = jax.eval_shape(
        partial(train.read, learner=learner), state.params["world_model"], batch, keys
    )
    starts = jax.eval_shape(partial(train.make_starts, learner=learner), passed)
    trajectory = jax.eval_shape(partial(train.dream, learner=learner), state.params, starts, keys)
    agent = jax.eval_shape(
        partial(train.learn, learner=learner), state.params, state.slow_critic, trajectory
    )
    grads = {"world_model": grads, **agent}
    params, opt_state, slow = jax.eval_shape(partial(train.move, learner=learner), state, grads)
    for new, old in ((params, state.params), (opt_state, state.opt_state)):
        assert jax.tree.map(lambda x: x.shape, new) == jax.tree.map(lambda x: x.shape, old)
    assert jax.tree.structure(slow) == jax.tree.structure(state.slow_critic)


def test_an_update_is_measured():
    row = make_row([2.5], "train")
    options = Options(preset="tiny", quick=True, devices=(1, 3))
    with mock.patch.object(train, "measure_update", return_value=row):
        found = list(train.measure(options))
    assert found[0] is row
    assert "train on 3 devices: they do not divide 4 sequences" in found[1]
    assert options.found == {"updates_per_s": 2.5}
    assert train.frames(PAPER) == 16


@pytest.mark.slow
def test_an_update_is_timed_completely_and_in_parts():
    row = train.measure_update(TINY, 1, Options(quick=True, seconds=0.01), parts=True)
    facts = row.facts
    total = sum(facts[f"{part}_seconds"] for part in PARTS) + facts["rest_seconds"]
    assert total == pytest.approx(facts["seconds"])
    assert facts["env_steps_per_s"] == pytest.approx(train.frames(TINY) / facts["seconds"])
    assert facts["parameters"] > 1000


@pytest.mark.slow
def test_several_seeds_are_timed_in_one_program():
    config = harness.with_changes(TINY, model={"dtype": "float32"})
    row = train.measure_seeds(config, 2, Options(quick=True, seconds=0.01))
    assert row.case == {"preset": "tiny", "dtype": "float32", "seeds": 2}
    assert row.facts["useful_flops"] == 2 * train.update_flops(config)["whole"].useful
    assert row.value.lowest <= 2 / row.facts["seconds"] <= row.value.highest


def test_decoding_grid_holds_the_paper_s_claim():
    kinds = {(p.prior, p.steps) for p in decode.points(Options(), PAPER)}
    assert {("linear", 0), ("maskgit", 1), ("maskgit", 3), ("maskgit", 8)} <= kinds
    assert {p.batch for p in decode.points(Options(), PAPER)} == {256}


def test_the_claim_is_a_ratio_of_repeats():
    point = decode.Point("maskgit", 3, 256, "float32")
    row = decode.claim(PAPER, point, [1.0, 2.0, 1.0], [4.0, 8.0, 5.0])
    assert (row.value.median, row.value.highest, row.unit) == (4.0, 5.0, "times as fast")


def test_decoding_is_measured():
    point = decode.Point("linear", 0, 8, "float32")
    options = Options(quick=True, seconds=0.01)
    seconds, row = decode.measure_point(TINY, point, options)
    assert row.value.highest == pytest.approx(8 / min(seconds))


def test_replay_is_measured():
    options = Options(preset="tiny", quick=True, seconds=0.01, records=800)
    rows = list(replay.measure(options))
    assert [row.case["what"] for row in rows] == ["streams", "windows", "append"]
    assert all(row.case["records"] == 800 for row in rows)
    assert rows[0].facts["bytes_per_record"] > 16 * 16 * 3
    with mock.patch.object(replay, "available_bytes", return_value=2 * 800 * 1000):
        reason, *rows = replay.measure(Options(preset="tiny", seconds=0.01, records=10**9))
    assert reason.startswith("replay of 1,000,000,000 records: it needs")
    assert all(row.case["records"] < 3000 for row in rows)


def test_a_filled_store_holds_episodes():
    store = replay.filled_replay(800, 4, (16, 16, 3))
    assert len(store) == 800
    assert store.num_episodes >= 4
    assert store.columns["image"].any(axis=(2, 3, 4)).all(), "every page is in memory"
    ends = store.columns["is_last"][:-1]
    np.testing.assert_array_equal(ends, store.columns["is_first"][1:])


def test_environments_are_measured():
    options = Options(
        preset="tiny", quick=True, seconds=0.02, envs=("noise", "gymnax:Nothing"), counts=(1,)
    )
    # Worker processes have tests of their own.
    with mock.patch.object(envs, "product", lambda counts, ways: [(n, ways[0]) for n in counts]):
        row, reason = envs.measure(options)
    assert row.case == {"env": "noise", "count": 1, "way": "inline"}
    assert row.facts["vector_step_seconds"] == pytest.approx(1 / row.value.median)
    assert reason.startswith("envs gymnax:Nothing: unknown environment")


def test_environments_are_compared_with_the_updates_that_hide_them():
    row = envs.Row(
        benchmark="envs",
        case={"env": PAPER.env, "count": 16, "way": "process"},
        unit="",
        value=None,
        facts={"vector_step_seconds": 0.01},
    )
    envs.add_hiding(row, PAPER, Options())
    assert "share_of_train_step" not in row.facts
    # One update per vector step, 50 updates per second: 20 ms, in which 10 ms are hidden.
    envs.add_hiding(row, PAPER, Options(found={"updates_per_s": 50.0}))
    assert row.facts["share_of_train_step"] == pytest.approx(0.5)


def test_a_run_is_compared_with_the_bare_update():
    rows = [
        {
            "speed/env_steps_per_s": 160.0,
            "speed/updates_per_s": 9.0,
            "speed/env_wait_share": 0.02,
        }
    ] * 3
    facts = end_to_end.end_to_end_row(PAPER, rows, bare=10.0, env_seconds=0.04, minutes=1).facts
    assert facts["share_of_train_step"] == 0.9
    # 0.1 s per vector step, 2 % of it waiting: 2 of the 40 ms are not hidden.
    assert facts["env_seconds_waited"] == pytest.approx(0.002)
    assert facts["env_time_hidden"] == pytest.approx(0.95)
    assert facts["can_environments_keep_up"]


@pytest.mark.slow
def test_a_real_run_is_measured():
    rows = end_to_end.run_for(TINY, 0.001, 10.0)
    assert rows
    assert {"speed/env_steps_per_s", "speed/updates_per_s", "speed/env_wait_share"} <= set(rows[0])
    assert end_to_end.vector_step_seconds(TINY, SHORT) > 0
