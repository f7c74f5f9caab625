"""Running statistics that are exact however many devices share a batch."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from emerald_jax.types import Array


def percentile_range(
    x: Array, low: float = 5.0, high: float = 95.0, *, axis_name: str | None = None
) -> Array:
    """Distance between two percentiles of all values on all devices.

    A percentile of percentiles would be wrong, so the values themselves are gathered.

    Args:
        x: `[...]` any shape.
        low: lower percentile, 0 to 100.
        high: upper percentile, 0 to 100.
        axis_name: the pmap axis, or None on one device.

    Returns:
        `[]` float32.
    """
    flat = x.astype(jnp.float32).reshape(-1)
    if axis_name is not None:
        flat = jax.lax.all_gather(flat, axis_name).reshape(-1)
    bounds = jnp.percentile(flat, jnp.array([low, high], jnp.float32))
    return bounds[1] - bounds[0]


def moving_average(average: Array, value: Array, decay: float) -> Array:
    """decay * average + (1 - decay) * value."""
    return decay * average + (1.0 - decay) * value
