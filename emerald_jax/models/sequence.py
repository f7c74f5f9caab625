"""What a sequence model is: h_t = f(z_{1:t-1}, a_{1:t-1}), read at once or imagined step by step.

Two of them stand behind one interface: the paper's transformer (``tssm``) and DreamerV3's GRU
(``rssm``). Both enter a step in the same way: z_{t-1} is embedded, a learned vector standing in for
it where nothing is known of the past, and joined with the action.
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from emerald_jax.config import ModelConfig
from emerald_jax.models.layers import Dense, LatentProjection, NormSilu, learned_vector
from emerald_jax.types import Array, Starts, State


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
