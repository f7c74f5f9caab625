"""Priors p(z_t | h_t), on the features of :class:`Spread`.

:class:`DynamicsHead` is one linear layer. :class:`MaskGit` (section 3) predicts masked tokens given
the others. For comparison, :class:`Flow` predicts them from noise instead of MASK, and
:class:`Autoregressive` one position after another.
"""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from emerald_jax.actions import ActionSpace
from emerald_jax.config import ModelConfig
from emerald_jax.models.layers import (
    HIDDEN,
    Dense,
    FeedForward,
    Initial,
    LatentProjection,
    Norm,
    NormSilu,
    PositionAttention,
    drop,
    drop_noise,
    embed_tokens,
    learned_vector,
    lecun_normal,
    recomputed,
    spread_rows,
)
from emerald_jax.models.sequence import encode_action
from emerald_jax.models.vision import Conv
from emerald_jax.types import Array, Before, Key

#: Cosines that tell :class:`Flow` the time, from 0 to 7.5 periods.
WAVES = 16


class Spread(nn.Module):
    """Features of all priors: h_t projected to the latent positions.

    For a vector latent this is the hidden layer of DreamerV3's prior: linear D, norm, SiLU.
    """

    config: ModelConfig
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, h: Array) -> Array:
        """h `[..., D]` -> `[..., P, F]`, F the predictor's width (D for a vector latent)."""
        c = self.config
        if c.latent == "vector":
            return NormSilu(dtype=self.dtype)(Dense(c.width, dtype=self.dtype)(h))[..., None, :]
        x = Dense(c.grid**2 * c.latent_width, dtype=self.dtype)(h)
        x = x.reshape(*h.shape[:-1], c.grid**2, c.latent_width)
        return Dense(c.predictor_width, dtype=self.dtype)(NormSilu(dtype=self.dtype)(x))


class Around(nn.Module):
    """Features of what lies at and next to each position in z_{t-1}, and of the action.

    One 3x3 convolution between two linear layers, equal at all positions: what moves by one
    position and what touches is learned once, not for each place. All of it is also in h_t, but
    flattened. (Own choice, ``model.prior_input`` hz.)
    """

    config: ModelConfig
    actions: ActionSpace
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, before: Before) -> Array:
        """:class:`Before` `[...]` -> `[..., P, F]`, F the predictor's width."""
        c, dtype = self.config, self.dtype
        x = LatentProjection(c.groups, c.classes, c.latent_width, dtype)(before.z)
        action = encode_action(before.action, self.actions, dtype)
        x = NormSilu(dtype=dtype)(x + Dense(c.latent_width, dtype=dtype)(action)[..., None, :])
        if before.reset is not None:
            x = jnp.where(before.reset[..., None, None], 0, x)
        x = Conv(c.predictor_width, dtype=dtype)(x.reshape(-1, c.grid, c.grid, c.latent_width))
        x = Dense(c.predictor_width, dtype=dtype)(NormSilu(dtype=dtype)(x))
        return x.reshape(*action.shape[:-1], c.positions, c.predictor_width)


class DynamicsHead(nn.Module):
    """p_dyn(z_t | h_t): one linear layer, trained by the KL; alone, the "no MaskGIT" ablation."""

    config: ModelConfig
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, features: Array) -> Array:
        """Features `[..., P, F]` -> logits `[..., P, G, K]`."""
        c = self.config
        logits = Dense(c.groups * c.classes, dtype=self.dtype)(features)
        return logits.reshape(*features.shape[:-1], c.groups, c.classes)


class TokenPredictor(nn.Module):
    """Layers shared by predictors whose input includes tokens of z_t.

    Each of a position's G tokens is a class or the extra token K. Tokens are embedded (K + 1
    embeddings), flattened and projected together with the position's features. Embedding and
    projection are both linear, so their product is a table with one row per (group, token),
    computed once per call. :func:`embed_tokens` sums its rows; a position of only extra tokens is
    one constant row.
    """

    config: ModelConfig
    dtype: jnp.dtype

    def setup(self) -> None:
        c = self.config
        width = c.predictor_width
        words, flat = (c.classes + 1, c.token_width), (c.groups * c.token_width, width)
        self.words = self.param("words", Initial(1.0), words)
        self.from_words = self.param("from_words", lecun_normal, flat)
        self.from_features = Dense(width, dtype=self.dtype)
        self.places = self.param("places", learned_vector, (c.positions, width))
        self.attention = [self.mixer() for _ in range(c.predictor_blocks)]
        self.feed_forward = [
            FeedForward(c.ff_ratio, c.dropout, self.dtype) for _ in range(c.predictor_blocks)
        ]
        self.out = Dense(c.groups * c.classes, dtype=self.dtype)

    def mixer(self) -> nn.Module:
        """The attention of one block: every position to every position."""
        return PositionAttention(self.config.heads, self.config.dropout, self.dtype)

    def table(self) -> Array:
        """`[G, K + 1, F]`: contribution of each group's token to its position's input."""
        if self.has_variable("params", "table"):  # see `with_tables`
            return self.get_variable("params", "table")
        c = self.config
        kernel = self.from_words.reshape(c.groups, c.token_width, -1)
        return jnp.einsum("we,gef->gwf", self.words, kernel).astype(self.dtype)

    def enter(self, features: Array, tokens: Array | None, places: Array) -> Array:
        """Input `[..., P, F]` of the transformer, F the predictor's width.

        features `[..., P, F]` from :class:`Spread`; tokens `[..., P, G]` int32 in [0, K], or None
        if all are the extra token K; places `[P, F]` embeddings of the positions.
        """
        table, projected = self.table(), self.from_features(features)
        if tokens is None:
            embedded = jnp.broadcast_to(table[:, -1].sum(0), projected.shape)
        else:
            embedded = embed_tokens(tokens, table)
        x = embedded + projected
        rows = x.reshape(-1, places.size)
        return (rows + spread_rows(places.astype(self.dtype).reshape(-1), rows)).reshape(x.shape)

    def blocks(self, x: Array, key: Key | None) -> Array:
        """The transformer blocks, all positions at once: x `[..., P, F]` -> the same shape.

        ``key`` `[...]`, of the leading axes of x, is consumed for dropout; None: no dropout.
        """
        c, lead = self.config, 0 if key is None else key.ndim
        noise = drop_noise(key, c.dropout, c.predictor_blocks, x.shape[lead:])

        def run(predictor: TokenPredictor, x: Array, block: int) -> Array:
            x = predictor.attention[block](x, noise[block][0])
            return predictor.feed_forward[block](x, noise[block][1])

        for block in range(self.config.predictor_blocks):
            x = recomputed(run, self.config.remat)(self, x, block)
        return x

    def leave(self, x: Array) -> Array:
        """`[..., F]` -> class logits `[..., G, K]`."""
        logits = self.out(x)
        return logits.reshape(*logits.shape[:-1], self.config.groups, self.config.classes)


class MaskGit(TokenPredictor):
    """p_mask(z_t | h_t, unmasked tokens): a small bidirectional transformer over the positions.

    The extra token is MASK.
    """

    def __call__(self, features: Array, tokens: Array | None, key: Key | None = None) -> Array:
        """Logits `[..., P, G, K]` of every token, masked or not, in the compute type.

        features `[..., P, F]`; tokens `[..., P, G]` int32, K meaning MASK, or None if all are MASK;
        ``key`` as in :meth:`blocks`.
        """
        return self.leave(self.blocks(self.enter(features, tokens, self.places), key))


class Flow(TokenPredictor):
    """p_flow(z_t | h_t, noisy tokens, s): discrete flow matching from uniform noise.

    At time s in [0, 1] each token has its class with probability s, else one of the K at random
    (arXiv 2407.15595, the linear path from a uniform source). The extra token is not used.
    """

    def setup(self) -> None:
        super().setup()
        self.from_time = Dense(self.config.predictor_width, dtype=self.dtype)

    def __call__(
        self, features: Array, tokens: Array, time: Array, key: Key | None = None
    ) -> Array:
        """Logits `[..., P, G, K]` of every token's class, in the compute type.

        features `[..., P, F]`; tokens `[..., P, G]` int32 in [0, K); time s `[...]` float32, or one
        number for all; ``key`` as in :meth:`blocks`.
        """
        waves = jnp.cos(jnp.multiply.outer(jnp.pi * jnp.asarray(time), jnp.arange(WAVES)))
        x, late = self.enter(features, tokens, self.places), self.from_time(waves)[..., None, :]
        return self.leave(self.blocks(x + jnp.broadcast_to(late, x.shape), key))


class CausalAttention(nn.Module):
    """Post-norm causal self-attention over positions; ``width`` is F, dropout on the output."""

    heads: int
    dropout: float
    width: int
    dtype: jnp.dtype

    def setup(self) -> None:
        self.qkv = Dense(3 * self.width, dtype=self.dtype)
        self.out = Dense(self.width, dtype=self.dtype)
        self.norm = Norm(dtype=self.dtype)

    def project(self, x: Array) -> tuple[Array, Array, Array]:
        """`[..., F]` -> query, key, value, each `[..., heads, F / heads]`."""
        qkv = self.qkv(x).reshape(*x.shape[:-1], 3, self.heads, self.width // self.heads)
        return qkv[..., 0, :, :], qkv[..., 1, :, :], qkv[..., 2, :, :]

    def attend(self, x: Array, visible: Array, query: Array, keys: Array, values: Array) -> Array:
        """Attention and output projection `[..., Q, F]`, without dropout, residual and norm.

        Of x `[..., Q, F]` only the shape is used; visible `[Q, P]` bool; query `[..., Q, heads, F /
        heads]`, keys and values `[..., P, heads, F / heads]`.
        """
        scores = jnp.einsum("...qhd,...khd->...hqk", query, keys).astype(jnp.float32)
        scores = scores * query.shape[-1] ** -0.5
        scores = jnp.where(jnp.broadcast_to(visible, scores.shape), scores, HIDDEN)
        weights = jax.nn.softmax(scores, axis=-1).astype(self.dtype)
        return self.out(jnp.einsum("...hqk,...khd->...qhd", weights, values).reshape(x.shape))

    def __call__(self, x: Array, noise: Array | None = None) -> Array:
        """All positions at once: x `[..., P, F]` -> the same shape; ``noise`` as in `drop`."""
        visible = jnp.tril(jnp.ones((x.shape[-2], x.shape[-2]), bool))
        mixed = self.attend(x, visible, *self.project(x))
        return self.norm(x + drop(mixed, self.dropout, noise))

    def step(self, x: Array, cache: Array, place: Array) -> tuple[Array, Array]:
        """One position x `[..., 1, F]` -> `[..., 1, F]`, and the cache with this position's entry.

        cache `[2, ..., P, heads, F / heads]`: keys and values, filled up to ``place`` `[]` int32.
        """
        query, key, value = self.project(x)
        new = jnp.stack([key, value])
        cache = jax.lax.dynamic_update_slice_in_dim(cache, new, place, axis=cache.ndim - 3)
        visible = (jnp.arange(cache.shape[-3]) <= place)[None]
        return self.norm(x + self.attend(x, visible, query, cache[0], cache[1])), cache


class Autoregressive(TokenPredictor):
    """p_ar(z_t | h_t) = product over positions p of p(z_t[p] | z_t[<p], h_t), in raster order.

    The G tokens of a position are independent of each other. The input of position p embeds the
    tokens of position p - 1; the extra token precedes the first. Sizes and embedding are those of
    :class:`MaskGit`. Decoding caches keys and values and computes each position once.
    """

    def mixer(self) -> nn.Module:
        """The attention of one block, to the positions before."""
        c = self.config
        return CausalAttention(c.heads, c.dropout, c.predictor_width, self.dtype)

    def __call__(self, features: Array, tokens: Array, key: Key | None = None) -> Array:
        """Logits `[..., P, G, K]` of every position given the true tokens of the positions before
        it.

        features `[..., P, F]`; tokens `[..., P, G]` int32, those of the last position unused;
        ``key`` as in :meth:`blocks`.
        """
        first = jnp.full_like(tokens[..., :1, :], self.config.classes)
        previous = jnp.concatenate([first, tokens[..., :-1, :]], axis=-2)
        return self.leave(self.blocks(self.enter(features, previous, self.places), key))

    def step(
        self, features: Array, previous: Array, place: Array, cache: Array
    ) -> tuple[Array, Array]:
        """Logits `[..., G, K]` of the position ``place`` `[]` int32, and the updated cache.

        features `[..., P, F]` of all positions; previous `[..., G]` int32, tokens of the position
        before, K before the first; cache from :func:`empty_cache` or the position before.
        """
        here = jax.lax.dynamic_slice_in_dim(features, place, 1, axis=features.ndim - 2)
        places = jax.lax.dynamic_slice_in_dim(self.places, place, 1)
        x = self.enter(here, previous[..., None, :], places)
        grown = []
        for block, feed_forward in enumerate(self.feed_forward):
            x, entry = self.attention[block].step(x, cache[block], place)
            x = feed_forward(x)
            grown.append(entry)
        return self.leave(x)[..., 0, :, :], jnp.stack(grown)


def empty_cache(config: ModelConfig, lead: tuple[int, ...], dtype: jnp.dtype) -> Array:
    """Empty KV cache `[blocks, 2, ..., P, heads, F / heads]` for all positions."""
    size = (config.heads, config.predictor_width // config.heads)
    return jnp.zeros((config.predictor_blocks, 2, *lead, config.positions, *size), dtype)
