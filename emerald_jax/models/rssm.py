"""DreamerV3's recurrent sequence model (RSSM): a GRU whose state is h_t (arXiv 2301.04104).

z_{t-1} and the action enter as in the transformer, then one GRU with a normalised gate layer:

    u, r, c = split(norm(W_x x + W_h h));  h' = s(u - 1) tanh(s(r) c) + (1 - s(u - 1)) h

with s the sigmoid; the -1 lets a fresh network remember. DreamerV3 begins an episode from a learned
state, and so does this one.

Two ways of DreamerV3 lie outside: whether the posterior sees h_t (``model.posterior``) and the
prior's MLP (``prior.Spread`` with the dynamics head).
"""

from __future__ import annotations

from typing import NamedTuple

import flax.linen as nn
import jax.numpy as jnp

from emerald_jax.config import ModelConfig
from emerald_jax.models.layers import Dense, Norm, learned_vector
from emerald_jax.models.sequence import SequenceModel
from emerald_jax.types import Array, Recurrent, Starts, State


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
