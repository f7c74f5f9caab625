"""Eight devices do what one does; a batch that they cannot share is refused."""

from __future__ import annotations

import dataclasses
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks.suite.harness import full_context_starts
from emerald_jax.agent.state import build_learner, init_carry
from emerald_jax.config import ConfigError, OptimConfig, ReplayConfig
from emerald_jax.envs.registry import spec_of
from emerald_jax.presets import get_preset
from emerald_jax.training.devices import (
    TrainingAgent,
    compile_imagination,
    compile_train_step,
    join,
    local_devices,
    put_batch,
    split,
    training_devices,
)
from tests.model_cases import (
    BATCH,
    copy,
    little_optimisation,
    make_batch,
    make_state,
    sequence_keys,
    small_config,
    small_learner,
    to_numpy,
    train_program,
)

DEVICES = 8


@pytest.fixture(scope="module")
def results():
    """State, carry and metrics of the same update on one device and on eight."""
    state, batch = make_state(small_learner()), make_batch(small_learner())
    both = {}
    for count in (1, DEVICES):
        new, carry, metrics = train_program(count)(copy(state, count), batch, sequence_keys(0))
        both[count] = to_numpy((new, join(carry, count), metrics))
    return both[1], both[DEVICES]


@pytest.mark.parametrize(
    ("changes", "count"),
    [
        ({}, 2),
        ({"devices": 4}, 4),
        ({"replay": ReplayConfig(batch=3, length=8)}, 1),  # two devices cannot share it
        ({"optim": OptimConfig(micro_batch=1)}, 1),  # it is computed in parts
    ],
    ids=["small", "given", "odd", "in-parts"],
)
def test_a_small_model_shares_a_cpu(changes, count):
    config = dataclasses.replace(get_preset("tiny"), **changes)
    assert len(training_devices(config)) == count


def test_there_are_eight_devices():
    assert len(jax.local_devices()) == DEVICES
    assert local_devices(0) == jax.local_devices()
    assert local_devices(3) == jax.local_devices()[:3]
    with pytest.raises(ConfigError, match=f"has {DEVICES} JAX device"):
        local_devices(DEVICES + 1)


def test_metrics_and_returns_agree(results):
    (one, _, expected), (eight, _, metrics) = results
    assert metrics.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(metrics[name], value, rtol=1e-5, atol=1e-6, err_msg=name)
    np.testing.assert_allclose(eight.return_range, one.return_range, rtol=1e-5)
    assert metrics["finite"] == 1


def test_gradients_agree(results):
    # Adam's moments after one update are the gradient and its square, up to constants.
    one, eight = (state.opt_state for state, _, _ in results)
    assert jax.tree.structure(one) == jax.tree.structure(eight)
    moments = 0
    for x, y in zip(jax.tree.leaves(one), jax.tree.leaves(eight), strict=True):
        np.testing.assert_allclose(y, x, rtol=1e-5, atol=1e-5 * np.abs(x).max())
        moments += x.ndim > 0 and np.abs(x).max() > 0
    assert moments >= 6


@pytest.mark.slow
def test_parts_of_the_batch_agree(results):
    learner = small_learner()
    optim = dataclasses.replace(learner.config.optim, micro_batch=2)
    parts = learner._replace(config=dataclasses.replace(learner.config, optim=optim))
    step = compile_train_step(parts, jax.local_devices()[:1])
    with little_optimisation():
        found = step(copy(make_state(learner)), make_batch(learner), sequence_keys(0))
    new, carry, metrics = to_numpy(found)
    one, expected_carry, expected = results[0]
    for name, value in expected.items():
        np.testing.assert_allclose(metrics[name], value, rtol=1e-5, atol=1e-6, err_msg=name)
    for x, y in zip(
        jax.tree.leaves((one.opt_state, expected_carry)),
        jax.tree.leaves((new.opt_state, carry)),
        strict=True,
    ):
        np.testing.assert_allclose(y, x, rtol=1e-5, atol=1e-5 * max(1e-9, np.abs(x).max()))


def test_parameters_and_carry_agree(results):
    (one, carry, _), (eight, other, _) = results
    for x, y in zip(jax.tree.leaves(carry), jax.tree.leaves(other), strict=True):
        assert x.shape == y.shape
        np.testing.assert_allclose(y, x, atol=1e-5)
    assert (one.step, one.skipped) == (eight.step, eight.skipped) == (1, 0)
    for a, b in ((one.params, eight.params), (one.slow_critic, eight.slow_critic)):
        pairs = list(zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))
        assert all(x.shape == y.shape for x, y in pairs), "the state knows no devices"
        difference = np.concatenate([np.abs(x - y).ravel() for x, y in pairs])
        # Adam divides by the gradient's size: where that is all rounding, so is the step.
        assert (difference < 1e-5).mean() > 0.99
        assert difference.max() < 2.1 * 3e-3


def test_batches_that_do_not_divide_are_refused():
    batch = make_batch(small_learner())
    with pytest.raises(ConfigError, match="a batch of 8 does not divide over 3 devices"):
        split(batch, 3)
    with pytest.raises(ConfigError, match="choose a multiple of 3"):
        put_batch(batch, jax.local_devices()[:3])
    with pytest.raises(ConfigError, match=r"replay\.batch 8 does not divide over 3 devices"):
        small_config().validate(3)
    small_config().validate(DEVICES)


@pytest.mark.parametrize("count", [1, 2, DEVICES])
def test_join_is_the_inverse_of_split(count):
    batch = make_batch(small_learner())
    shards = split(batch, count)
    if count > 1:
        assert shards.image.shape[:2] == (count, BATCH // count)
    jax.tree.map(np.testing.assert_array_equal, join(shards, count), batch)


def test_a_state_moves_from_four_devices_to_two_and_one():
    config, spec = small_config(), spec_of("gymnax:Catch-bsuite", small_config().envs)
    learner = build_learner(config, spec.actions)
    tree = {"state": make_state(learner), "carry": init_carry(learner, BATCH), "acting": None}
    carry = jax.tree.map(lambda x: jnp.full_like(x, 3), tree["carry"])
    tree, digests = to_numpy({**tree, "carry": carry}), set()
    for count in (4, 2, 1):
        agent = TrainingAgent(config, spec, local_devices(count))
        agent.player = mock.Mock(carry=None)
        agent.restore(tree)
        digests.add(agent.digest())
        saved = to_numpy(agent.tree())
        jax.tree.map(np.testing.assert_array_equal, saved, tree)
        tree = saved
    assert len(digests) == 1


def test_every_device_gets_its_own_share():
    batch = make_batch(small_learner())
    placed = put_batch(batch, jax.local_devices())
    for row, shard in enumerate(placed.image.addressable_shards):
        assert shard.device == jax.local_devices()[row]
        np.testing.assert_array_equal(shard.data[0, 0], batch.image[row])


def test_imagination_agrees():
    learner = small_learner()
    starts, keys = full_context_starts(learner, BATCH), sequence_keys(1)
    params = make_state(learner).params
    both = []
    for devices in (jax.local_devices()[:1], jax.local_devices()):
        count = len(devices)
        with little_optimisation():
            dream = compile_imagination(learner, devices)
            trajectory = dream(params, split(starts, count), split(keys, count))
        both.append(to_numpy(join(trajectory, count)))
    one, eight = both
    assert one.action.shape == (BATCH, 3, 3)
    np.testing.assert_array_equal(eight.action, one.action)
    np.testing.assert_array_equal(eight.state.z, one.state.z)
    np.testing.assert_allclose(eight.state.h, one.state.h, atol=1e-5)
    assert len(np.unique(one.state.z[:, 1:])) > 2, "something was imagined"
