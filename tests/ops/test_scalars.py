"""Symlog and two-hot against hand arithmetic and float64 NumPy."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special

from emerald_jax.ops.scalars import (
    bin_centers,
    symexp,
    symlog,
    two_hot,
    two_hot_loss,
    two_hot_mean,
)

VALUES = np.float32([0, 1e-4, -0.5, 1, -1, 21, -333.3, 1e4, -1e7, 4e8])


def test_symlog_by_hand():
    # log(1 + |e - 1|) = 1, odd, zero at zero.
    e = math.e
    result = symlog(jnp.array([e - 1, 1 - e, 0, e * e - 1]))
    np.testing.assert_allclose(result, [1, -1, 0, 2], rtol=1e-6)


def test_symexp_is_the_inverse():
    np.testing.assert_allclose(symexp(symlog(jnp.asarray(VALUES))), VALUES, rtol=2e-5)
    np.testing.assert_allclose(
        symlog(symexp(jnp.linspace(-20, 20, 9))), np.linspace(-20, 20, 9), rtol=1e-6, atol=1e-6
    )


def test_two_hot_by_hand():
    # Five bins at -20, -10, 0, 10, 20. symlog(x) = 2.5 lies a quarter of the way from 0 to 10.
    x = jnp.array([math.expm1(2.5), -math.expm1(10.0), 0.0])
    expected = [[0, 0, 0.75, 0.25, 0], [0, 1, 0, 0, 0], [0, 0, 1, 0, 0]]
    np.testing.assert_allclose(two_hot(x, 5), expected, atol=1e-6)


@pytest.mark.parametrize("bins", [2, 41, 255])
def test_two_hot_has_the_right_mean(bins):
    weights = np.asarray(two_hot(jnp.asarray(VALUES), bins), np.float64)
    centers = np.linspace(-20, 20, bins)
    expected = np.sign(VALUES) * np.log1p(np.abs(VALUES.astype(np.float64)))
    assert weights.shape == (len(VALUES), bins)
    np.testing.assert_allclose(weights.sum(-1), 1, atol=1e-6)
    np.testing.assert_allclose(weights @ centers, expected, atol=5e-5)
    assert (weights >= 0).all()
    for row in weights:
        used = np.flatnonzero(row)
        assert len(used) <= 2
        assert used[-1] - used[0] <= 1


def test_two_hot_clips_to_the_outermost_bins():
    weights = two_hot(jnp.array([1e30, -1e30, jnp.inf, -jnp.inf]), 63)
    np.testing.assert_array_equal(weights, np.eye(63)[[62, 0, 62, 0]])


def test_bin_centers():
    np.testing.assert_allclose(bin_centers(5), [-20, -10, 0, 10, 20])
    np.testing.assert_allclose(bin_centers(255), np.linspace(-20, 20, 255), atol=1e-5)


def test_mean_is_taken_in_symlog_space():
    # Half on 0 and half on 10: symexp(5) = e^5 - 1 = 147.4, and not (e^10 - 1) / 2 = 11012.7.
    logits = jnp.log(jnp.array([0, 0, 0.5, 0.5, 0]))
    np.testing.assert_allclose(two_hot_mean(logits), math.expm1(5), rtol=1e-5)


def test_mean_agrees_with_float64():
    logits = np.random.default_rng(0).normal(size=(4, 3, 41)) * 2
    inner = scipy.special.softmax(logits, -1) @ np.linspace(-20, 20, 41)
    expected = np.sign(inner) * np.expm1(np.abs(inner))
    result = two_hot_mean(jnp.asarray(logits, jnp.float32))
    np.testing.assert_allclose(result, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("bins", [41, 63, 255])
def test_an_untrained_head_predicts_exactly_zero(bins):
    assert float(two_hot_mean(jnp.zeros(bins))) == 0.0


def test_mean_inverts_two_hot():
    logits = jnp.log(two_hot(jnp.asarray(VALUES), 255))
    np.testing.assert_allclose(two_hot_mean(logits), VALUES, rtol=3e-4, atol=1e-5)


def test_loss_is_the_cross_entropy():
    rng = np.random.default_rng(1)
    logits = rng.normal(size=(len(VALUES), 41)).astype(np.float32) * 3
    target = np.asarray(two_hot(jnp.asarray(VALUES), 41), np.float64)
    expected = -(target * scipy.special.log_softmax(logits.astype(np.float64), -1)).sum(-1)
    np.testing.assert_allclose(two_hot_loss(logits, jnp.asarray(VALUES)), expected, rtol=1e-5)
    # Its gradient is softmax - target, so it is least where the prediction is the target.
    gradient = jax.grad(lambda x: two_hot_loss(x, jnp.asarray(VALUES)).sum())(jnp.asarray(logits))
    np.testing.assert_allclose(gradient, scipy.special.softmax(logits, -1) - target, atol=1e-5)


def test_half_precision_logits_are_read_in_float32():
    logits = jnp.asarray(np.random.default_rng(2).normal(size=(3, 41)), jnp.bfloat16)
    exact = logits.astype(jnp.float32)
    assert two_hot_mean(logits).dtype == jnp.float32
    np.testing.assert_array_equal(two_hot_mean(logits), two_hot_mean(exact))
    target = jnp.ones(3)
    np.testing.assert_array_equal(two_hot_loss(logits, target), two_hot_loss(exact, target))
