"""Lambda-returns and survival weights against hand arithmetic and a loop in plain Python."""

from __future__ import annotations

import numpy as np
import pytest

from emerald_jax.ops.returns import lambda_returns, survival_weights

H, N = 7, 3


@pytest.fixture(scope="module")
def rollout():
    rng = np.random.default_rng(0)
    reward = rng.normal(size=(H, N)).astype(np.float32)
    cont = (rng.random((H, N)) > 0.25).astype(np.float32)
    value = rng.normal(size=(H + 1, N)).astype(np.float32) * 3
    assert 0 < cont.mean() < 1
    return reward, cont, value


def oracle(reward, cont, value, gamma, lam):
    """R_k = r_{k+1} + gamma c_{k+1} ((1 - lam) v_{k+1} + lam R_{k+1}), from the back."""
    ret = value[-1].astype(np.float64)
    out = []
    for k in range(len(reward) - 1, -1, -1):
        ret = reward[k] + gamma * cont[k] * ((1 - lam) * value[k + 1] + lam * ret)
        out.append(ret)
    return np.stack(out[::-1])


def test_by_hand():
    # gamma = lam = 1/2, two steps, values 10, 20, 40.
    # R_1 = 2 + 1/2 (1/2 * 40 + 1/2 * 40) = 22;  R_0 = 1 + 1/2 (1/2 * 20 + 1/2 * 22) = 11.5
    reward, value = np.float32([1, 2]), np.float32([10, 20, 40])
    result = lambda_returns(reward, np.float32([1, 1]), value, gamma=0.5, lam=0.5)
    np.testing.assert_allclose(result, [11.5, 22])
    # The world ends in state 1: only its own reward is left, whatever comes later.
    result = lambda_returns(reward, np.float32([0, 1]), value, gamma=0.5, lam=0.5)
    np.testing.assert_allclose(result, [1, 22])


@pytest.mark.parametrize(("gamma", "lam"), [(0.997, 0.95), (0.5, 0.3)])
def test_agrees_with_a_loop(rollout, gamma, lam):
    result = lambda_returns(*rollout, gamma=gamma, lam=lam)
    assert result.shape == (H, N)
    np.testing.assert_allclose(result, oracle(*rollout, gamma, lam), rtol=1e-5, atol=1e-5)


def test_lambda_one_is_the_discounted_sum(rollout):
    reward, cont, value = rollout
    result = np.asarray(lambda_returns(*rollout, gamma=0.9, lam=1.0))
    for k in range(H):
        # Discounts of states k+1 .. H seen from k: 1 for the first reward, then gamma c each.
        survive = np.cumprod(np.concatenate([np.ones((1, N)), 0.9 * cont[k:]]), axis=0)
        expected = (survive[:-1] * reward[k:]).sum(0) + survive[-1] * value[-1]
        np.testing.assert_allclose(result[k], expected, rtol=1e-5, atol=1e-5)


def test_lambda_zero_is_one_step(rollout):
    reward, cont, value = rollout
    result = lambda_returns(*rollout, gamma=0.9, lam=0.0)
    np.testing.assert_allclose(result, reward + 0.9 * cont * value[1:], rtol=1e-5, atol=1e-6)


def test_the_value_of_the_start_is_not_used(rollout):
    reward, cont, value = rollout
    other = np.concatenate([value[:1] + 100, value[1:]])
    first = lambda_returns(reward, cont, value, gamma=0.9, lam=0.5)
    np.testing.assert_array_equal(first, lambda_returns(reward, cont, other, gamma=0.9, lam=0.5))


def test_survival_weights_by_hand():
    # w_0 = c_0 undiscounted, then gamma c each: a real death weighs nothing from the start, an
    # imagined one from its own state on.
    cont = np.float32([[1, 1, 1, 1], [1, 1, 0, 1], [0, 1, 1, 1]]).T
    expected = np.float32([[1, 0.5, 0.25, 0.125], [1, 0.5, 0, 0], [0, 0, 0, 0]]).T
    np.testing.assert_allclose(survival_weights(cont, gamma=0.5), expected)
