"""Building blocks: latent projection, attention over positions, feed-forward, norms.

In all of ``models/``, parameters are float32; field ``dtype`` is the compute type, ``config`` holds
the sizes. Modules accept any leading dimensions unless a docstring states otherwise.
"""

from __future__ import annotations

import contextvars
import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from emerald_jax.ops import random
from emerald_jax.target import target
from emerald_jax.types import Array, Key, Params

#: Added to a variance before its root is taken.
EPSILON = 1e-5

#: Score of a pair that must not attend: far below any real score, yet finite (a row of -inf would
#: become NaN).
HIDDEN = -1e30


class Initial(NamedTuple):
    """Initial values of a parameter, a Flax initialiser: ``offset`` plus normal numbers.

    Attributes:
        std: standard deviation; of a truncated normal, times 1 / sqrt(inputs), if ``fan``.
        fan: truncated at two deviations and scaled by the inputs (LeCun), as all kernels are.
        offset: the mean.
    """

    std: float
    fan: bool = False
    offset: float = 0.0

    def __call__(self, key: Key, shape: tuple[int, ...], dtype: Any = jnp.float32) -> Array:
        """Draw one parameter alone; :func:`init_together` draws all parameters of a network."""
        recorded = _RECORDED.get()
        if recorded is not None:
            recorded.append(self)
            return jnp.full(shape, len(recorded) - 1, dtype)
        numbers = _numbers(self.fan, key, math.prod(shape))
        return self.shaped(numbers, shape).astype(dtype)

    def shaped(self, numbers: Array, shape: tuple[int, ...]) -> Array:
        """A parameter from standard (truncated) normal numbers `[size]`."""
        # 0.8796 is the deviation of a standard normal that is truncated at 2.
        std = (
            self.std / (0.87962566103423978 * math.sqrt(math.prod(shape[:-1])))
            if self.fan
            else self.std
        )
        return self.offset + std * numbers.reshape(shape)


def _numbers(truncated: bool, key: Key, count: int) -> Array:
    if truncated:
        return jax.random.truncated_normal(key, -2.0, 2.0, (count,))
    return jax.random.normal(key, (count,))


zeros, ones = Initial(0.0), Initial(0.0, offset=1.0)
#: Kernels: variance 1 / inputs.
lecun_normal = Initial(1.0, fan=True)
#: Learned vectors: attention biases, start states, position embeddings.
learned_vector = Initial(0.02)

#: The initialisers of a network's parameters while :func:`init_together` traces it.
_RECORDED: contextvars.ContextVar[list | None] = contextvars.ContextVar("recorded", default=None)


def init_together(init: Callable[[Key], Params], key: Key) -> Params:
    """``init(key)`` with all random numbers drawn in two calls: seconds to compile, not a minute.

    In a first pass each parameter is filled with the number of its :class:`Initial`. ``init`` must
    not use arrays from outside.
    """
    recorded: list[Initial] = []
    shapes: list[tuple[int, ...]] = []

    def numbered() -> Params:
        params = init(jax.random.key(0))
        shapes.extend(x.shape for x in jax.tree.leaves(params))
        return jax.tree.map(lambda x: x.reshape(-1)[0].astype(jnp.int32), params)

    def first_pass() -> Params:
        _RECORDED.set(recorded)
        return jax.device_get(jax.jit(numbered)())

    # In a thread of its own: no trace around this call, and no other, sees the first pass.
    with ThreadPoolExecutor(1) as thread:
        numbers, tree = jax.tree.flatten(thread.submit(first_pass).result())
    kinds = [recorded[int(number)] for number in numbers]
    sizes = np.array([math.prod(shape) for shape in shapes])
    drawn = {}
    for fan, one_key in zip((True, False), jax.random.split(key), strict=True):
        mine = [i for i, kind in enumerate(kinds) if kind.std and kind.fan == fan]
        ends = np.cumsum(sizes[mine])
        parts = jnp.split(_numbers(fan, one_key, int(ends[-1])), ends[:-1]) if mine else []
        drawn |= dict(zip(mine, parts, strict=True))
    values = [
        kind.shaped(drawn[i], shape) if kind.std else jnp.full(shape, kind.offset, jnp.float32)
        for i, (kind, shape) in enumerate(zip(kinds, shapes, strict=True))
    ]
    return jax.tree.unflatten(tree, values)


def compute_dtype(name: str) -> jnp.dtype:
    """``model.dtype`` as a type; ``auto`` is bfloat16 where the device has units for it (O)."""
    if name == "auto":
        name = "bfloat16" if target().bfloat16 else "float32"
    return jnp.dtype(name)


def spread_rows(vector: Array, like: Array) -> Array:
    """Broadcast `[F]` to the shape `[..., F]` of ``like``; the gradient is a matrix product.

    The gradient of a plain broadcast is a sum over all rows, which XLA runs on one CPU core: a
    seventh of the world model's gradient at the paper's sizes. A product with a column of ones is
    the same sum; in the forward pass XLA turns it back into a broadcast.
    """
    column = jnp.ones((math.prod(like.shape[:-1]), 1), vector.dtype)
    return (column @ vector[None]).reshape(like.shape)


def recomputed(function: Callable[..., Any], wanted: bool) -> Callable[..., Any]:
    """Rematerialise ``function(module, x, index)`` if ``wanted``: only its inputs are stored.

    Parameter names do not change. Use it on small blocks: one block around the complete loss saves
    nothing, since all of it is live during its own backward pass. XLA for CPUs undoes
    rematerialisation.
    """
    return nn.remat(function, static_argnums=(2,)) if wanted else function


class Dense(nn.Module):
    """Linear layer over the last axis, `[..., F]`: ``nn.Dense`` with a faster bias gradient."""

    features: int
    use_bias: bool = True
    dtype: jnp.dtype = jnp.float32
    kernel_init: Initial = lecun_normal

    @nn.compact
    def __call__(self, x: Array) -> Array:
        shape = (x.shape[-1], self.features)
        kernel = self.param("kernel", self.kernel_init, shape).astype(self.dtype)
        # Rows: the kernel's gradient is then one plain product, without a copy of its operands.
        y = x.astype(self.dtype).reshape(-1, x.shape[-1]) @ kernel
        if self.use_bias:
            bias = self.param("bias", zeros, (self.features,)).astype(self.dtype)
            y = y + spread_rows(bias, y)
        return y.reshape(*x.shape[:-1], self.features)


class Norm(nn.Module):
    """Layer norm over the last axis, in float32: ``nn.LayerNorm`` with faster gradients."""

    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        scale = self.param("scale", ones, (x.shape[-1],))
        bias = self.param("bias", zeros, (x.shape[-1],))
        shape, x, on_gpu = x.shape, x.astype(jnp.float32), target().platform == "gpu"
        if on_gpu:
            # XLA makes one kernel of a norm, and tries every division of the other axes into tiles
            # for each operation that it might add: with five axes most of the time to compile.
            x = x.reshape(-1, shape[-1])
        mean = jnp.mean(x, axis=-1, keepdims=True)
        if on_gpu:  # only this form becomes one kernel
            variance = jnp.mean(jnp.square(x - mean), axis=-1, keepdims=True)
        else:
            variance = jnp.mean(jnp.square(x), axis=-1, keepdims=True) - jnp.square(mean)
        y = (x - mean) * jax.lax.rsqrt(jnp.maximum(variance, 0.0) + EPSILON)
        y = y * spread_rows(scale, y) + spread_rows(bias, y)
        return y.astype(self.dtype).reshape(shape)


class NormSilu(nn.Module):
    """Norm, then SiLU: the pair between almost any two linear layers of this model."""

    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        return nn.silu(Norm(dtype=self.dtype)(x))


#: On a CPU, tables with at least this many rows are gathered from (O; measured at 1024 rows only).
_GATHER_ROWS = 512


def embed_tokens(tokens: Array, table: Array) -> Array:
    """Sum the `[G, K, F]` table's rows of the tokens `[..., G]` of each position -> `[..., F]`.

    A one-hot product; on a CPU, large tables are gathered group by group. For 4096 positions of 32
    tokens and the predictor's table this takes 1.7 ms; the product takes 21.5 ms, and one gather
    followed by a sum 7.3 ms (two cores). The gradient is that of the product in both cases.
    """
    if target().platform == "cpu" and table.shape[0] * table.shape[1] >= _GATHER_ROWS:
        return _gather_sum(tokens, table)
    return _hot(tokens, table) @ table.reshape(-1, table.shape[-1])


def _hot(tokens: Array, table: Array) -> Array:
    """`[..., G]` -> `[..., G * K]`, G ones per position."""
    hot = jax.nn.one_hot(tokens, table.shape[1], dtype=table.dtype)
    return hot.reshape(*tokens.shape[:-1], -1)


@jax.custom_vjp
def _gather_sum(tokens: Array, table: Array) -> Array:
    """:func:`embed_tokens` without one-hot vectors."""

    def body(total: Array, group: tuple[Array, Array]) -> tuple[Array, None]:
        token, rows = group
        return total + rows[token], None

    none = jnp.zeros((*tokens.shape[:-1], table.shape[-1]), table.dtype)
    return jax.lax.scan(body, none, (jnp.moveaxis(tokens, -1, 0), table))[0]


def _gather_forward(tokens: Array, table: Array) -> tuple[Array, tuple[Array, Array]]:
    return _gather_sum(tokens, table), (tokens, table)


def _gather_backward(kept: tuple[Array, Array], dy: Array) -> tuple[np.ndarray, Array]:
    """JAX represents the missing gradient of integers as ``float0``."""
    tokens, table = kept
    hot = _hot(tokens, table)
    rows = hot.reshape(-1, hot.shape[-1]).T @ dy.reshape(-1, dy.shape[-1])
    return np.zeros(tokens.shape, jax.dtypes.float0), rows.reshape(table.shape)


_gather_sum.defvjp(_gather_forward, _gather_backward)


class LatentProjection(nn.Module):
    """Linear map of one-hot groups: the paper's 1x1 convolution over a latent's G * K channels.

    Accepts class indices, through which no gradient flows, or one-hot vectors with straight-through
    gradients; both give the same result.
    """

    groups: int
    classes: int
    features: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, z: Array) -> Array:
        """z `[..., G]` int32, or `[..., G, K]` float -> `[..., F]`, F the field ``features``."""
        shape = (self.groups * self.classes, self.features)
        kernel = self.param("kernel", lecun_normal, shape).astype(self.dtype)
        bias = self.param("bias", zeros, (self.features,)).astype(self.dtype)
        if jnp.issubdtype(z.dtype, jnp.integer):
            y = embed_tokens(z, kernel.reshape(self.groups, self.classes, self.features))
        else:
            y = z.astype(self.dtype).reshape(*z.shape[:-2], shape[0]) @ kernel
        return y + spread_rows(bias, y)


def drop_noise(key: Key | None, rate: float, blocks: int, shape: tuple[int, ...]) -> list[tuple]:
    """Noise for the two dropouts of each transformer block, in one draw.

    For keys `[...]`, which are consumed, ``blocks`` pairs of `[..., *shape]` uint16; pairs of None
    without a key or with a rate of 0.
    """
    if key is None or rate == 0:
        return [(None, None)] * blocks
    noise = random.short_bits(key, (blocks, 2, *shape))
    noise = jnp.moveaxis(noise, (key.ndim, key.ndim + 1), (0, 1))
    return [(noise[block, 0], noise[block, 1]) for block in range(blocks)]


def drop(x: Array, rate: float, noise: Array | None) -> Array:
    """Dropout of x with noise of the same shape; None: x unchanged. Rates are exact to 1/65536."""
    if noise is None:
        return x
    kept = noise < jnp.uint16(round((1 - rate) * 2**16))
    return jnp.where(kept, x / (1 - rate), jnp.zeros_like(x))


class FeedForward(nn.Module):
    """Post-norm feed-forward layer, hidden width ``ratio`` D: norm(x + dropout(W2 relu(W1 x)))."""

    ratio: int
    dropout: float
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array, noise: Array | None = None) -> Array:
        """``noise`` as in :func:`drop`."""
        width = x.shape[-1]
        y = nn.relu(Dense(self.ratio * width, dtype=self.dtype)(x))
        y = drop(Dense(width, dtype=self.dtype)(y), self.dropout, noise)
        return Norm(dtype=self.dtype)(x + y)


class PositionAttention(nn.Module):
    """Post-norm bidirectional self-attention over the P positions; dropout on the output."""

    heads: int
    dropout: float
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array, noise: Array | None = None) -> Array:
        """x `[..., P, F]` -> the same shape; ``noise`` as in :func:`drop`."""
        width = x.shape[-1]
        qkv = Dense(3 * width, dtype=self.dtype)(x)
        qkv = qkv.reshape(*x.shape[:-1], 3, self.heads, width // self.heads)
        query, key, value = (qkv[..., i, :, :] for i in range(3))
        scores = jnp.einsum("...qhd,...khd->...hqk", query, key).astype(jnp.float32)
        weights = jax.nn.softmax(scores * (width // self.heads) ** -0.5, axis=-1)
        mixed = jnp.einsum("...hqk,...khd->...qhd", weights.astype(self.dtype), value)
        y = drop(Dense(width, dtype=self.dtype)(mixed.reshape(x.shape)), self.dropout, noise)
        return Norm(dtype=self.dtype)(x + y)


def sinusoids(distances: Array, width: int) -> Array:
    """Sines, then cosines `[M, width]` of distances `[M]` (Transformer-XL, arXiv 1901.02860)."""
    rates = 10000.0 ** (-jnp.arange(0, width, 2, dtype=jnp.float32) / width)
    angles = distances.astype(jnp.float32)[:, None] * rates[None, :]
    return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)
