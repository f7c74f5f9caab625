"""Every variant trains, remembers, acts and dreams: one update of each combination."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from emerald_jax.agent import Observation, act
from emerald_jax.agent.dream import open_loop
from emerald_jax.agent.state import build_learner, init_carry
from emerald_jax.training.update import train_step
from tests.model_cases import (
    BATCH,
    LENGTH,
    NUM_ACTIONS,
    compiled,
    make_batch,
    make_state,
    sequence_keys,
    small_config,
    state_shapes,
    to_numpy,
)

#: The 2 x 2 of latent and sequence model, and with it every prior and decoder input. Half of it is
#: every setting once; the other half is slow to compile and left to the slow tests.
VARIANTS = {
    "spatial-tssm": dict(prior="autoregressive", decoder_input="z"),
    "spatial-rssm": dict(sequence="rssm", prior="maskgit", decoder_input="z"),
    "vector-tssm": dict(latent="vector", prior="flow"),
    "vector-rssm": dict(latent="vector", sequence="rssm", prior="linear"),
}


SLOW = ("spatial-rssm", "vector-tssm")


@pytest.fixture(
    scope="module",
    params=[pytest.param(n, marks=pytest.mark.slow if n in SLOW else ()) for n in VARIANTS],
)
def case(request):
    """Learner, state before, batch, and what one update makes of them."""
    settings = VARIANTS[request.param]
    learner = build_learner(small_config(model=settings), NUM_ACTIONS)
    state, batch = make_state(learner), make_batch(learner)
    args = (state, batch, sequence_keys(0))
    program = compiled(partial(train_step, learner=learner), *args)
    return learner, state, batch, program, program(*args)


def test_every_array_moves(case):
    learner, before, _, _, (after, _, metrics) = case
    assert metrics["finite"] == 1
    old = jax.tree_util.tree_leaves_with_path(before.params)
    still = [
        jax.tree_util.keystr(path)
        for (path, x), y in zip(old, jax.tree.leaves(after.params), strict=True)
        if (np.asarray(x) == np.asarray(y)).all()
    ]
    assert not still
    starts = [n for n in ("start", "initial") if n in before.params["world_model"]["sequence"]]
    assert len(starts) == (2 if learner.config.model.sequence == "rssm" else 1)
    for name in starts:
        old, new = (s.params["world_model"]["sequence"][name] for s in (before, after))
        assert (np.abs(old - new) > 1e-5).all(), name


def test_only_the_configured_prior_is_built(case):
    learner, before, _, _, (_, _, metrics) = case
    prior = learner.config.model.prior
    built = {"maskgit", "flow", "autoregressive"} & before.params["world_model"].keys()
    assert built == {prior} - {"linear"}
    assert (metrics["loss/mask"] == 0) == (prior == "linear")
    weights = {"image": 1, "reward": 1, "cont": 1, "dyn": 0.5, "rep": 0.1, "mask": 0.5}
    expected = sum(weight * float(metrics[f"loss/{name}"]) for name, weight in weights.items())
    np.testing.assert_allclose(metrics["loss/model"], expected, rtol=5e-5)


def test_the_carry_goes_round(case):
    learner, before, batch, program, (_, carry, _) = case
    assert jax.tree.map(lambda x: (x.shape, x.dtype), to_numpy(carry)) == jax.tree.map(
        lambda x: (x.shape, x.dtype), batch.carry
    )
    assert np.asarray(carry.memory.valid).all()
    # The next chunk goes on from it: another carry, another result; a reset forgets it.
    goes_on = batch._replace(carry=to_numpy(carry), reset=batch.reset & False)
    nothing = goes_on._replace(carry=to_numpy(init_carry(learner, BATCH)))
    reset = batch.reset | (np.arange(LENGTH) == 0)
    losses = [
        float(program(before, b, sequence_keys(0))[2]["loss/reward"])
        for b in (
            goes_on,
            nothing,
            goes_on._replace(reset=reset),
            nothing._replace(reset=reset),
        )
    ]
    assert losses[0] != losses[1]
    assert losses[2] == losses[3]


def test_a_broken_update_empties_the_carry(case):
    _, before, batch, program, _ = case
    reward = batch.reward.copy()
    reward[3, 7] = np.nan
    state, carry, metrics = program(before, batch._replace(reward=reward), sequence_keys(0))
    assert metrics["finite"] == 0
    assert all((np.asarray(x) == 0).all() for x in jax.tree.leaves(carry))
    for x, y in zip(jax.tree.leaves(state.params), jax.tree.leaves(before.params), strict=True):
        np.testing.assert_array_equal(x, y)


def test_shapes_of_dreams_and_halves(case):
    learner, _, batch, _, _ = case
    params = state_shapes(learner).params
    seen = jax.eval_shape(
        partial(open_loop, learner=learner, context=4), params, batch, sequence_keys(0)
    )
    assert seen.recon.shape == seen.dream.shape == (BATCH, LENGTH, 16, 16, 3)
    model = {**learner.config.to_dict()["model"], "dtype": "bfloat16"}
    half = build_learner(small_config(model=model), NUM_ACTIONS)
    carry = jax.eval_shape(lambda: init_carry(half, BATCH))
    result = jax.eval_shape(
        partial(train_step, learner=half),
        state_shapes(half),
        batch._replace(carry=carry),
        sequence_keys(0),
    )

    def avals(tree):
        return [(x.shape, x.dtype) for x in jax.tree.leaves(tree)]

    assert avals(result[1]) == avals(carry)
    assert jnp.dtype(jnp.bfloat16) in {x.dtype for x in jax.tree.leaves(carry)}
    assert {x.dtype for x in jax.tree.leaves(result[0].params)} == {jnp.dtype(jnp.float32)}


def test_acting_filters_as_training_does():
    # A posterior that sees h_t, without the uniform share and loud: one latent per frame, so that
    # acting and training draw the same although their random numbers differ.
    envs, length = 2, 9
    settings = dict(sequence="rssm", prior="linear", unimix=0.0)
    learner = build_learner(small_config(model=settings), NUM_ACTIONS)
    params = make_state(learner).params
    world = params["world_model"]
    head = {**world["posterior_head"]}
    head["Dense_1"] = {name: 1e6 * x for name, x in head["Dense_1"].items()}
    params = {**params, "world_model": {**world, "posterior_head": head}}
    rng = np.random.default_rng(0)
    first = np.zeros((length, envs), bool)
    first[0] = first[5, 1] = True
    action = np.where(first, -1, rng.integers(0, NUM_ACTIONS, (length, envs))).astype(np.int32)
    image = rng.integers(0, 256, (length, envs, 16, 16, 3), dtype=np.uint8)

    def both(params, frames, key):
        def body(carry, inputs):
            frame, step_key = inputs
            acted = act(params, carry, frame, step_key, learner=learner)
            return acted.carry, acted.state

        keys = jax.random.split(key, length)
        carry, state = jax.lax.scan(body, init_carry(learner, envs), (frames, keys))
        read = partial(learner.model.apply, {"params": params["world_model"]}, method="observe")
        passed = jax.vmap(read, in_axes=(1, 1, 1, 0, 0))(
            *frames, init_carry(learner, envs), jax.random.split(key, envs)
        )
        return carry, state, passed.carry, passed.state

    args = (params, Observation(image, action, first), jax.random.key(3))
    carry, state, expected_carry, expected = to_numpy(compiled(both, *args)(*args))
    assert len(np.unique(state.z)) == 5
    np.testing.assert_array_equal(np.moveaxis(state.z, 0, 1), expected.z)
    np.testing.assert_allclose(np.moveaxis(state.h, 0, 1), expected.h, atol=1e-5)
    np.testing.assert_array_equal(carry.z, expected_carry.z)
    np.testing.assert_allclose(carry.memory.h, expected_carry.memory.h, atol=1e-5)
    np.testing.assert_allclose(state.h[5, 1], state.h[0, 1], atol=1e-6)
    assert carry.memory.valid.all()
