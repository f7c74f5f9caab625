"""Discrete flow matching as the prior: NumPy oracle, loss by hand, decoding, likelihood bound."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special

from emerald_jax.agent.state import build_learner
from emerald_jax.config import LossConfig
from emerald_jax.imagination import decode, flow_decode
from emerald_jax.losses import flow_divergence, latent_losses
from emerald_jax.models.prior import WAVES, Flow
from emerald_jax.ops.distributions import take_class
from emerald_jax.ops.random import split, uniform
from experiments.study.measures import joint_log_prob
from tests import oracles
from tests.model_cases import (
    LENGTH,
    NUM_ACTIONS,
    compiled,
    make_batch,
    make_state,
    one_sequence,
    random_params,
    small_config,
    to_numpy,
)

CONFIG = small_config(model=dict(prior="flow", predictor_blocks=2)).model
P, G, K, F, D = CONFIG.positions, CONFIG.groups, CONFIG.classes, CONFIG.predictor_width, 24


def test_predictor_agrees_with_numpy():
    model, rng = Flow(CONFIG, jnp.float32), np.random.default_rng(0)
    features = rng.normal(size=(3, P, F)).astype(np.float32)
    tokens = rng.integers(0, K, (3, P, G)).astype(np.int32)
    times = np.array([0.0, 0.3, 0.9], np.float32)
    shapes = jax.eval_shape(model.init, jax.random.key(0), features, tokens, times)
    params = random_params(shapes["params"])
    found = model.apply({"params": params}, features, tokens, times)
    assert found.shape == (3, P, G, K)
    p = to_numpy(params)
    for n in range(3):
        words = p["words"].astype(np.float64)[tokens[n]].reshape(P, G * CONFIG.token_width)
        waves = np.cos(np.pi * np.arange(WAVES) * float(times[n]))
        x = words @ p["from_words"] + oracles.dense(p["from_features"], features[n]) + p["places"]
        x = x + oracles.dense(p["from_time"], waves)
        for block in range(CONFIG.predictor_blocks):
            x = oracles.position_attention(p[f"attention_{block}"], x, CONFIG.heads)
            x = oracles.feed_forward(p[f"feed_forward_{block}"], x)
        expected = oracles.dense(p["out"], x).reshape(P, G, K)
        np.testing.assert_allclose(found[n], expected, rtol=2e-4, atol=2e-4)


@pytest.fixture(scope="module")
def world():
    learner = build_learner(small_config(model=dict(prior="flow")), NUM_ACTIONS)
    return learner, make_state(learner).params["world_model"]


def test_loss_by_hand(world):
    learner, params = world
    sequence, key = one_sequence(make_batch(learner), 1), jax.random.key(3)

    def run(params, key):
        net = learner.model.bind({"params": params})
        out = net(sequence, key)
        time_key, noise_key = split(key, 2)
        time, u = uniform(time_key, (LENGTH,)), uniform(noise_key, (2, LENGTH, P, G))
        noise = jnp.minimum((u[1] * K).astype(jnp.int32), K - 1)
        tokens = jnp.where(u[0] < time[:, None, None], out.state.z, noise)
        loss = flow_divergence(net, out, key, None)
        floored = latent_losses(net, out, key, LossConfig(mask_free_nats=1e3), None)["mask"]
        p = net.flow_prior(out.features, tokens, time)
        return loss, floored, out.posterior, time, tokens, out.state.z, p

    loss, floored, q, time, tokens, z, p = to_numpy(compiled(run, params, key)(params, key))
    # Bayes' rule, class by class: the noisy value is the class with probability s, or any one.
    s, own = time[:, None, None, None].astype(np.float64), np.eye(K)[tokens]
    r = np.exp(q) * (s * own + (1 - s) / K)
    r /= r.sum(-1, keepdims=True)
    expected = (scipy.special.xlogy(r, r) - r * p).sum((-2, -1)).mean(-1)
    np.testing.assert_allclose(loss, expected, rtol=1e-4)
    np.testing.assert_array_equal(floored, 1e3)
    kept = (tokens == z).mean((1, 2))  # a class survives with s, and by luck in one of K cases
    assert np.abs(kept - (time + (1 - time) / K)).max() < 0.35
    assert np.corrcoef(kept, time)[0, 1] > 0.9


def test_the_target_has_no_gradient(world):
    learner, params = world
    sequence = one_sequence(make_batch(learner), 0)

    def loss(params, shift):
        net = learner.model.bind({"params": params})
        out = net(sequence, jax.random.key(0))
        moved = out._replace(posterior=jax.nn.log_softmax(out.posterior + shift))
        return flow_divergence(net, moved, jax.random.key(1), None).sum()

    shift = jnp.zeros((LENGTH, P, G, K))
    np.testing.assert_array_equal(jax.grad(loss, argnums=1)(params, shift), 0)


def test_each_step_draws_its_share_and_the_last_one_all():
    calls = []

    def probs_fn(tokens, time):
        calls.append((np.asarray(tokens), time))
        return jnp.broadcast_to(jax.nn.one_hot(2, K), (*tokens.shape, K))

    shape = (400, P, G)
    found = flow_decode(probs_fn, jax.random.key(0), steps=3, shape=shape, classes=K)
    np.testing.assert_array_equal(found.z, 2)
    np.testing.assert_allclose(found.log_prob, 0, atol=1e-6)
    np.testing.assert_allclose([x.mean() for x in found.masked], [1 / 3, 1 / 2, 1], atol=0.02)
    assert [time for _, time in calls] == [0, 1 / 3, 2 / 3]
    first, second, third = (np.mean(tokens == 2) for tokens, _ in calls)
    # Noise at first; then a token is drawn with 1 / 3, and with 1 / 2 in the second step.
    for share, drawn in ((first, 0), (second, 1 / 3), (third, 2 / 3)):
        assert abs(share - (drawn + (1 - drawn) / K)) < 0.02
    assert sorted(np.unique(calls[0][0])) == list(range(K))


def test_decoding_asks_the_predictor(world):
    learner, params = world
    h = np.random.default_rng(0).normal(size=(2, 7, D)).astype(np.float32)

    def run(params, h, key):
        net = learner.model.bind({"params": params})
        one = decode(params, h, key, model=learner.model, steps=1)
        u = uniform(key, (2, 2, 7, P, G))
        noise = jnp.minimum((u[0] * K).astype(jnp.int32), K - 1)
        judged = take_class(net.flow_prior(net.prior_features(h), noise, jnp.float32(0)), one.z)
        many = decode(params, h, key, model=learner.model, steps=4)
        return one, judged, many, decode(params, h, key, model=learner.model, steps=0)

    one, judged, many, linear = to_numpy(
        compiled(run, params, h, jax.random.key(0))(params, h, jax.random.key(0))
    )
    np.testing.assert_allclose(one.log_prob, judged, atol=1e-5)
    assert [bool(x.all()) for x in many.masked] == [False, False, False, True]
    assert (many.z != one.z).any()
    assert len(linear.masked) == 1


@pytest.mark.parametrize("steps", [1, 3])
def test_the_bound_counts_paths_that_leave_the_noise_once(steps):
    # exp(bound) estimates, without bias, the probability that decoding gives z by such a path:
    # importance sampling. One position of two tokens has 25 latents.
    settings = dict(prior="flow", latent="vector", groups=2, unimix=0.2)
    learner = build_learner(small_config(model=settings), NUM_ACTIONS)
    params = make_state(learner).params["world_model"]
    h, draws = np.random.default_rng(1).normal(size=D).astype(np.float32), 8192
    latents = np.stack(np.meshgrid(*[np.arange(K)] * 2, indexing="ij"), -1).reshape(-1, 1, 2)

    def run(params, keys):
        net = learner.model.bind({"params": params})
        features = net.prior_features(jnp.broadcast_to(h, (draws, D)))
        path = []

        def probs_fn(tokens, time):
            path.append(tokens)
            return jnp.exp(net.flow_prior(features, tokens, jnp.float32(time)))

        shape = (draws, 1, 2)
        path.append(flow_decode(probs_fn, keys[0], steps=steps, shape=shape, classes=K).z)
        everywhere = jnp.broadcast_to(h, (len(latents), draws, D))
        each = jnp.broadcast_to(latents[:, None], (len(latents), *shape))
        options = dict(model=learner.model, steps=steps)
        return jnp.stack(path), joint_log_prob(params, everywhere, each, keys[1], **options)

    keys = jax.random.split(jax.random.key(0), 2)
    path, bound = to_numpy(compiled(run, params, keys)(params, keys))
    path = path[:, :, 0]  # [S + 1, draws, 2]
    z, now, then = path[-1], path[:-1], path[1:]
    once = np.where(now == z, then == z, (then == now) | (then == z)).all((0, 2))
    assert once.all() == (steps == 1)
    seen = np.bincount((z[:, 0] * K + z[:, 1])[once], minlength=K * K) / draws
    expected = np.exp(bound.astype(np.float64)).mean(1)
    np.testing.assert_allclose(expected, seen, atol=0.012)
    assert abs(expected.sum() - once.mean()) < 0.02
    assert seen.max() > 3 * seen.min()
