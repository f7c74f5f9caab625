"""Losses, decoding and imagination of the variants, each against an equal computation."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from emerald_jax.agent.state import build_learner
from emerald_jax.config import LossConfig
from emerald_jax.imagination import decode, imagine, ordered_decode, starts_from, world_model_step
from emerald_jax.losses import latent_losses
from emerald_jax.models.world_model import WorldModel
from emerald_jax.ops.distributions import take_class
from emerald_jax.types import Recurrent
from tests.model_cases import (
    LENGTH,
    NUM_ACTIONS,
    compiled,
    make_batch,
    make_state,
    one_sequence,
    small_config,
    to_numpy,
)

P, G, K, D = 16, 3, 5, 24
H, STARTS = 5, 4
DRAWS = 4000


def chain(previous, place, cache):
    """Two fair coins at the first position, then the value of the position before."""
    even = jnp.full((*previous.shape, 2), 0.5)
    same = jax.nn.one_hot(previous, 2)
    return jnp.where(place == 0, even, same), cache


def test_positions_follow_one_another():
    shape = (DRAWS, 4, 2)
    decoded = to_numpy(ordered_decode(chain, (), jax.random.key(0), shape=shape, classes=2))
    z = decoded.z
    assert z.shape == shape
    assert (z == z[:, :1]).all(), "every position must follow the one before"
    # Four equally likely pairs of coins: 1000 of each, standard deviation 27.
    counts = np.bincount(z[:, 0, 0] * 2 + z[:, 0, 1], minlength=4)
    assert np.abs(counts - DRAWS / 4).max() < 4.5 * 27
    np.testing.assert_allclose(decoded.log_prob[:, 0], np.log(0.5), rtol=1e-5)
    np.testing.assert_allclose(decoded.log_prob[:, 1:], 0, atol=1e-6)
    # What was unknown when position p was drawn: p and all that follow.
    assert len(decoded.masked) == 4
    for place, unknown in enumerate(decoded.masked):
        assert unknown[:, place:].all()
        assert not unknown[:, :place].any()


def test_the_extra_token_precedes_the_first_position():
    def asked(previous, place, cache):
        # Class 1 is certain after the extra token, class 0 after class 1.
        certain = jnp.where(previous == 3, 1, jnp.where(previous == 1, 0, 2))
        return jax.nn.one_hot(certain, 3), cache

    z = ordered_decode(asked, (), jax.random.key(0), shape=(4, 2), classes=3).z
    np.testing.assert_array_equal(z, [[1, 1], [0, 0], [2, 2], [2, 2]])


@pytest.fixture(scope="module")
def ordered():
    """A model with the autoregressive prior, its parameters, and latents decoded from many h."""
    learner = build_learner(small_config(model=dict(prior="autoregressive")), NUM_ACTIONS)
    params = make_state(learner).params["world_model"]
    h = np.random.default_rng(0).normal(size=(2, 7, D)).astype(np.float32)

    def run(params, h, key):
        net = learner.model.bind({"params": params})
        decoded = decode(params, h, key, model=learner.model, steps=3)
        features = net.prior_features(h)
        forced = take_class(net.ordered_prior(features, decoded.z), decoded.z)
        head = decode(params, h, key, model=learner.model, steps=0)
        linear = take_class(net.dynamics(features), head.z)
        return decoded, forced, head, linear

    program = compiled(run, params, h, jax.random.key(0))
    return learner, params, lambda seed: to_numpy(program(params, h, jax.random.key(seed)))


def test_decoding_agrees_with_teacher_forcing(ordered):
    # Drawn one by one with a cache, judged all at once: the same probability of every token.
    decoded, forced, head, linear = ordered[2](0)
    assert decoded.z.shape == (2, 7, P, G)
    assert len(decoded.masked) == P
    np.testing.assert_allclose(decoded.log_prob, forced, atol=1e-5)
    assert decoded.log_prob.std() > 0.3
    again, other = ordered[2](0)[0], ordered[2](1)[0]
    np.testing.assert_array_equal(again.z, decoded.z)
    assert (other.z != decoded.z).any((0, 1)).all()
    # S = 0 samples the dynamics head, whatever the prior.
    np.testing.assert_allclose(head.log_prob, linear, atol=1e-6)
    assert len(head.masked) == 1


def test_ordered_loss_by_hand(ordered):
    learner, params, _ = ordered
    sequence = one_sequence(make_batch(learner), 1)
    floors = [LossConfig(mask_free_nats=x) for x in (0.0, 1.8)]

    def run(params, key):
        net = learner.model.bind({"params": params})
        out = net(sequence, key)
        terms = [latent_losses(net, out, key, floor, None) for floor in floors]
        return terms, out.posterior, net.ordered_prior(out.features, out.state.z)

    program = compiled(run, params, jax.random.key(0))
    (free, floored), q, p = to_numpy(program(params, jax.random.key(0)))
    q, p = q.astype(np.float64), p.astype(np.float64)
    # Nats per position: summed over groups and classes, averaged over positions.
    expected = (np.exp(q) * (q - p)).sum((-2, -1)).mean(-1)
    assert expected.shape == (LENGTH,)
    np.testing.assert_allclose(free["mask"], expected, rtol=1e-5)
    np.testing.assert_allclose(floored["mask"], np.maximum(1.8, expected), rtol=1e-5)
    assert 0 < (expected < 1.8).mean() < 1


@pytest.mark.parametrize("posterior", ["o", "oh"])
def test_a_recurrent_dream_continues_the_real_past(posterior):
    # Reading the imagined latents and actions behind the start's own state gives the same h.
    settings = dict(sequence="rssm", prior="linear", posterior=posterior)
    learner = build_learner(small_config(model=settings), NUM_ACTIONS)
    model, params = learner.model, make_state(learner).params["world_model"]
    positions = jnp.arange(2, LENGTH, 3)

    def policy(params, state, step, key):
        del params, step
        return jax.random.randint(key, state.h.shape[:1], 0, NUM_ACTIONS)

    def run(params, sequence, key):
        passed = model.apply({"params": params}, sequence, key)
        starts = starts_from(passed, positions)
        own, step = world_model_step(model, starts, decode_steps=3, horizon=H)
        dreamt = imagine(
            {"world_model": params}, starts.state, own, key, policy=policy, step=step, horizon=H
        )

        def read(h, z, action):
            memory = Recurrent(h, jnp.ones((), bool))
            never = jnp.zeros(H, bool)
            return model.apply(
                {"params": params}, z, action, never, memory, method=WorldModel.advance
            )[0]

        first = jax.tree.map(lambda x: x[:-1], dreamt.state)
        real = jax.vmap(partial(read), in_axes=(0, 1, 1), out_axes=1)(
            starts.state.h, first.z, dreamt.action
        )
        return passed, dreamt, real

    sequence = one_sequence(make_batch(learner), 1)
    program = compiled(run, params, sequence, jax.random.key(0))
    passed, dreamt, real = to_numpy(program(params, sequence, jax.random.key(0)))
    np.testing.assert_array_equal(dreamt.state.h[0], passed.state.h[positions])
    np.testing.assert_array_equal(dreamt.state.z[0], passed.state.z[positions])
    np.testing.assert_allclose(dreamt.state.h[1:], real, atol=1e-5)
    assert len(np.unique(dreamt.state.h.reshape(-1, D), axis=0)) == (H + 1) * STARTS
    np.testing.assert_array_equal(passed.carry.memory.h, passed.state.h[-1])
    np.testing.assert_array_equal(passed.carry.z, passed.state.z[-1])
    # The posterior: a valid distribution, which sees another past only where it may.
    np.testing.assert_allclose(np.exp(passed.posterior).sum(-1), 1, atol=1e-5)
    action = (sequence.action + 1) % NUM_ACTIONS
    other = program(params, sequence._replace(action=action), jax.random.key(0))[0].posterior
    assert (np.abs(other - passed.posterior).max((1, 2, 3)) > 1e-5).all() == (posterior == "oh")
    assert (other == passed.posterior).all() == (posterior == "o")
