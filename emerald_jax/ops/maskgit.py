"""MaskGIT's schedule and masks (arXiv 2202.04200; EMERALD section 3.2), and other choices of masks.

Masks are selected by *keys*: order-preserving integers whose lowest bits hold the token's index, so
that all keys differ. One sort of N keys then gives a threshold that exactly n keys do not exceed.
"""

from __future__ import annotations

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np

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


def remask_counts(counts: tuple[int, ...]) -> tuple[int, ...]:
    """How many of the MASK tokens ``counts`` `[S]` of each step were shown in the step before.

    ReMDM's rescaled schedule (arXiv 2503.00307), as counts: half of the most that leaves the number
    of MASK tokens as it is, min(tokens shown before, tokens to mask).
    """
    pairs = itertools.pairwise(counts)
    return (0, *(min(counts[0] - last, now) // 2 for last, now in pairs))


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


def remask(u: Array, masked: Array, last: int, count: int, again: int) -> Array:
    """Random mask `[..., N]` bool with ``count`` tokens, ``again`` of which were shown before.

    ReMDM (arXiv 2503.00307): the others are chosen among the ``last`` tokens ``masked`` `[..., N]`
    in the step before. ``u`` `[..., N]` are random numbers in [0, 1).
    """
    shown = jnp.uint32(0x80000000)
    # Numbers in [0, 1) have the sign bit free: it sorts the shown tokens behind the masked ones.
    keys = jax.lax.bitcast_convert_type(u.astype(jnp.float32), jnp.uint32)
    keys = jnp.where(masked, 0, shown) | distinct_keys(keys)
    ordered = _sorted(keys)
    fresh = masked & (keys <= ordered[..., count - again - 1 : count - again])
    return fresh | (~masked & (keys <= ordered[..., last + again - 1 : last + again]))


def halton_ranks(positions: int, groups: int) -> np.ndarray:
    """Rank `[P, G]` int in 0 … P G - 1 at which a fixed balanced order shows each token.

    The grid's positions are visited as a Halton sequence in bases 2 and 3 reaches them
    (arXiv 2503.17076), so that tokens shown together lie far apart. Each visit shows one of the G
    tokens, in turn; after all positions the next round begins.
    """
    side, order, number = math.isqrt(positions), {}, 0
    if side**2 != positions:
        raise ValueError(f"{positions} positions are no square grid")
    while len(order) < positions:  # a dict keeps the order of first visits
        number += 1
        row, column = (int(_radical_inverse(number, base) * side) for base in (2, 3))
        order.setdefault(row * side + column)
    ranks = np.zeros((positions, groups), int)
    for turn, position in enumerate(order):
        for step in range(groups):
            ranks[position, (turn + step) % groups] = step * positions + turn
    return ranks


def _radical_inverse(number: int, base: int) -> float:
    """Mirror the digits of ``number`` at the point: 6 = 110 in base 2 becomes 0.011."""
    value, scale = 0.0, 1.0
    while number:
        number, digit = divmod(number, base)
        scale /= base
        value += digit * scale
    return value


def _sorted(keys: Array) -> Array:
    # All keys differ: a stable sort would be slower for the same result.
    return jnp.sort(keys, axis=-1, stable=False)
