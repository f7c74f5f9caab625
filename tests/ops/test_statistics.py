"""Percentile range and moving average; over devices, the same numbers as on one."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from emerald_jax.ops.returns import moving_average, percentile_range


def test_range_agrees_with_numpy():
    x = np.random.default_rng(0).normal(size=(5, 4, 3)).astype(np.float32) ** 3
    low, high = np.percentile(x, [5, 95])
    np.testing.assert_allclose(percentile_range(jnp.asarray(x)), high - low, rtol=1e-5)
    # 0, 1, ..., 100: the 5th percentile is 5, the 95th 95.
    assert float(percentile_range(jnp.arange(101.0))) == 90


def test_range_over_devices_is_that_of_all_values():
    # Devices see very different values: no average of their own percentiles could be right.
    x = np.random.default_rng(1).normal(size=(4, 6, 3)).astype(np.float32)
    x = x * np.float32([0.1, 1, 10, 100]).reshape(4, 1, 1)
    devices = jax.local_devices()[:4]
    spread = jax.pmap(partial(percentile_range, axis_name="data"), "data", devices=devices)(x)
    np.testing.assert_allclose(spread, np.full(4, percentile_range(jnp.asarray(x))), rtol=1e-6)
    alone = jax.vmap(percentile_range)(x).mean()
    assert abs(float(spread[0]) - float(alone)) > 1


def test_moving_average_by_hand():
    # 0.99 * 2 + 0.01 * 12 = 2.1
    np.testing.assert_allclose(moving_average(jnp.float32(2), jnp.float32(12), 0.99), 2.1)
