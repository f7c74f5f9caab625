"""Returns of imagined rollouts, and their percentile range over all devices.

Index convention: ``r_tp1[k]`` and ``c_tp1[k]`` belong to state k + 1, which action k led to.
Everything is time-major, `[H, ...]`.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Float

from emerald_jax.types import AnyArray, Array

#: A setting; an array where programs are traced for many values of it.
Number = Float[Array, ""] | float


def lambda_returns(
    r_tp1: Float[AnyArray, "H *n"],
    c_tp1: Float[AnyArray, "H *n"],
    v_t: Float[AnyArray, "H+1 *n"],
    *,
    gamma: Number,
    lam: Number,
) -> Float[Array, "H *n"]:
    """Lambda-returns of an imagined rollout (DreamerV3, arXiv 2301.04104, equation 7).

    R_k = r_{k+1} + gamma c_{k+1} ((1 - lam) v_{k+1} + lam R_{k+1}),  R_H = v_H

    Args:
        r_tp1: `[H, ...]` rewards of states 1 .. H.
        c_tp1: `[H, ...]` continuation of states 1 .. H, in [0, 1].
        v_t: `[H + 1, ...]` values of states 0 .. H.
        gamma: discount per step.
        lam: 0 bootstraps after one step, 1 sums discounted rewards up to v_H.

    Returns:
        `[H, ...]` R_0 .. R_{H-1}.
    """
    discount_tp1 = gamma * c_tp1
    base = r_tp1 + discount_tp1 * (1.0 - lam) * v_t[1:]

    def backward(r_next: Array, inputs: tuple[Array, Array]) -> tuple[Array, Array]:
        base_k, discount_k = inputs
        r_k = base_k + discount_k * lam * r_next
        return r_k, r_k

    # Unrolled: the few operations of all steps become one.
    _, returns = jax.lax.scan(backward, v_t[-1], (base, discount_tp1), reverse=True, unroll=True)
    return returns


def survival_weights(c_t: Float[AnyArray, "T *n"], *, gamma: Number) -> Float[Array, "T *n"]:
    """Weight `[H + 1, ...]` of each imagined state: w_0 = c_0, w_k = w_{k-1} gamma c_k.

    c_0 is the real continuation of the start: a rollout from a real terminal state has weight 0.
    """
    factors = jnp.concatenate([c_t[:1], gamma * c_t[1:]], axis=0)
    return jnp.cumprod(factors, axis=0)


def percentile_range(
    x: Array, low: float = 5.0, high: float = 95.0, *, axis_name: str | None = None
) -> Array:
    """Difference `[]` float32 of two percentiles over the values of all devices.

    The values themselves are gathered over ``axis_name``: a mean of per-device percentiles would be
    wrong.
    """
    flat = x.astype(jnp.float32).reshape(-1)
    if axis_name is not None:
        flat = jax.lax.all_gather(flat, axis_name).reshape(-1)
    bounds = jnp.percentile(flat, jnp.array([low, high], jnp.float32))
    return bounds[1] - bounds[0]


def moving_average(average: Array, value: Array, decay: float) -> Array:
    """decay * average + (1 - decay) * value."""
    return decay * average + (1.0 - decay) * value
