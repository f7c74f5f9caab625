"""Random numbers for one key or a batch of keys, drawn in few calls.

With one key per sequence, a sequence's numbers do not depend on which device holds it. A call of
the generator costs more than the numbers on every back end, so callers draw once for many steps.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp

from emerald_jax.types import Array, Key


def split(key: Key, num: int) -> Key:
    """Split each key of `[...]` into ``num``: `[num, ...]`."""
    return _for_each(partial(jax.random.split, num=num), key, out=key.ndim)


def bits(key: Key, shape: tuple[int, ...]) -> Array:
    """Random bits `[..., *shape]` uint32 for keys `[...]`, which are consumed."""
    return _flat(jax.random.bits, key, shape)


def short_bits(key: Key, shape: tuple[int, ...]) -> Array:
    """Random bits `[..., *shape]` uint16: half the cost of :func:`bits`."""
    count = math.prod(shape)
    words = _flat(jax.random.bits, key, ((count + 1) // 2,))
    halves = jax.lax.bitcast_convert_type(words, jnp.uint16).reshape(*key.shape, -1)
    return halves[..., :count].reshape(*key.shape, *shape)


def uniform(key: Array, shape: tuple[int, ...], before: int = 0) -> Array:
    """Numbers in [0, 1), `[..., *shape]` float32, for keys `[...]`, which are consumed.

    The first ``before`` axes of ``shape`` stand before those of the keys. Numbers that the caller
    has drawn already are returned unchanged.
    """
    if not jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
        return key
    numbers = _flat(jax.random.uniform, key, shape)
    lead = range(key.ndim)
    return jnp.moveaxis(numbers, lead, [before + axis for axis in lead])


def _flat(draw: Callable, key: Key, shape: tuple[int, ...]) -> Array:
    """Draw a flat vector for each key, then shape it: XLA computes long vectors faster."""
    numbers = _for_each(partial(draw, shape=(math.prod(shape),)), key)
    return numbers.reshape(*key.shape, *shape)


def _for_each(function: Callable, key: Key, out: int = 0) -> Array:
    for _ in range(key.ndim):
        function = jax.vmap(function, out_axes=out)
    return function(key)
