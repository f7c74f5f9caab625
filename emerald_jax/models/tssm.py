"""The temporal transformer (TSSM): h_t = f(z_{1:t-1}, a_{1:t-1}), cached, with relative positions.

*Token* t holds z_{t-1} and the action stored at t. It attends to the tokens of its own episode at
most C steps back. Positions enter only as distances (Transformer-XL, arXiv 1901.02860), so cached
keys stay valid as the window slides. :meth:`Tssm.__call__` reads L tokens after C cached ones
(acting has L = 1); :meth:`Tssm.imagine` adds one token to each of n rollouts, which share one real
past without copying it.
"""

from __future__ import annotations

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from emerald_jax.config import ModelConfig
from emerald_jax.models.layers import (
    HIDDEN,
    Dense,
    FeedForward,
    Norm,
    drop,
    drop_noise,
    learned_vector,
    recomputed,
    sinusoids,
    spread_rows,
)
from emerald_jax.models.sequence import SequenceModel, first_reset
from emerald_jax.types import Array, Key, Memory, Starts, State


def skew(terms: Array, keys: int) -> Array:
    """Shift row i right by i: terms `[..., L, C + 1]` per distance -> `[..., L, keys]` per key.

    Row i holds one term per distance C, C-1, ..., 0; key j of C + L is C + i - j steps back.
    Padding and a reshape do this without a gather. Entries outside the band are arbitrary and must
    be masked.
    """
    *lead, length, distances = terms.shape
    padded = jnp.pad(terms, [(0, 0)] * (terms.ndim - 1) + [(0, keys + 1 - distances)])
    return padded.reshape(*lead, -1)[..., : length * keys].reshape(*lead, length, keys)


class OwnMemory(NamedTuple):
    """Keys and values of the imagined tokens of n rollouts, one array for each block.

    Attributes:
        keys: `[..., n, H, heads, D / heads]` of every block.
        values: `[..., n, H, heads, D / heads]` of every block.
    """

    keys: tuple[Array, ...]
    values: tuple[Array, ...]


class SharedPast(NamedTuple):
    """The real past of n rollouts that start in one sequence.

    Attributes:
        position: `[..., n]` int32, index of each start's own token in ``prefix``.
        prefix: :class:`Memory` of T real tokens, shared by all n starts; its ``valid`` is unused.
        visible: `[..., n, T]` bool, the real tokens of each start's own episode up to itself.
    """

    position: Array
    prefix: Memory
    visible: Array

    def room(self, horizon: int) -> OwnMemory:
        """An empty cache for H imagined tokens of every rollout."""
        blocks, _, *size = self.prefix.keys.shape[-4:]
        empty = jnp.zeros((*self.position.shape, horizon, *size), self.prefix.keys.dtype)
        return OwnMemory((empty,) * blocks, (empty,) * blocks)


class History(NamedTuple):
    """The tokens of one pass over L real steps.

    Attributes:
        memory: :class:`Memory` of the C cached and L new tokens.
        visible: `[..., L, C + L]` bool, the tokens of each step's own episode up to itself, at any
            distance.
    """

    memory: Memory
    visible: Array

    def past(self, positions: Array) -> SharedPast:
        """Shared past of rollouts that start at steps `[n]`; keys and values are not copied."""
        length, tokens = self.visible.shape[-2:]
        visible = self.visible[..., positions, :]
        places = jnp.broadcast_to(positions + tokens - length, visible.shape[:-1])
        return SharedPast(places, self.memory, visible)


class RelativeAttention(nn.Module):
    """Post-norm multi-head attention with relative positions, over given keys and values."""

    config: ModelConfig
    dtype: jnp.dtype

    def setup(self) -> None:
        c = self.config
        self.qkv = Dense(3 * c.width, dtype=self.dtype)
        self.distance = Dense(c.width, use_bias=False, dtype=self.dtype)
        self.out = Dense(c.width, dtype=self.dtype)
        self.norm = Norm(dtype=self.dtype)
        shape = (c.heads, c.width // c.heads)
        self.content_bias = self.param("content_bias", learned_vector, shape)
        self.distance_bias = self.param("distance_bias", learned_vector, shape)

    def project(self, x: Array) -> tuple[Array, Array, Array]:
        """`[..., D]` -> query, key, value, each `[..., heads, D / heads]`."""
        qkv = self.qkv(x).reshape(*x.shape[:-1], 3, self.config.heads, -1)
        return qkv[..., 0, :, :], qkv[..., 1, :, :], qkv[..., 2, :, :]

    def biased(self, query: Array) -> tuple[Array, Array]:
        """The two scaled queries of Transformer-XL: one for keys, one for distances."""
        scale, rows = query.shape[-1] ** -0.5, query.reshape(-1, self.config.width)
        biases = (self.content_bias, self.distance_bias)
        content, distance = (
            (rows + spread_rows(bias.astype(self.dtype).reshape(-1), rows)).reshape(query.shape)
            for bias in biases
        )
        return content * scale, distance * scale

    def table(self) -> Array:
        """`[C + 1, heads, d]`, a key for each distance, farthest first."""
        if self.has_variable("params", "table"):  # see `with_tables`
            return self.get_variable("params", "table")
        c = self.config
        far_to_near = jnp.arange(c.context, -1, -1)
        table = self.distance(sinusoids(far_to_near, c.width).astype(self.dtype))
        return table.reshape(c.context + 1, c.heads, -1)

    def distance_terms(self, query: Array) -> Array:
        """`[..., T, heads, d]` -> `[..., heads, T, C + 1]`, a term per distance, farthest first."""
        return jnp.einsum("...qhd,mhd->...hqm", query, self.table())

    def finish(self, x: Array, mixed: Array, noise: Array | None) -> Array:
        """Output projection, dropout, residual and norm."""
        y = self.out(mixed.reshape(x.shape))
        return self.norm(x + drop(y, self.config.dropout, noise))

    def chunk(
        self, x: Array, past: tuple[Array, Array], visible: Array, noise: Array | None
    ) -> tuple[Array, Array, Array]:
        """L queries x `[..., L, D]` over C cached and L own keys -> x's shape, and keys and values.

        past: keys and values `[..., C, heads, D / heads]`; visible `[..., L, C + L]` bool; noise as
        in :func:`drop`. The returned keys and values are `[..., C + L, heads, D / heads]`.
        """
        query, key, value = self.project(x)
        keys = jnp.concatenate([past[0].astype(self.dtype), key], axis=-3)
        values = jnp.concatenate([past[1].astype(self.dtype), value], axis=-3)
        weights = self.weights(query, keys, visible).astype(self.dtype)
        mixed = jnp.einsum("...hqk,...khd->...qhd", weights, values)
        return self.finish(x, mixed, noise), keys, values

    def weights(self, query: Array, keys: Array, visible: Array) -> Array:
        """Attention of L queries to C + L keys, `[..., heads, L, C + L]` float32; see `chunk`."""
        content, distance = self.biased(query)
        scores = jnp.einsum("...qhd,...khd->...hqk", content, keys)
        scores = scores + skew(self.distance_terms(distance), keys.shape[-3])
        return masked_softmax(scores, visible)

    def imagine(
        self,
        x: Array,
        prefix: tuple[Array, Array],
        own: tuple[Array, Array],
        step: Array,
        visible: Array,
        columns: Array,
    ) -> tuple[Array, Array, Array]:
        """One new query per rollout over the shared prefix and its own imagined keys.

        Args:
            x: `[..., n, D]`.
            prefix: shared keys and values `[..., T, heads, D / heads]`.
            own: keys and values `[..., n, H, heads, D / heads]`, filled up to ``step``.
            step: `[]` int32, imagined tokens before this one.
            visible: `[..., n, T + H]` bool, the real and own tokens that the query attends to.
            columns: `[..., n, C + 1, T + H]` one-hot, the distance term of each token.

        Returns:
            `[..., n, D]`, and ``own`` with this token written at ``step``.
        """
        query, key, value = self.project(x)
        keys, values = (
            jax.lax.dynamic_update_slice_in_dim(cache, new[..., None, :, :], step, axis=x.ndim - 1)
            for cache, new in zip(own, (key, value), strict=True)
        )
        content, positional = self.biased(query)
        shared = jnp.einsum("...nhd,...thd->...hnt", content, prefix[0])
        imagined = jnp.einsum("...nhd,...nkhd->...hnk", content, keys)
        scores = jnp.concatenate([shared, imagined], axis=-1)
        # A product with one-hot columns is exact; accelerators gather slowly.
        terms = jnp.einsum(
            "...hnm,...nmk->...hnk",
            self.distance_terms(positional),
            columns,
            precision=jax.lax.Precision.HIGHEST,
        )
        weights = masked_softmax(scores + terms, visible).astype(self.dtype)
        length = prefix[0].shape[-3]
        mixed = jnp.einsum("...hnt,...thd->...nhd", weights[..., :length], prefix[1])
        mixed = mixed + jnp.einsum("...hnk,...nkhd->...nhd", weights[..., length:], values)
        return self.finish(x, mixed, None), keys, values


def masked_softmax(scores: Array, visible: Array) -> Array:
    """Float32 weights of ``scores`` `[..., heads, Q, K]` where ``visible`` `[..., Q, K]`."""
    visible = jnp.broadcast_to(visible[..., None, :, :], scores.shape)
    scores = jnp.where(visible, scores.astype(jnp.float32), HIDDEN)
    return jax.nn.softmax(scores, axis=-1)


class Tssm(SequenceModel):
    """The paper's temporal transformer; see the module docstring."""

    def setup(self) -> None:
        super().setup()
        c = self.config
        self.enter = Dense(c.width, dtype=self.dtype)
        self.attention = [RelativeAttention(c, self.dtype) for _ in range(c.blocks)]
        self.feed_forward = [
            FeedForward(c.ff_ratio, c.dropout, self.dtype) for _ in range(c.blocks)
        ]

    def embed(self, z_prev: Array, action: Array, reset: Array | None = None) -> Array:
        return self.enter(self.joined(z_prev, action, reset))

    def __call__(
        self, z_prev: Array, action: Array, reset: Array, memory: Memory, key: Key | None = None
    ) -> tuple[Array, Memory, History]:
        """See :meth:`SequenceModel.__call__`; the memory is the newest C tokens."""
        c = self.config
        # Without a valid newest token z_{t-1} is unknown (an empty carry): the first step resets.
        reset = first_reset(reset, memory.valid[..., -1])
        x = self.embed(z_prev, action, reset)
        same_episode = episode_mask(memory.valid, reset)
        length = x.shape[-2]
        back = c.context + jnp.arange(length)[:, None] - jnp.arange(c.context + length)[None]
        visible = same_episode & jnp.broadcast_to(back <= c.context, same_episode.shape)
        noise = drop_noise(key, c.dropout, c.blocks, x.shape[-2:])
        keys, values = [], []

        def run(tssm: Tssm, x: Array, block: int) -> tuple[Array, Array, Array]:
            past = (memory.keys[..., block, :, :, :], memory.values[..., block, :, :, :])
            x, k, v = tssm.attention[block].chunk(x, past, visible, noise[block][0])
            return tssm.feed_forward[block](x, noise[block][1]), k, v

        for block in range(c.blocks):
            x, k, v = recomputed(run, c.remat)(self, x, block)
            keys.append(k)
            values.append(v)
        every = Memory(jnp.stack(keys, -4), jnp.stack(values, -4), same_episode[..., -1, :])
        newest = slice(-c.context, None)
        memory = Memory(
            every.keys[..., newest, :, :], every.values[..., newest, :, :], every.valid[..., newest]
        )
        return x, memory, History(every, same_episode)

    def imagine(
        self, state: State, action: Array, step: Array, starts: Starts, own: OwnMemory
    ) -> tuple[Array, OwnMemory]:
        """See :meth:`SequenceModel.imagine`; the rollouts' keys and values replace ``state.h``."""
        c, past = self.config, starts.past
        horizon = own.keys[0].shape[-3]
        # Distance from the new token, at start position + step + 1, back to every real token;
        # -1 hides tokens of other episodes and tokens after the start.
        now = past.position + step + 1
        tokens = jnp.arange(past.visible.shape[-1])
        real = now[..., None] - jnp.broadcast_to(tokens, past.visible.shape)
        imagined = jnp.broadcast_to(step - jnp.arange(horizon), (*now.shape, horizon))
        distances = jnp.concatenate([jnp.where(past.visible, real, -1), imagined], axis=-1)
        visible = (distances >= 0) & (distances <= c.context)
        columns = jax.nn.one_hot(c.context - distances, c.context + 1, axis=-2, dtype=self.dtype)
        x = self.embed(state.z, action)
        keys, values = [], []
        for block in range(c.blocks):
            x, k, v = self.attention[block].imagine(
                x,
                (past.prefix.keys[..., block, :, :, :], past.prefix.values[..., block, :, :, :]),
                (own.keys[block], own.values[block]),
                step,
                visible,
                columns,
            )
            x = self.feed_forward[block](x)
            keys.append(k)
            values.append(v)
        return x, OwnMemory(tuple(keys), tuple(values))

    @staticmethod
    def empty_memory(config: ModelConfig, dtype: jnp.dtype) -> Memory:
        """A memory of C invalid tokens."""
        shape = (config.blocks, config.context, config.heads, config.width // config.heads)
        return Memory(*jnp.zeros((2, *shape), dtype), jnp.zeros((config.context,), bool))


def episode_mask(valid: Array, reset: Array) -> Array:
    """Mask `[..., L, C + L]` of the tokens of a step's own episode that are not in its future.

    valid `[..., C]` bool: cached tokens of the episode running before this chunk; reset `[..., L]`
    bool.
    """
    segment = jnp.cumsum(reset.astype(jnp.int32), axis=-1)
    cached = (segment == 0)[..., :, None] & valid[..., None, :]
    own = segment[..., :, None] == segment[..., None, :]
    past = jnp.tril(jnp.ones(own.shape[-2:], bool))
    return jnp.concatenate([cached, own & jnp.broadcast_to(past, own.shape)], axis=-1)
