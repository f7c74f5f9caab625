"""What a sequence model is: h_t = f(z_{1:t-1}, a_{1:t-1}), read at once or imagined step by step.

Two of them stand behind one interface: the paper's transformer (``tssm``) and DreamerV3's GRU
(``rssm``). Both enter a step in the same way: z_{t-1} is embedded, a learned vector standing in for
it where nothing is known of the past, and joined with the action.

DreamerV3's recurrent sequence model (RSSM): a GRU whose state is h_t (arXiv 2301.04104).

z_{t-1} and the action enter as in the transformer, then one GRU with a normalised gate layer:

    u, r, c = split(norm(W_x x + W_h h));  h' = s(u - 1) tanh(s(r) c) + (1 - s(u - 1)) h

with s the sigmoid; the -1 lets a fresh network remember. DreamerV3 begins an episode from a learned
state, and so does this one.

Two ways of DreamerV3 lie outside: whether the posterior sees h_t (``model.posterior``) and the
prior's MLP (``prior.Spread`` with the dynamics head).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from emerald_jax.config import ModelConfig
from emerald_jax.models.layers import Dense, LatentProjection, Norm, NormSilu, learned_vector
from emerald_jax.types import Array, Recurrent, Starts, State


class SequenceModel(nn.Module):
    """Interface of the sequence models, and the entrance they share.

    A pass over real steps leaves a *history*, whose method ``past(positions)`` is what rollouts
    that start at steps `[n]` look back at (:class:`Starts`); a past's method ``room(horizon)`` is
    the empty memory that such rollouts fill by themselves. Both are pytrees of the model's own.

    Attributes:
        config: sizes.
        num_actions: A.
        dtype: compute type.
    """

    config: ModelConfig
    num_actions: int
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
        """What led into each step, as one vector.

        Where ``reset`` is set nothing is known of z_{t-1}: a learned vector stands in, the same in
        training and acting. The action is a one-hot vector, zero where there was none (-1).

        Args:
            z_prev: `[T, P, G]` int32 or `[T, P, G, K]` float.
            action: `[T]` int32.
            reset: `[T]` bool, or None when no step is a reset.

        Returns:
            `[T, D]`.
        """
        z = self.latent_norm(self.latent(z_prev))
        z = self.flat(z.reshape(z.shape[0], -1))
        if reset is not None:
            start = jnp.broadcast_to(self.start.astype(self.dtype), z.shape)
            z = jnp.where(reset[:, None], start, z)
        a = jax.nn.one_hot(action, self.num_actions, dtype=self.dtype)
        return self.join_norm(self.join(jnp.concatenate([z, a], axis=-1)))

    def __call__(
        self, z_prev: Array, action: Array, reset: Array, memory: Any, deterministic: bool = True
    ) -> tuple[Array, Any, Any]:
        """Read L steps of one sequence after a memory of what lies before.

        Args:
            z_prev: `[L, P, G]` int32 or `[L, P, G, K]` float, z_{t-1} of every step.
            action: `[L]` int32.
            reset: `[L]` bool, forget everything before the step.
            memory: of :meth:`empty_memory` or an earlier chunk.
            deterministic: no dropout.

        Returns:
            h `[L, D]`; the memory for the next chunk; the history.
        """
        raise NotImplementedError

    def imagine(
        self, state: State, action: Array, step: Array, starts: Starts, own: Any
    ) -> tuple[Array, Any]:
        """One imagined step of n rollouts.

        Args:
            state: :class:`State` `[n]`, the newest of each rollout, class indices.
            action: `[n]` int32, the action taken there.
            step: `[]` int32, imagined steps before this one.
            starts: :class:`Starts`, whose past is this model's.
            own: what the rollouts have added to it, at first its ``room``.

        Returns:
            h `[n, D]` and the grown ``own``.
        """
        raise NotImplementedError

    @staticmethod
    def empty_memory(config: ModelConfig, dtype: jnp.dtype) -> Any:
        """All zeros: the memory of one sequence of which nothing is known."""
        raise NotImplementedError


class NoPast(NamedTuple):
    """History and past of a GRU: h_t is all there is to know."""

    def past(self, positions: Array) -> NoPast:
        """The same nothing, wherever a rollout starts."""
        del positions
        return self

    def room(self, horizon: int) -> tuple:
        """Nothing is added either: a rollout's state holds its h."""
        del horizon
        return ()


class Rssm(SequenceModel):
    """GRU over the steps of a sequence; h_t is its whole memory."""

    def setup(self) -> None:
        super().setup()
        width = self.config.width
        self.initial = self.param("initial", learned_vector, (width,))
        self.from_input = Dense(3 * width, use_bias=False, dtype=self.dtype)
        self.from_state = Dense(3 * width, use_bias=False, dtype=self.dtype)
        self.gate_norm = Norm(dtype=self.dtype)

    def cell(self, h: Array, drive: Array, reset: Array | None = None) -> Array:
        """One step of the GRU.

        Args:
            h: `[..., D]` the state before.
            drive: `[..., 3 D]` the input's share of the gates.
            reset: `[...]` bool, begin from the learned state; None when no step is a reset.

        Returns:
            `[..., D]`.
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
        """h_t `[D]` from h_{t-1}, z_{t-1}, a_t and whether t is a reset: one step, no batch."""
        x = self.joined(z_prev[None], action[None], reset[None])
        return self.cell(h[None], self.from_input(x), reset[None])[0]

    def __call__(
        self,
        z_prev: Array,
        action: Array,
        reset: Array,
        memory: Recurrent,
        deterministic: bool = True,
    ) -> tuple[Array, Recurrent, NoPast]:
        """See :meth:`SequenceModel.__call__`; all but the recurrence is computed at once."""
        del deterministic  # no dropout, as in DreamerV3
        reset = first_reset(reset, memory)
        drive = self.from_input(self.joined(z_prev, action, reset))

        def body(model: Rssm, h: Array, inputs: tuple[Array, Array]) -> tuple[Array, Array]:
            h = model.cell(h, *inputs)
            return h, h

        scan = nn.scan(body, variable_broadcast="params", split_rngs={"params": False})
        last, h = scan(self, memory.h, (drive, reset))
        return h, Recurrent(last, jnp.ones((), bool)), NoPast()

    def imagine(
        self, state: State, action: Array, step: Array, starts: Starts, own: tuple
    ) -> tuple[Array, tuple]:
        """See :meth:`SequenceModel.imagine`; nothing but the state is needed."""
        del step, starts
        return self.cell(state.h, self.from_input(self.joined(state.z, action))), own

    @staticmethod
    def empty_memory(config: ModelConfig, dtype: jnp.dtype) -> Recurrent:
        """A state that is not valid: the first step will be a reset."""
        return Recurrent(jnp.zeros((config.width,), dtype), jnp.zeros((), bool))


def first_reset(reset: Array, memory: Recurrent) -> Array:
    """``reset`` `[L]`, also set at the first step when the memory is empty."""
    return reset | (~memory.valid & (jnp.arange(reset.shape[0]) == 0))
