"""One update of everything: what moves, what must not, and that it is one compiled program."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from emerald_jax.agent.state import apply_gradients, build_learner, build_optimizers, init_carry
from emerald_jax.config import OptimConfig
from emerald_jax.imagination import starts_from
from emerald_jax.training import update as update_module
from emerald_jax.training.update import start_positions, train_step
from tests.model_cases import (
    LENGTH,
    NUM_ACTIONS,
    STARTS,
    compiled,
    copy,
    fresh_state,
    make_batch,
    make_state,
    sequence_keys,
    small_config,
    small_learner,
    to_numpy,
    train_program,
)


@pytest.fixture(scope="module")
def update():
    return train_program(1)


@pytest.fixture(scope="module")
def before():
    return make_state(small_learner())


@pytest.fixture(scope="module")
def batch():
    return make_batch(small_learner())


@pytest.fixture(scope="module")
def after(update, before, batch):
    """State, carry and metrics of one good update."""
    return update(copy(before), batch, sequence_keys(0))


def assert_same(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_array_equal(np.asarray(x), np.asarray(y))


def test_one_seed_one_result(update, before, batch, after):
    # train_program fails when it is traced twice, so this is also one program for all updates.
    assert_same(update(copy(before), batch, sequence_keys(0)), after)
    other = update(copy(before), batch, sequence_keys(1))[2]
    assert other["loss/model"] != after[2]["loss/model"]


def test_updates_follow_one_another_without_tracing_again(update, batch, after):
    state, carry, _ = copy(after)
    for step in range(2, 4):
        state, carry, metrics = update(state, batch._replace(carry=carry), sequence_keys(step))
        assert int(state.step) == step
        assert metrics["finite"] == 1
    assert int(state.skipped) == 0


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_what_comes_out_can_go_in_again(dtype):
    # Also weak types must not change, or the second update would compile anew.
    learner = build_learner(small_config(model=dict(dtype=dtype)), NUM_ACTIONS)
    state, batch = make_state(learner), make_batch(learner)
    carry = jax.tree.map(jnp.asarray, batch.carry)
    if dtype == "bfloat16":
        half = [x.astype(jnp.bfloat16) for x in carry.memory[:2]]
        carry = carry._replace(memory=carry.memory._replace(keys=half[0], values=half[1]))
    result = jax.eval_shape(
        partial(train_step, learner=learner), state, batch._replace(carry=carry), sequence_keys(0)
    )

    def avals(tree):
        return [(x.shape, x.dtype, x.weak_type) for x in jax.tree.leaves(tree)]

    assert avals(result[:2]) == avals((state, carry))
    assert {(x.shape, x.dtype) for x in result[2].values()} == {((), jnp.dtype("float32"))}


def test_all_three_groups_move(before, after):
    # And no array in them is left behind: each has some path to a loss.
    old = jax.tree_util.tree_leaves_with_path(before.params)
    still = [
        jax.tree_util.keystr(path)
        for (path, x), y in zip(old, jax.tree.leaves(after[0].params), strict=True)
        if (np.asarray(x) == np.asarray(y)).all()
    ]
    assert not still
    rates = {"world_model": 3e-3, "actor": 1e-3, "critic": 1e-3}
    for group, rate in rates.items():
        # Adam's first step is the learning rate times the sign of the gradient.
        pairs = zip(*(jax.tree.leaves(s.params[group]) for s in (before, after[0])), strict=True)
        steps = np.concatenate([np.abs(np.asarray(a) - np.asarray(b)).ravel() for a, b in pairs])
        assert steps.max() < 1.01 * rate
        assert np.median(steps) > 0.5 * rate


def test_the_learned_start_moves(before, after):
    old, new = (s.params["world_model"]["sequence"]["start"] for s in (before, after[0]))
    assert (np.abs(old - new) > 1e-5).all()


def test_slow_critic_follows_by_its_rate(before, after):
    new = jax.tree.leaves(to_numpy(after[0].params["critic"]))
    slow = jax.tree.leaves(to_numpy(after[0].slow_critic))
    for target, old, result in zip(new, jax.tree.leaves(before.slow_critic), slow, strict=True):
        expected = 0.98 * np.asarray(old, np.float64) + 0.02 * target
        np.testing.assert_allclose(result, expected, rtol=1e-5, atol=1e-6)


def test_return_range_is_a_moving_average(before, after):
    # 0.99 * 2 + 0.01 * spread; the scale is that, but at least 1.
    spread = (float(after[0].return_range) - 0.99 * float(before.return_range)) / 0.01
    assert spread > 0
    np.testing.assert_allclose(after[2]["behavior/return_scale"], after[0].return_range, rtol=1e-6)


def test_small_returns_are_not_blown_up(update, before, batch):
    state = before.replace(return_range=jnp.float32(0))
    state, _, metrics = update(copy(state), batch, sequence_keys(0))
    assert 0 < float(state.return_range) < 1
    assert metrics["behavior/return_scale"] == 1


def test_model_loss_is_the_weighted_sum(after):
    metrics = to_numpy(after[2])
    weights = {"image": 1, "reward": 1, "cont": 1, "dyn": 0.5, "rep": 0.1, "mask": 0.5}
    expected = sum(weight * metrics[f"loss/{name}"] for name, weight in weights.items())
    np.testing.assert_allclose(metrics["loss/model"], expected, rtol=1e-5)
    assert all(np.isfinite(value) for value in metrics.values())
    assert metrics["finite"] == 1


def test_imagined_reward_counts_by_survival(update, before, batch):
    # Rollouts that start at a real death weigh nothing, so two halves of a batch make the whole.
    dead = np.zeros_like(batch.is_terminal)
    dead[: len(dead) // 2] = True
    one, other, both, none = (
        update(copy(before), batch._replace(is_terminal=flags), sequence_keys(0))[2]
        for flags in (dead, ~dead, np.zeros_like(dead), np.ones_like(dead))
    )
    weight = [float(m["behavior/weight"]) for m in (one, other)]
    parts = [float(m["behavior/imagined_reward"]) for m in (one, other)]
    assert abs(parts[0] - parts[1]) > 1e-5
    expected = np.dot(weight, parts) / sum(weight)
    np.testing.assert_allclose(both["behavior/imagined_reward"], expected, rtol=1e-3, atol=1e-8)
    assert none["behavior/imagined_reward"] == none["behavior/weight"] == 0
    assert none["finite"] == 1


def test_carry_is_what_the_next_chunk_needs(batch, after):
    carry = to_numpy(after[1])
    assert jax.tree.map(lambda x: (x.shape, x.dtype), carry) == jax.tree.map(
        lambda x: (x.shape, x.dtype), batch.carry
    )
    # 12 steps of which the last 7 belong to the newest episode of every sequence.
    assert carry.memory.valid.all()
    assert all(len(np.unique(x)) > 1000 for x in carry.memory[:2])


@pytest.mark.parametrize("harm", ["reward", "memory"])
def test_an_update_that_is_not_finite_changes_nothing(update, before, batch, harm):
    if harm == "reward":
        reward = batch.reward.copy()
        reward[3, 7] = np.nan
        bad = batch._replace(reward=reward)
    else:
        values = batch.carry.memory.values.copy()
        values[1] = np.inf
        memory = batch.carry.memory._replace(values=values)
        bad = batch._replace(carry=batch.carry._replace(memory=memory))
    state, carry, metrics = update(copy(before), bad, sequence_keys(0))
    for name in ("params", "slow_critic", "opt_state", "return_range"):
        assert_same(getattr(state, name), getattr(before, name))
    assert (int(state.step), int(state.skipped), int(state.bad_streak)) == (1, 1, 1)
    assert all((np.asarray(x) == 0).all() for x in jax.tree.leaves(carry))
    assert metrics["finite"] == 0
    # A second one in a row, then a good one on the emptied carry.
    state, _, _ = update(state, bad, sequence_keys(1))
    assert (int(state.step), int(state.skipped), int(state.bad_streak)) == (2, 2, 2)
    state, _, metrics = update(state, batch._replace(carry=carry), sequence_keys(2))
    assert (int(state.step), int(state.skipped), int(state.bad_streak)) == (3, 2, 0)
    assert metrics["finite"] == 1
    with pytest.raises(AssertionError):
        assert_same(state.params, before.params)


def test_the_state_is_donated(update, before, batch):
    state = copy(before)
    update(state, batch, sequence_keys(0))
    assert all(x.is_deleted() for x in jax.tree.leaves(state.params))


def test_starts_are_every_fourth_step_from_the_third():
    np.testing.assert_array_equal(start_positions(LENGTH, 4), STARTS)
    starts = np.asarray(start_positions(64, 4))
    assert len(starts) == 16
    assert (starts[0], starts[-1]) == (3, 63)
    np.testing.assert_array_equal(start_positions(3, 1), [0, 1, 2])


def adam(gradients, rate, eps, clip):
    """Two moments, bias-corrected, after a clip of the whole gradient's norm."""
    m = v = x = np.zeros_like(gradients[0])
    for t, g in enumerate(gradients, start=1):
        g = g * min(1, clip / np.linalg.norm(g))
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
        x = x - rate * (m / (1 - 0.9**t)) / (np.sqrt(v / (1 - 0.999**t)) + eps)
    return x


@pytest.mark.parametrize(
    ("group", "rate", "eps", "clip"),
    [("world_model", 1e-4, 1e-8, 1000), ("actor", 3e-5, 1e-5, 100), ("critic", 3e-5, 1e-5, 100)],
)
def test_optimisers_are_the_papers(group, rate, eps, clip):
    # The second gradient is a hundred times the clip; the third is as small as epsilon.
    rng = np.random.default_rng(0)
    gradients = [rng.normal(size=6) * s for s in (1, 100 * clip, 1e-5)]
    optimizers = build_optimizers(OptimConfig())
    groups = {name: {"a": jnp.zeros((2, 2)), "b": jnp.zeros(2)} for name in optimizers}
    state = {name: opt.init(groups[name]) for name, opt in optimizers.items()}
    step = jax.jit(partial(apply_gradients, optimizers))
    for g in gradients:
        tree = {"a": jnp.asarray(g[:4].reshape(2, 2), jnp.float32), "b": jnp.float32(g[4:])}
        groups, state = step(dict.fromkeys(groups, tree), state, groups)
    result = np.concatenate([np.ravel(x) for x in jax.tree.leaves(groups[group])])
    np.testing.assert_allclose(result, adam(gradients, rate, eps, clip), rtol=2e-4, atol=1e-9)


def test_rates_and_entropy_bonus_fall_to_zero_at_the_last_update(before, batch):
    def program(**changes):
        learner = build_learner(small_config(**changes), NUM_ACTIONS)
        inputs = (before, batch, sequence_keys(0))
        return compiled(partial(train_step, learner=learner), *inputs)

    update = program(optim={"anneal": True}, behavior={"entropy": 1.0})
    total, params, norms = small_config().total_updates, {}, {}
    for step in (0, total // 2, total, total + 1):
        state = copy(before).replace(step=jnp.int32(step))
        state, _, metrics = update(state, batch, sequence_keys(0))
        params[step], norms[step] = state.params, float(metrics["grad_norm/actor"])
    models = {step: ravel_pytree(tree["world_model"])[0] for step, tree in params.items()}
    start = ravel_pytree(before.params["world_model"])[0]
    whole = models[0] - start
    half = (models[total // 2] - start)[whole != 0] / whole[whole != 0]
    np.testing.assert_allclose(half, 1 - (total // 2) / total, atol=0.05)
    assert_same(params[total], before.params)
    assert_same(params[total + 1], before.params)
    bare = program(behavior={"entropy": 0.0})(copy(before), batch, sequence_keys(0))[2]
    np.testing.assert_allclose(norms[total], bare["grad_norm/actor"], rtol=1e-4)
    assert abs(norms[0] / norms[total] - 1) > 0.01


def test_one_batch_is_learned(update, batch):
    state, losses = copy(fresh_state()), []
    for step in range(80):
        state, _, metrics = update(state, batch, sequence_keys(step))
        losses.append([metrics[f"loss/{name}"] for name in ("image", "reward", "critic")])
    first, last = np.mean(losses[:5], axis=0), np.mean(losses[-5:], axis=0)
    assert (last < 0.8 * first).all()
    assert int(state.skipped) == 0


def test_weights_and_tables_computed_once_give_the_same_dream(monkeypatch, batch):
    learner = build_learner(small_config(model={"dtype": "bfloat16"}), NUM_ACTIONS)
    params, keys = make_state(learner).params, sequence_keys(0)
    batch = jax.tree.map(jnp.asarray, batch)._replace(carry=init_carry(learner, len(batch.action)))

    def dream(params):
        passed = learner.model.apply({"params": params["world_model"]}, batch, keys)
        starts = starts_from(passed, start_positions(batch.action.shape[1], 4))
        return update_module.rollout(params, starts, keys, learner=learner)

    cast = to_numpy(compiled(dream, params)(params))
    monkeypatch.setattr(update_module, "in_compute_type", lambda params, dtype: params)
    monkeypatch.setattr(update_module, "with_tables", lambda model, params: params)
    plain = to_numpy(compiled(dream, params)(params))
    jax.tree.map(np.testing.assert_array_equal, cast, plain)
    assert cast.state.h.dtype == jnp.bfloat16
