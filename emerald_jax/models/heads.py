"""MLP heads on the state s_t = (z_t, h_t): reward, continue, actor, critic (DreamerV3)."""

from __future__ import annotations

import math
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from emerald_jax.actions import ActionSpace
from emerald_jax.config import Config, ModelConfig
from emerald_jax.models.layers import (
    Dense,
    Initial,
    LatentProjection,
    NormSilu,
    compute_dtype,
    init_together,
)
from emerald_jax.ops.distributions import Policy
from emerald_jax.types import Array, Key, Params, State


class Head(nn.Module):
    """Trunk of section 2.6 and one linear layer of width ``outputs``.

    z_t -> 1x1 convolution, norm, SiLU -> flatten -> linear D, concatenated with h_t -> hidden
    layers of width D (linear, norm, SiLU) -> linear. ``scale`` is the variance scale of the last
    layer's initialiser; 0 initialises it to zero, so that an untrained two-hot head predicts 0
    (DreamerV3). ``dtype`` is the trunk's; the last layer is float32.
    """

    config: ModelConfig
    outputs: int
    scale: float
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, z: Array, h: Array) -> Array:
        """z `[..., P, G]` int32 or `[..., P, G, K]`, h `[..., D]` -> logits `[..., outputs]`
        float32.
        """
        c = self.config
        x = LatentProjection(c.groups, c.classes, c.latent_channels, self.dtype)(z)
        x = NormSilu(dtype=self.dtype)(x)
        x = Dense(c.width, dtype=self.dtype)(x.reshape(*h.shape[:-1], -1))
        x = jnp.concatenate([x, h.astype(self.dtype)], axis=-1)
        for _ in range(c.head_layers):
            x = NormSilu(dtype=self.dtype)(Dense(c.width, dtype=self.dtype)(x))
        init = Initial(math.sqrt(self.scale), fan=True)
        return Dense(self.outputs, kernel_init=init, dtype=jnp.float32)(x)


class ActorCritic(NamedTuple):
    """The actor and critic networks. Their parameters are separate: each has its own optimiser.

    Attributes:
        actor: :class:`Head` with a logit per class and two outputs per number of an action.
        critic: :class:`Head` with one output per two-hot bin, initialised to zero.
        unimix: share of the uniform distribution in the policy's categories.
        actions: what the policy chooses.
    """

    actor: Head
    critic: Head
    unimix: float
    actions: ActionSpace

    def policy(self, params: Params, state: State) -> Policy:
        """The distribution of the actions `[...]` taken in ``state`` `[...]`."""
        outputs = self.actor.apply({"params": params}, state.z, state.h)
        return Policy(self.actions, outputs, self.unimix)

    def value_logits(self, params: Params, state: State) -> Array:
        """Two-hot logits `[..., bins]` float32 of the return."""
        return self.critic.apply({"params": params}, state.z, state.h)


def build_actor_critic(config: Config, actions: ActionSpace) -> ActorCritic:
    """Actor and critic of a configuration; parameters come from :func:`init_actor_critic`."""
    c, dtype = config.model, compute_dtype(config.model.dtype)
    actor, critic = Head(c, actions.outputs, 0.01, dtype), Head(c, c.bins, 0.0, dtype)
    return ActorCritic(actor, critic, c.unimix, actions)


def init_actor_critic(actor_critic: ActorCritic, key: Key) -> tuple[dict, dict]:
    """Initial parameters of actor and critic; ``key`` is consumed."""
    c = actor_critic.actor.config
    actor_key, critic_key = jax.random.split(key)

    def init(head: Head, key: Key) -> dict:
        def params(key: Key) -> dict:
            z = jnp.zeros((1, c.positions, c.groups), jnp.int32)
            return head.init(key, z, jnp.zeros((1, c.width)))["params"]

        return init_together(params, key)

    return init(actor_critic.actor, actor_key), init(actor_critic.critic, critic_key)
