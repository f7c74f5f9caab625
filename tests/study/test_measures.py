"""Likelihoods against hand-made sums; measures of world models on held-out play."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from emerald_jax.agent.state import build_learner
from emerald_jax.ops.distributions import take_class
from emerald_jax.ops.maskgit import halton_ranks
from experiments.study.measures import joint_log_prob, measure, moved_share, pair_scores, recall
from experiments.study.probe import probe_replay
from experiments.study.worlds import World, whole_windows
from tests.model_cases import (
    IMAGE,
    LENGTH,
    NUM_ACTIONS,
    compiled,
    make_batch,
    make_state,
    small_config,
    small_learner,
    to_numpy,
)

P, G, K, D = 16, 3, 5, 24


@pytest.fixture(scope="module")
def judged():
    """Likelihoods of random latents under each S, and their parts."""
    model = small_learner().model
    params = make_state(small_learner()).params["world_model"]
    rng = np.random.default_rng(0)
    h = rng.normal(size=(2, D)).astype(np.float32)
    z = rng.integers(0, K, (2, P, G)).astype(np.int32)
    key = jax.random.key(5)

    def run(params, h, z):
        net = model.bind({"params": params})
        features = net.prior_features(h)
        found = {s: joint_log_prob(params, h, z, key, model=model, steps=s) for s in (0, 1, 2)}
        order = jnp.argsort(jax.random.uniform(key, (2, P * G)), axis=-1).reshape(2, P, G)
        # S = 2: 48 tokens, of which floor(48 cos 45 deg) = 33 are masked at the second step.
        hidden = jnp.where(order < 33, K, z)
        return (
            found,
            order,
            take_class(net.dynamics(features), z),
            take_class(net.masked_prior(features, None), z),
            take_class(net.masked_prior(features, hidden), z),
        )

    return to_numpy(compiled(run, params, h, z)(params, h, z))


def test_likelihood_is_the_sum_of_what_each_step_reveals(judged):
    found, order, linear, first, second = judged
    np.testing.assert_allclose(found[0], linear.sum((1, 2)), rtol=1e-5)
    np.testing.assert_allclose(found[1], first.sum((1, 2)), rtol=1e-5)
    expected = np.where(order >= 33, first, second).sum((1, 2))
    np.testing.assert_allclose(found[2], expected, rtol=1e-5)
    assert (found[1] != found[2]).all()


def test_likelihood_of_a_fixed_order_takes_its_order():
    model = small_learner().model
    params = make_state(small_learner()).params["world_model"]
    h, z = jnp.ones((1, D)), jnp.zeros((1, P, G), jnp.int32)
    options = {"model": model, "steps": 2, "method": "halton"}

    def run(params, h, z):
        net = model.bind({"params": params})
        features = net.prior_features(h)
        hidden = halton_ranks(P, G)[None] >= 48 - 33
        seen = take_class(net.masked_prior(features, jnp.where(hidden, K, z)), z)
        first = take_class(net.masked_prior(features, None), z)
        found = [joint_log_prob(params, h, z, jax.random.key(n), **options) for n in (0, 1)]
        return found, jnp.where(hidden, seen, first).sum((1, 2))

    found, expected = to_numpy(compiled(run, params, h, z)(params, h, z))
    np.testing.assert_allclose(found[0], expected, rtol=1e-5)
    np.testing.assert_array_equal(*found)


def test_pair_scores_by_hand():
    # Three samples of three tokens. Agreements with (0, 0, 0): 3, 2, 0 tokens, so 1, 1/3, 0 of the
    # pairs, 4/9 on average. Of the samples: (000, 001) 1/3, the other two 0, 1/9 on average.
    drawn = jnp.array([[0, 0, 0], [0, 0, 1], [1, 1, 2]])[:, None, None]
    score, alike = pair_scores(drawn, jnp.zeros((1, 1, 3), jnp.int32))
    np.testing.assert_allclose(score, [1 / 9 - 8 / 9 + 1], rtol=1e-6)
    np.testing.assert_allclose(alike, [1 / 9 - 4 / 9], rtol=1e-6)


def test_the_true_joint_has_the_best_pair_score():
    # Two equal coins. Independent fair coins score 1/4 - 2/4 + 1, coins that are equal 1/2 - 1 + 1,
    # and coins that always show heads 1 - 1 + 1: too alike by 1/2.
    rng = np.random.default_rng(0)
    real, again = np.repeat(rng.integers(0, 2, (2, 4, 50_000, 1, 1)), 2, -1)
    loose = rng.integers(0, 2, (4, 50_000, 1, 2))
    found = [pair_scores(jnp.asarray(x), jnp.asarray(real[0])) for x in (again, loose, 0 * loose)]
    means = np.array([[np.mean(x) for x in pair] for pair in found])
    np.testing.assert_allclose(means, [[0.5, 0], [0.75, 0], [1, 0.5]], atol=0.02)


def test_measures_of_windows():
    # Of a variant, whose carry and history have other shapes than the transformer's.
    settings = dict(sequence="rssm", prior="linear")
    learner = build_learner(small_config(model=settings), NUM_ACTIONS)
    params = make_state(learner).params["world_model"]
    batch = make_batch(learner, batch=2)._replace(carry=None)
    found = measure(World(learner, params, [], 0.0), batch, 4, seed=0, pictures=True, draws=3)
    for name in ("dream_error", "reward_error", "moved"):
        assert found[name].shape == (2, LENGTH - 4)
    real = batch.image / 255
    error = np.square(found.pop("recon") - real).mean((1, 2, 3, 4))
    np.testing.assert_allclose(found["pixel_error"], error, rtol=1e-4)
    assert ((found["token_accuracy"] > 0) & (found["token_accuracy"] < 1)).all()
    assert (found["nats"] > 0).all()
    assert found["pair_score"].shape == found["alike"].shape == (2,)
    assert ((found["pair_score"] > 0) & (found["pair_score"] < 1)).all()
    assert all(np.isfinite(x).all() for x in found.values())


def test_moved_share_counts_what_changed_alone():
    # A ball goes right, one pixel a frame, and stands still in the last; the ground never changes.
    real = np.full((1, 4, 3, 3, 3), 0.5, np.float32)
    for frame, column in enumerate((0, 1, 2, 2)):
        real[0, frame, 1, column] = (1, 0, 0)
    shown = real.copy()
    shown[0, 2, 1, 2] = (0.5, 0.5, 0.5)  # the ball is lost, where it was is right
    shown[0, 1, 1, 1] = (0.8, 0.2, 0.2)  # a pale ball is a ball
    shown[0, :, 0, 0] = 0.0  # a pixel that does not move does not count
    np.testing.assert_allclose(moved_share(real, shown), [[1.0, 0.5, 1.0]])


def test_recall_counts_right_signs():
    # A reward head whose bias alone speaks: always +1 is right for every red cue, -1 for the rest.
    learner = build_learner(small_config(model=dict(sequence="rssm", prior="linear")), 2)
    params = jax.tree.map(jnp.zeros_like, make_state(learner).params["world_model"])
    windows = whole_windows(probe_replay(3, 200, IMAGE, seed=0), 16, 4, seed=0)
    red = windows.reward[:, -1] > 0
    assert 2 < red.sum() < 14
    bias = jnp.zeros(41).at[30].set(10.0)
    for bins, right in ((bias, red), (bias[::-1], ~red)):
        head = {**params["reward_head"], "Dense_3": {**params["reward_head"]["Dense_3"]}}
        head["Dense_3"]["bias"] = bins
        world = World(learner, {**params, "reward_head": head}, [], 0.0)
        np.testing.assert_array_equal(recall(world, windows, seed=0)["recall"], right)
