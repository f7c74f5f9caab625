"""MaskGIT's schedule and masks (arXiv 2202.04200; EMERALD section 3.2).

Masks are selected by *keys*: order-preserving integers whose lowest bits hold the token's index, so
that all keys differ. One sort of N keys then gives a threshold that exactly n keys do not exceed.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp

from emerald_jax.ops import random
from emerald_jax.types import Array, Key


def mask_counts(num_tokens: int, steps: int) -> tuple[int, ...]:
    """Number of MASK tokens at the start of each of S >= 1 steps: (512, 443, 256) for N = 512, S =
    3.

    n_0 = N; n_s = max(1, floor(cos(pi/2 * s/S) * N)), computed at trace time in float64: float32
    would give 255 instead of 256. Counts never increase, even if N is smaller than S.
    """
    counts = [num_tokens]
    for s in range(1, steps):
        n = max(1, math.floor(math.cos(math.pi / 2 * s / steps) * num_tokens))
        counts.append(min(n, counts[-1]))
    return tuple(counts)


def distinct_keys(bits: Array) -> Array:
    """Replace the lowest bits of uint32 `[..., N]` by the index on the last axis: all differ."""
    num_tokens = bits.shape[-1]
    low = jnp.uint32((1 << max(1, (num_tokens - 1).bit_length())) - 1)
    index = jnp.broadcast_to(jnp.arange(num_tokens, dtype=jnp.uint32), bits.shape)
    return (bits & ~low) | index


def order_bits(x: Array) -> Array:
    """Map float32 `[...]` (no NaN; infinities are fine) to uint32 that sort the same way."""
    raw = jax.lax.bitcast_convert_type(x.astype(jnp.float32), jnp.uint32)
    sign = jnp.uint32(0x80000000)
    return jnp.where(raw & sign, ~raw, raw | sign)


def random_mask(key: Key, num_tokens: int, u: Array) -> Array:
    """Training masks `[..., N]` bool, True = MASK, one for each u `[...]` in [0, 1).

    n = max(1, floor(cos(pi u / 2) N)) tokens are chosen uniformly at random. ``key`` is consumed:
    one key, or keys of u's leading axes.
    """
    n = jnp.floor(jnp.cos(jnp.pi / 2 * u) * num_tokens).astype(jnp.int32)
    n = jnp.clip(n, 1, num_tokens)
    keys = distinct_keys(random.bits(key, (*u.shape[key.ndim :], num_tokens)))
    return keys <= jnp.take_along_axis(_sorted(keys), n[..., None] - 1, axis=-1)


def lowest_confidence(confidence: Array, masked: Array, count: int) -> Array:
    """`[..., N]` bool: the ``count`` least confident of the tokens still ``masked`` `[..., N]`.

    ``count`` is at most the number of True in ``masked``; all other tokens are kept.
    """
    keys = jnp.where(masked, distinct_keys(order_bits(confidence)), jnp.uint32(0xFFFFFFFF))
    return keys <= _sorted(keys)[..., count - 1 : count]


def _sorted(keys: Array) -> Array:
    # All keys differ: a stable sort would be slower for the same result.
    return jnp.sort(keys, axis=-1, stable=False)
