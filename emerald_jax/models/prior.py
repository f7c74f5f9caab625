"""Predictors of the next latent from h_t: the dynamics head and the spatial MaskGIT (section 3).

The autoregressive predictor, the MaskGIT's sequential counterpart, is in ``autoregressive.py``.
"""

from __future__ import annotations

import flax.linen as nn
import jax.numpy as jnp
from jax.nn.initializers import lecun_normal, normal

from emerald_jax.config import ModelConfig
from emerald_jax.models.layers import (
    Dense,
    FeedForward,
    NormSilu,
    PositionAttention,
    embed_tokens,
    learned_vector,
    recomputed,
)
from emerald_jax.types import Array


class Spread(nn.Module):
    """h_t spread over the latent positions: what all priors start from.

    For a vector latent it is the hidden layer of DreamerV3's prior: linear D, norm, SiLU.
    """

    config: ModelConfig
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, h: Array) -> Array:
        """Args: h `[..., D]`. Returns: `[..., P, F]`, F the predictor's width (D for a vector)."""
        c = self.config
        if c.latent == "vector":
            return NormSilu(dtype=self.dtype)(Dense(c.width, dtype=self.dtype)(h))[..., None, :]
        x = Dense(c.grid**2 * c.latent_width, dtype=self.dtype)(h)
        x = x.reshape(*h.shape[:-1], c.grid**2, c.latent_width)
        return Dense(c.predictor_width, dtype=self.dtype)(NormSilu(dtype=self.dtype)(x))


class DynamicsHead(nn.Module):
    """p_dyn(z_t | h_t): one linear layer. It carries the KL, and is the "no MaskGIT" ablation."""

    config: ModelConfig
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, features: Array) -> Array:
        """Args: features `[..., P, F]`. Returns: logits `[..., P, G, K]`."""
        c = self.config
        logits = Dense(c.groups * c.classes, dtype=self.dtype)(features)
        return logits.reshape(*features.shape[:-1], c.groups, c.classes)


class TokenPredictor(nn.Module):
    """The layers of a predictor that sees tokens of z_t itself, all but its attention.

    The G tokens of a position, each a class or the extra word K, are embedded (K + 1 words),
    flattened and projected together with the position's features. Embedding and projection are both
    linear, so their product is a table of one row per (group, word), made once per call. Tokens
    meet it in :func:`embed_tokens`, and a position full of the extra word as one constant row;
    training and decoding read the same table.
    """

    config: ModelConfig
    dtype: jnp.dtype

    def setup(self) -> None:
        c = self.config
        width = c.predictor_width
        words, flat = (c.classes + 1, c.token_width), (c.groups * c.token_width, width)
        self.words = self.param("words", normal(1.0), words)
        self.from_words = self.param("from_words", lecun_normal(), flat)
        self.from_features = Dense(width, dtype=self.dtype)
        self.places = self.param("places", learned_vector, (c.positions, width))
        self.feed_forward = [
            FeedForward(c.ff_ratio, c.dropout, self.dtype) for _ in range(c.predictor_blocks)
        ]
        self.out = Dense(c.groups * c.classes, dtype=self.dtype)

    def table(self) -> Array:
        """`[G, K + 1, F]`: what each word adds to its position's input, group by group."""
        c = self.config
        kernel = self.from_words.reshape(c.groups, c.token_width, -1)
        return jnp.einsum("we,gef->gwf", self.words, kernel).astype(self.dtype)

    def enter(self, features: Array, tokens: Array | None, places: Array) -> Array:
        """Input of the transformer.

        Args:
            features: `[..., P, F]` from :class:`Spread`.
            tokens: `[..., P, G]` int32 in [0, K]; None when all are the extra word K.
            places: `[P, F]` embeddings of the positions.

        Returns:
            `[..., P, F]`, F the predictor's width.
        """
        table, projected = self.table(), self.from_features(features)
        if tokens is None:
            embedded = jnp.broadcast_to(table[:, -1].sum(0), projected.shape)
        else:
            embedded = embed_tokens(tokens, table)
        x = embedded + projected
        return x + jnp.broadcast_to(places.astype(self.dtype), x.shape)

    def blocks(self, x: Array, deterministic: bool) -> Array:
        """The transformer itself, all positions at once. Args and returns: x `[..., P, F]`."""

        def run(predictor: TokenPredictor, x: Array, block: int) -> Array:
            x = predictor.attention[block](x, deterministic)
            return predictor.feed_forward[block](x, deterministic)

        for block in range(self.config.predictor_blocks):
            x = recomputed(run, self.config.remat)(self, x, block)
        return x

    def leave(self, x: Array) -> Array:
        """`[..., F]` -> class logits `[..., G, K]`."""
        logits = self.out(x)
        return logits.reshape(*logits.shape[:-1], self.config.groups, self.config.classes)


class MaskGit(TokenPredictor):
    """p_mask(z_t | h_t, unmasked tokens): a small bidirectional transformer over the positions.

    The extra word of :class:`TokenPredictor` is MASK.
    """

    def setup(self) -> None:
        super().setup()
        c = self.config
        self.attention = [
            PositionAttention(c.heads, c.dropout, self.dtype) for _ in range(c.predictor_blocks)
        ]

    def __call__(self, features: Array, tokens: Array | None, deterministic: bool = True) -> Array:
        """Class logits of every token, masked or not.

        Args:
            features: `[..., P, F]` from :class:`Spread`.
            tokens: `[..., P, G]` int32 in [0, K], K meaning MASK; None when every token is MASK,
                where the embedding is one constant vector.
            deterministic: no dropout.

        Returns:
            `[..., P, G, K]` in the compute type.
        """
        return self.leave(self.blocks(self.enter(features, tokens, self.places), deterministic))
