"""Categoricals against SciPy: mixing, sampling, straight-through gradients, divergences."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
import scipy.stats

from emerald_jax.ops.distributions import (
    entropy,
    gumbel,
    kl_divergence,
    mixed_log_probs,
    mixed_probs,
    sample_categorical,
    straight_through,
    take_class,
)

K = 7


@pytest.fixture(scope="module")
def logits():
    return np.random.default_rng(0).normal(size=(2, 4, 3, K)).astype(np.float32) * 2


def log_softmax(x):
    return jnp.asarray(scipy.special.log_softmax(np.asarray(x, np.float64), -1), jnp.float32)


@pytest.mark.parametrize("unimix", [0.0, 0.01, 0.5])
def test_unimix(logits, unimix):
    result = np.asarray(mixed_log_probs(logits, unimix))
    expected = (1 - unimix) * scipy.special.softmax(logits.astype(np.float64), -1) + unimix / K
    np.testing.assert_allclose(result, np.log(expected), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(np.exp(result).sum(-1), 1, atol=1e-5)
    np.testing.assert_allclose(mixed_probs(logits, unimix), expected, rtol=1e-5, atol=1e-7)


def test_unimix_keeps_every_divergence_finite():
    certain = jnp.array([1e4, 0, 0, -1e4])
    other = jnp.array([-1e4, 0, 0, 1e4])
    log_p, log_q = mixed_log_probs(certain, 0.01), mixed_log_probs(other, 0.01)
    # Nearly all mass p on a class that q gives only its share of the uniform: 0.01 / 4.
    assert np.isfinite(kl_divergence(log_p, log_q))
    np.testing.assert_allclose(np.exp(log_q[0]), 0.0025, rtol=1e-4)
    gradient = jax.grad(lambda x: kl_divergence(mixed_log_probs(x, 0.01), log_q))(certain)
    assert np.isfinite(gradient).all()


def test_half_precision_logits_give_float32():
    logits = jnp.asarray([0.1, 2, -3], jnp.bfloat16)
    result = mixed_log_probs(logits, 0.01)
    assert result.dtype == mixed_probs(logits, 0.01).dtype == jnp.float32
    assert mixed_probs(logits, 0.0).dtype == jnp.float32
    np.testing.assert_array_equal(result, mixed_log_probs(logits.astype(jnp.float32), 0.01))


def test_divergence_and_entropy_agree_with_scipy(logits):
    p, q = (scipy.special.softmax(x.astype(np.float64), -1) for x in (logits, logits[::-1] - 1.5))
    result = kl_divergence(jnp.log(p.astype(np.float32)), jnp.log(q.astype(np.float32)))
    np.testing.assert_allclose(result, scipy.stats.entropy(p, q, axis=-1), atol=1e-5)
    result = entropy(jnp.log(p.astype(np.float32)))
    np.testing.assert_allclose(result, scipy.stats.entropy(p, axis=-1), rtol=1e-5)


def test_divergence_by_hand():
    # KL((1/2, 1/2) || (1/4, 3/4)) = 1/2 ln 2 + 1/2 ln 2/3 = 1/2 ln 4/3
    log_p, log_q = jnp.log(jnp.array([0.5, 0.5])), jnp.log(jnp.array([0.25, 0.75]))
    np.testing.assert_allclose(kl_divergence(log_p, log_q), 0.5 * np.log(4 / 3), rtol=1e-6)
    assert float(kl_divergence(log_p, log_p)) == 0
    np.testing.assert_allclose(entropy(log_p), np.log(2), rtol=1e-6)


def test_take_class(logits):
    index = np.random.default_rng(1).integers(0, K, logits.shape[:-1])
    expected = np.take_along_axis(logits, index[..., None], -1)[..., 0]
    np.testing.assert_array_equal(take_class(jnp.asarray(logits), jnp.asarray(index)), expected)


def test_straight_through_value_and_gradient(logits):
    rng = np.random.default_rng(2)
    index = rng.integers(0, K, logits.shape[:-1])
    weight = rng.normal(size=logits.shape)

    def pick(x):
        hard = straight_through(jnp.asarray(index), jax.nn.log_softmax(x))
        return jnp.sum(hard * jnp.asarray(weight, jnp.float32)), hard

    gradient, hard = jax.jit(jax.grad(pick, has_aux=True))(jnp.asarray(logits))
    np.testing.assert_allclose(hard, np.eye(K)[index], atol=1e-6)
    # The gradient of sum(w softmax(x)) is p (w - sum(p w)), whatever was drawn.
    p = scipy.special.softmax(logits.astype(np.float64), -1)
    expected = p * (weight - (p * weight).sum(-1, keepdims=True))
    np.testing.assert_allclose(gradient, expected, atol=1e-6)


def test_samples_have_the_right_frequencies(logits):
    log_probs = log_softmax(logits[0, 0])
    draws = 20_000
    index = sample_categorical(
        jax.random.key(0), jnp.broadcast_to(log_probs, (draws, *log_probs.shape))
    )
    assert index.dtype == jnp.int32
    for group in range(3):
        seen = np.bincount(np.asarray(index[:, group]), minlength=K)
        expected = np.exp(np.asarray(log_probs[group], np.float64))
        expected *= draws / expected.sum()
        assert scipy.stats.chisquare(seen, expected).pvalue > 1e-3
    # Groups are drawn independently of one another.
    table = np.zeros((K, K))
    np.add.at(table, (np.asarray(index[:, 0]), np.asarray(index[:, 1])), 1)
    table = table[table.sum(1) > 100][:, table.sum(0) > 100]
    assert scipy.stats.chi2_contingency(table).pvalue > 1e-3


def test_impossible_classes_are_never_sampled():
    rng = np.random.default_rng(3)
    possible = rng.random((50, K)) < 0.4
    possible[np.arange(50), rng.integers(0, K, 50)] = True
    possible[:10, 0] = possible[10:20, -1] = False
    possible[:20, 3] = True
    probs = np.where(possible, rng.random((50, K)) + 0.01, 0)
    log_probs = jnp.log(jnp.asarray(probs / probs.sum(-1, keepdims=True), jnp.float32))
    index = sample_categorical(
        jax.random.key(1), jnp.broadcast_to(log_probs, (4000, *log_probs.shape))
    )
    assert possible[np.arange(50), np.asarray(index)].all()
    np.testing.assert_array_equal(  # and a sure thing is always drawn
        sample_categorical(jax.random.key(2), jnp.log(jnp.eye(K))), np.arange(K)
    )


def test_gumbel_by_hand():
    # -log(-log u): u = exp(-1) gives 0, exp(-e) gives -1, exp(-1/e) gives 1; never infinite.
    e = np.e
    u = jnp.array([np.exp(-1), np.exp(-e), np.exp(-1 / e), 0, 1 - 2**-24], jnp.float32)
    noise = np.asarray(gumbel(u))
    np.testing.assert_allclose(noise[:3], [0, -1, 1], atol=1e-6)
    assert np.isfinite(noise).all()
