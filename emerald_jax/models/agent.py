"""The agent: an actor and a critic, both heads on s_t (section 6; DreamerV3)."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from emerald_jax.config import Config
from emerald_jax.models.heads import Head
from emerald_jax.models.world_model import compute_dtype
from emerald_jax.ops.distributions import mixed_log_probs
from emerald_jax.types import Array, Key, Params, State


class Agent(NamedTuple):
    """The two networks; parameters travel apart, because each has its own optimiser.

    Attributes:
        actor: :class:`Head` with A outputs.
        critic: :class:`Head` with one output per two-hot bin, zero at the start.
        unimix: share of the uniform distribution in the policy.
    """

    actor: Head
    critic: Head
    unimix: float

    def policy(self, params: Params, state: State) -> Array:
        """Log-probabilities of the actions.

        Args:
            params: the actor's parameters.
            state: :class:`State` with any leading dimensions.

        Returns:
            `[..., A]` float32, uniform mixed in.
        """
        logits = self.actor.apply({"params": params}, state.z, state.h)
        return mixed_log_probs(logits, self.unimix)

    def value_logits(self, params: Params, state: State) -> Array:
        """Two-hot logits of the return.

        Args:
            params: the critic's (or the slow critic's) parameters.
            state: :class:`State` with any leading dimensions.

        Returns:
            `[..., bins]` float32.
        """
        return self.critic.apply({"params": params}, state.z, state.h)


def build_agent(config: Config, num_actions: int) -> Agent:
    """The agent of a configuration."""
    c, dtype = config.model, compute_dtype(config.model.dtype)
    return Agent(Head(c, num_actions, 0.01, dtype), Head(c, c.bins, 0.0, dtype), c.unimix)


def init_agent(agent: Agent, key: Key) -> tuple[dict, dict]:
    """Fresh parameters of actor and critic.

    Args:
        agent: from :func:`build_agent`.
        key: consumed.
    """
    c = agent.actor.config
    z = jnp.zeros((1, c.positions, c.groups), jnp.int32)
    h = jnp.zeros((1, c.width))
    actor_key, critic_key = jax.random.split(key)
    actor = agent.actor.init(actor_key, z, h)["params"]
    return actor, agent.critic.init(critic_key, z, h)["params"]
