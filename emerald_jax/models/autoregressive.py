"""The sequential baseline: one latent position after another (issue of speed against MaskGIT's S).

p_ar(z_t | h_t) = product over positions p of p(z_t[p] | z_t[<p], h_t), in raster order, the G
tokens of a position independent of each other. Sizes, embedding and losses are the MaskGIT
predictor's; the attention is causal, so that decoding caches keys and values and computes each
position once.
"""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from emerald_jax.config import ModelConfig
from emerald_jax.models.layers import Dense, Norm
from emerald_jax.models.prior import TokenPredictor
from emerald_jax.types import Array

#: Score of a position that may not be seen yet: finite, as a row of -inf would be NaN.
_HIDDEN = -1e30


class CausalAttention(nn.Module):
    """Post-norm self-attention in which a position sees itself and those before it.

    Attributes:
        heads: attention heads.
        dropout: rate, on the output.
        width: F.
        dtype: compute type.
    """

    heads: int
    dropout: float
    width: int
    dtype: jnp.dtype

    def setup(self) -> None:
        self.qkv = Dense(3 * self.width, dtype=self.dtype)
        self.out = Dense(self.width, dtype=self.dtype)
        self.norm = Norm(dtype=self.dtype)
        self.drop = nn.Dropout(self.dropout)

    def project(self, x: Array) -> tuple[Array, Array, Array]:
        """`[..., F]` -> query, key, value, each `[..., heads, F / heads]`."""
        qkv = self.qkv(x).reshape(*x.shape[:-1], 3, self.heads, self.width // self.heads)
        return qkv[..., 0, :, :], qkv[..., 1, :, :], qkv[..., 2, :, :]

    def attend(self, x: Array, visible: Array, query: Array, keys: Array, values: Array) -> Array:
        """Mix values, project, add to ``x`` and normalise.

        Args:
            x: `[..., Q, F]`, the residual.
            visible: `[Q, P]` bool.
            query: `[..., Q, heads, F / heads]`.
            keys: `[..., P, heads, F / heads]`.
            values: `[..., P, heads, F / heads]`.

        Returns:
            The residual stream after output projection, without dropout: see the callers.
        """
        scores = jnp.einsum("...qhd,...khd->...hqk", query, keys).astype(jnp.float32)
        scores = scores * query.shape[-1] ** -0.5
        scores = jnp.where(jnp.broadcast_to(visible, scores.shape), scores, _HIDDEN)
        weights = jax.nn.softmax(scores, axis=-1).astype(self.dtype)
        return self.out(jnp.einsum("...hqk,...khd->...qhd", weights, values).reshape(x.shape))

    def __call__(self, x: Array, deterministic: bool) -> Array:
        """All positions at once. Args: x `[..., P, F]`. Returns: the same shape."""
        visible = jnp.tril(jnp.ones((x.shape[-2], x.shape[-2]), bool))
        mixed = self.attend(x, visible, *self.project(x))
        return self.norm(x + self.drop(mixed, deterministic=deterministic))

    def step(self, x: Array, cache: Array, place: Array) -> tuple[Array, Array]:
        """One position after those in the cache.

        Args:
            x: `[..., 1, F]`.
            cache: `[2, ..., P, heads, F / heads]`, keys and values, filled up to ``place``.
            place: `[]` int32.

        Returns:
            `[..., 1, F]` and the cache with this position's entry.
        """
        query, key, value = self.project(x)
        new = jnp.stack([key, value])
        cache = jax.lax.dynamic_update_slice_in_dim(cache, new, place, axis=cache.ndim - 3)
        visible = (jnp.arange(cache.shape[-3]) <= place)[None]
        return self.norm(x + self.attend(x, visible, query, cache[0], cache[1])), cache


class Autoregressive(TokenPredictor):
    """p_ar(z_t[p] | z_t[<p], h_t): the input of position p embeds the tokens of position p - 1.

    The extra word of :class:`TokenPredictor` stands before the first position.
    """

    def setup(self) -> None:
        super().setup()
        c = self.config
        self.attention = [
            CausalAttention(c.heads, c.dropout, c.predictor_width, self.dtype)
            for _ in range(c.predictor_blocks)
        ]

    def __call__(self, features: Array, tokens: Array, deterministic: bool = True) -> Array:
        """Class logits of every position given the true tokens of those before it.

        Args:
            features: `[..., P, F]` from :class:`Spread`.
            tokens: `[..., P, G]` int32; the last position's are not read.
            deterministic: no dropout.

        Returns:
            `[..., P, G, K]` in the compute type.
        """
        first = jnp.full_like(tokens[..., :1, :], self.config.classes)
        previous = jnp.concatenate([first, tokens[..., :-1, :]], axis=-2)
        return self.leave(self.blocks(self.enter(features, previous, self.places), deterministic))

    def step(
        self, features: Array, previous: Array, place: Array, cache: Array
    ) -> tuple[Array, Array]:
        """Class logits of one position.

        Args:
            features: `[..., P, F]` of all positions.
            previous: `[..., G]` int32, the tokens of the position before; K before the first.
            place: `[]` int32, which position.
            cache: of :func:`empty_cache` or the position before.

        Returns:
            `[..., G, K]` in the compute type, and the grown cache.
        """
        here = jax.lax.dynamic_slice_in_dim(features, place, 1, axis=features.ndim - 2)
        places = jax.lax.dynamic_slice_in_dim(self.places, place, 1)
        x = self.enter(here, previous[..., None, :], places)
        grown = []
        for block, feed_forward in enumerate(self.feed_forward):
            x, entry = self.attention[block].step(x, cache[block], place)
            x = feed_forward(x, True)
            grown.append(entry)
        return self.leave(x)[..., 0, :, :], jnp.stack(grown)


def empty_cache(config: ModelConfig, lead: tuple[int, ...], dtype: jnp.dtype) -> Array:
    """Room for keys and values `[blocks, 2, ..., P, heads, F / heads]` of all positions."""
    size = (config.heads, config.predictor_width // config.heads)
    return jnp.zeros((config.predictor_blocks, 2, *lead, config.positions, *size), dtype)
