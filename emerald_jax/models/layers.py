"""Building blocks: latent projection, attention over positions, feed-forward, norms.

Convention: parameters are float32; ``dtype`` is the compute type. Modules accept any leading
dimensions unless a docstring says otherwise.
"""

from __future__ import annotations

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.nn.initializers import Initializer, lecun_normal, normal, ones, zeros

from emerald_jax.types import Array

#: Added to a variance before its root is taken.
EPSILON = 1e-5


def spread_rows(vector: Array, like: Array) -> Array:
    """`[F]` -> the shape `[..., F]` of ``like``: a broadcast whose gradient is a matrix product.

    The gradient of a plain broadcast is a sum over all rows, which XLA runs on one core of a CPU at
    12 ns a number: a seventh of the world model's gradient at the paper's sizes. A product with a
    column of ones is the same sum, and is done at the speed of products; forward, XLA turns it back
    into the broadcast.
    """
    column = jnp.ones((math.prod(like.shape[:-1]), 1), vector.dtype)
    return (column @ vector[None]).reshape(like.shape)


class Dense(nn.Module):
    """Linear layer over the last axis: ``nn.Dense`` but for the gradient of its bias.

    Attributes:
        features: output width F.
        use_bias: add a learned bias.
        dtype: compute type.
        kernel_init: initialiser of the kernel `[input width, F]`.
    """

    features: int
    use_bias: bool = True
    dtype: jnp.dtype = jnp.float32
    kernel_init: Initializer = lecun_normal()

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Args: x `[..., input width]`. Returns: `[..., F]`."""
        shape = (x.shape[-1], self.features)
        y = x.astype(self.dtype) @ self.param("kernel", self.kernel_init, shape).astype(self.dtype)
        if self.use_bias:
            bias = self.param("bias", zeros, (self.features,)).astype(self.dtype)
            y = y + spread_rows(bias, y)
        return y


class Norm(nn.Module):
    """Layer normalisation over the last axis, in float32: ``nn.LayerNorm`` but for its gradients.

    Attributes:
        dtype: type of the result.
    """

    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Args: x `[..., F]`. Returns: the same shape."""
        scale = self.param("scale", ones, (x.shape[-1],))
        bias = self.param("bias", zeros, (x.shape[-1],))
        x = x.astype(jnp.float32)
        mean = jnp.mean(x, axis=-1, keepdims=True)
        variance = jnp.mean(jnp.square(x), axis=-1, keepdims=True) - jnp.square(mean)
        y = (x - mean) * jax.lax.rsqrt(jnp.maximum(variance, 0.0) + EPSILON)
        return (y * spread_rows(scale, y) + spread_rows(bias, y)).astype(self.dtype)


class NormSilu(nn.Module):
    """norm, then SiLU: the pair that stands between almost any two linear layers here."""

    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        return nn.silu(Norm(dtype=self.dtype)(x))


class LatentProjection(nn.Module):
    """Linear map of one-hot groups, the paper's 1x1 convolution over a latent's G * K channels.

    A latent comes in either of two forms with the same result: class indices, through which no
    gradient flows, or one-hot vectors with straight-through gradients. Indices are made one-hot and
    multiplied too; a gather has not been measured against it.

    Attributes:
        groups: G.
        classes: K.
        features: output width F.
        dtype: compute type.
    """

    groups: int
    classes: int
    features: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, z: Array) -> Array:
        """Args: z `[..., G]` int32, or `[..., G, K]` float. Returns: `[..., F]`."""
        shape = (self.groups * self.classes, self.features)
        kernel = self.param("kernel", lecun_normal(), shape).astype(self.dtype)
        bias = self.param("bias", zeros, (self.features,)).astype(self.dtype)
        if jnp.issubdtype(z.dtype, jnp.integer):
            z = jax.nn.one_hot(z, self.classes, dtype=self.dtype)
        flat = z.astype(self.dtype).reshape(*z.shape[:-2], shape[0])
        y = flat @ kernel
        return y + spread_rows(bias, y)


class FeedForward(nn.Module):
    """Post-norm feed-forward layer: norm(x + W2 relu(W1 x)).

    Attributes:
        ratio: hidden width as a multiple of the input's.
        dropout: rate, on the output.
        dtype: compute type.
    """

    ratio: int
    dropout: float
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array, deterministic: bool) -> Array:
        """Args: x `[..., D]`. Returns: the same shape."""
        width = x.shape[-1]
        y = nn.relu(Dense(self.ratio * width, dtype=self.dtype)(x))
        y = Dense(width, dtype=self.dtype)(y)
        y = nn.Dropout(self.dropout)(y, deterministic=deterministic)
        return Norm(dtype=self.dtype)(x + y)


class PositionAttention(nn.Module):
    """Post-norm bidirectional self-attention over the P latent positions.

    Attributes:
        heads: attention heads.
        dropout: rate, on the output.
        dtype: compute type.
    """

    heads: int
    dropout: float
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array, deterministic: bool) -> Array:
        """Args: x `[..., P, F]`. Returns: the same shape."""
        width = x.shape[-1]
        qkv = Dense(3 * width, dtype=self.dtype)(x)
        qkv = qkv.reshape(*x.shape[:-1], 3, self.heads, width // self.heads)
        query, key, value = (qkv[..., i, :, :] for i in range(3))
        scores = jnp.einsum("...qhd,...khd->...hqk", query, key).astype(jnp.float32)
        weights = jax.nn.softmax(scores * (width // self.heads) ** -0.5, axis=-1)
        mixed = jnp.einsum("...hqk,...khd->...qhd", weights.astype(self.dtype), value)
        y = Dense(width, dtype=self.dtype)(mixed.reshape(x.shape))
        y = nn.Dropout(self.dropout)(y, deterministic=deterministic)
        return Norm(dtype=self.dtype)(x + y)


def sinusoids(distances: Array, width: int) -> Array:
    """Sines and cosines of relative distances (Transformer-XL, arXiv 1901.02860).

    Args:
        distances: `[M]` steps into the past.
        width: even.

    Returns:
        `[M, width]` float32: sines, then cosines.
    """
    rates = 10000.0 ** (-jnp.arange(0, width, 2, dtype=jnp.float32) / width)
    angles = distances.astype(jnp.float32)[:, None] * rates[None, :]
    return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)


#: Initialiser of learned vectors that stand beside activations: biases of attention, start, places.
learned_vector = normal(0.02)
