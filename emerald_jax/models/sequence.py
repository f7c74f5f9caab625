"""Sequence models h_t = f(z_{1:t-1}, a_{1:t-1}): their interface, and DreamerV3's GRU.

The paper's transformer is ``tssm.Tssm``. Both models join the embedded z_{t-1} with the action;
after a reset a learned vector replaces the embedding.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from emerald_jax.actions import ActionSpace
from emerald_jax.config import ModelConfig
from emerald_jax.models.layers import Dense, LatentProjection, Norm, NormSilu, learned_vector
from emerald_jax.types import Array, Key, Recurrent, Starts, State


class SequenceModel(nn.Module):
    """Interface of the sequence models, and their shared input layers.

    A pass over real steps returns a *history*. ``history.past(positions)`` is the shared context of
    rollouts that start at steps `[n]` (field ``past`` of :class:`Starts`); ``past.room(horizon)``
    is an empty KV cache for their imagined tokens. Both are pytrees defined by the model.
    """

    config: ModelConfig
    actions: ActionSpace
    dtype: jnp.dtype

    def setup(self) -> None:
        c = self.config
        self.latent = LatentProjection(c.groups, c.classes, c.latent_channels, self.dtype)
        self.latent_norm = NormSilu(dtype=self.dtype)
        self.flat = Dense(c.width, dtype=self.dtype)
        self.join = Dense(c.width, dtype=self.dtype)
        self.join_norm = NormSilu(dtype=self.dtype)
        self.start = self.param("start", learned_vector, (c.width,))

    def joined(self, z_prev: Array, action: Array, reset: Array | None = None) -> Array:
        """Join z_{t-1} and the action `[...]` that led into each step: `[..., D]`.

        Where ``reset`` `[...]` is set, z_{t-1} is unknown and a learned vector replaces it (None:
        nowhere). The action becomes a vector, see :func:`encode_action`.
        """
        lead = action.shape[: action.ndim - len(self.actions.shape)]
        z = self.latent_norm(self.latent(z_prev))
        z = self.flat(z.reshape(*lead, -1))
        if reset is not None:
            start = jnp.broadcast_to(self.start.astype(self.dtype), z.shape)
            z = jnp.where(reset[..., None], start, z)
        a = encode_action(action, self.actions, self.dtype)
        return self.join_norm(self.join(jnp.concatenate([z, a], axis=-1)))

    def __call__(
        self, z_prev: Array, action: Array, reset: Array, memory: Any, key: Key | None = None
    ) -> tuple[Array, Any, Any]:
        """Read L steps of sequences `[...]`, given the memory of the steps before.

        Args:
            z_prev: `[..., L, P, G]` int32 or `[..., L, P, G, K]` float, z_{t-1} of every step.
            action: `[..., L]` int32, or `[..., L, A]` float32.
            reset: `[..., L]` bool, forget everything before the step.
            memory: from :meth:`empty_memory` or from the chunk before, `[...]`.
            key: `[...]`, consumed for dropout; None: no dropout.

        Returns:
            h `[..., L, D]`; the memory for the next chunk; the history.
        """
        raise NotImplementedError

    def imagine(
        self, state: State, action: Array, step: Array, starts: Starts, own: Any
    ) -> tuple[Array, Any]:
        """One imagined step of n rollouts: h `[..., n, D]` and the updated ``own``.

        Args:
            state: :class:`State` `[..., n]`, the newest of each rollout, class indices.
            action: `[..., n]` int32 or `[..., n, A]` float32, the action taken in it.
            step: `[]` int32, imagined steps before this one.
            starts: :class:`Starts`; its ``past`` must come from this model.
            own: cache of the rollouts' imagined tokens, initially ``past.room(horizon)``.
        """
        raise NotImplementedError

    @staticmethod
    def empty_memory(config: ModelConfig, dtype: jnp.dtype) -> Any:
        """The memory at the start of one sequence: all zeros, nothing valid."""
        raise NotImplementedError


def encode_action(action: Array, actions: ActionSpace, dtype: jnp.dtype) -> Array:
    """Actions as vectors `[..., actions.width]`: one-hot categories, numbers cut to [-1, 1].

    All zeros where there was no action (see ``emerald_jax/actions.py``).
    """
    if actions.discrete:
        return jax.nn.one_hot(action, actions.sizes[0], dtype=dtype)
    none, parts = jnp.isnan(action), []
    for at, size in actions.groups():
        part, gone = (x[..., at : at + max(1, -size)] for x in (action, none))
        if size > 0:
            index = jnp.where(gone, -1, part)[..., 0].astype(jnp.int32)
            parts.append(jax.nn.one_hot(index, size, dtype=dtype))
        else:
            parts.append(jnp.where(gone, 0, jnp.clip(part, -1, 1)).astype(dtype))
    return jnp.concatenate(parts, axis=-1)


class NoPast(NamedTuple):
    """Empty history and past of a GRU, whose h_t is its complete memory; nothing to cache."""

    def past(self, positions: Array) -> NoPast:
        del positions
        return self

    def room(self, horizon: int) -> tuple:
        del horizon
        return ()


class Rssm(SequenceModel):
    """DreamerV3's recurrent sequence model (arXiv 2301.04104): a GRU whose state is h_t.

    One GRU with a normalised gate layer, s the sigmoid:

        u, r, c = split(norm(W_x x + W_h h));  h' = s(u - 1) tanh(s(r) c) + (1 - s(u - 1)) h

    The -1 biases an untrained network towards remembering. Episodes begin from a learned state, as
    in DreamerV3. Two other parts of DreamerV3 are separate: a posterior that depends on h_t
    (``model.posterior``), and the prior's MLP (``prior.Spread`` with the dynamics head).
    """

    def setup(self) -> None:
        super().setup()
        width = self.config.width
        self.initial = self.param("initial", learned_vector, (width,))
        self.from_input = Dense(3 * width, use_bias=False, dtype=self.dtype)
        self.from_state = Dense(3 * width, use_bias=False, dtype=self.dtype)
        self.gate_norm = Norm(dtype=self.dtype)

    def cell(self, h: Array, drive: Array, reset: Array | None = None) -> Array:
        """One step of the GRU: h `[..., D]` and drive `[..., 3 D]`, W_x x of the input -> `[...,
        D]`.

        Where ``reset`` `[...]` is set, begin from the learned state; None if no step is a reset.
        """
        if reset is not None:
            initial = jnp.broadcast_to(jnp.tanh(self.initial).astype(self.dtype), h.shape)
            h = jnp.where(reset[..., None], initial, h)
        gates = self.gate_norm(drive + self.from_state(h))
        update, forget, candidate = jnp.split(gates, 3, axis=-1)
        candidate = jnp.tanh(nn.sigmoid(forget) * candidate)
        update = nn.sigmoid(update - 1)
        return update * candidate + (1 - update) * h

    def step(self, h: Array, z_prev: Array, action: Array, reset: Array) -> Array:
        """h_t `[..., D]` from h_{t-1}, z_{t-1}, the action and the reset flag."""
        return self.cell(h, self.from_input(self.joined(z_prev, action, reset)), reset)

    def __call__(
        self,
        z_prev: Array,
        action: Array,
        reset: Array,
        memory: Recurrent,
        key: Key | None = None,
    ) -> tuple[Array, Recurrent, NoPast]:
        """See :meth:`SequenceModel.__call__`; only the recurrence itself runs step by step."""
        del key  # no dropout, as in DreamerV3
        reset = first_reset(reset, memory.valid)
        drive = self.from_input(self.joined(z_prev, action, reset))

        def body(model: Rssm, h: Array, inputs: tuple[Array, Array]) -> tuple[Array, Array]:
            h = model.cell(h, *inputs)
            return h, h

        scan = nn.scan(
            body,
            variable_broadcast="params",
            split_rngs={"params": False},
            in_axes=reset.ndim - 1,
            out_axes=reset.ndim - 1,
        )
        last, h = scan(self, memory.h, (drive, reset))
        return h, Recurrent(last, jnp.ones_like(memory.valid)), NoPast()

    def imagine(
        self, state: State, action: Array, step: Array, starts: Starts, own: tuple
    ) -> tuple[Array, tuple]:
        """See :meth:`SequenceModel.imagine`; only the state is used."""
        del step, starts
        return self.cell(state.h, self.from_input(self.joined(state.z, action))), own

    @staticmethod
    def empty_memory(config: ModelConfig, dtype: jnp.dtype) -> Recurrent:
        """An invalid state: the first step becomes a reset."""
        return Recurrent(jnp.zeros((config.width,), dtype), jnp.zeros((), bool))


def first_reset(reset: Array, valid: Array) -> Array:
    """``reset`` `[..., L]`, also True at the first step unless the memory is ``valid`` `[...]`."""
    first = jnp.broadcast_to(jnp.arange(reset.shape[-1]) == 0, reset.shape)
    return reset | (first & ~valid[..., None])
