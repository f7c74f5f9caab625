"""Acting: one compiled step that reads records, advances each environment's memory and acts.

The same step serves training and evaluation. Each environment carries the sequence model's memory
and its newest latent: the transformer's last C keys and values, so that the agent remembers
C x blocks steps back, or the GRU's state. At an episode's first frame a learned start stands in for
the past, exactly as in training.
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from emerald_jax.ops.distributions import sample_categorical
from emerald_jax.training.state import Learner
from emerald_jax.types import Array, Carry, Key, Params, State


class Observation(NamedTuple):
    """The part of a vector step that acting reads.

    Attributes:
        image: `[E, height, width, 3]` uint8.
        action: `[E]` int32, the action that led into the image; -1 on first frames.
        is_first: `[E]` bool.
    """

    image: Array
    action: Array
    is_first: Array


class Acted(NamedTuple):
    """What one acting step yields.

    Attributes:
        action: `[E]` int32.
        carry: :class:`Carry` `[E]` for the next step.
        finite: `[]` bool, False when any policy output was not a number.
        state: :class:`State` `[E]`, s_t of every environment.
    """

    action: Array
    carry: Carry
    finite: Array
    state: State


def act(
    params: dict[str, Params],
    carry: Carry,
    observation: Observation,
    key: Key,
    *,
    learner: Learner,
    mode: bool = False,
) -> Acted:
    """Choose one action for every environment.

    Args:
        params: ``world_model`` and ``actor``.
        carry: :class:`Carry` `[E]`.
        observation: :class:`Observation` `[E]`.
        key: consumed.
        learner: networks and settings (static).
        mode: the most probable action instead of a sample (static). The paper samples.

    Returns:
        :class:`Acted`.
    """
    keys = jax.random.split(key, observation.action.shape[0])
    one = partial(_act_one, params, learner=learner, mode=mode)
    action, new_carry, finite, state = jax.vmap(one)(carry, observation, keys)
    return Acted(action, new_carry, finite.all(), state)


def _act_one(
    params: dict[str, Params],
    carry: Carry,
    observation: Observation,
    key: Key,
    *,
    learner: Learner,
    mode: bool,
) -> tuple[Array, Carry, Array, State]:
    """:func:`act` for one environment; a chunk of length one through the training path."""
    latent_key, action_key = jax.random.split(key)
    net = learner.model.bind({"params": params["world_model"]})
    image, led, first = (x[None] for x in observation)
    seen = net.observe(image, led, first, carry, latent_key)
    log_probs = learner.agent.policy(params["actor"], seen.state)[0]
    sampled = sample_categorical(action_key, log_probs)
    action = jnp.argmax(log_probs).astype(jnp.int32) if mode else sampled
    state = jax.tree.map(lambda x: x[0], seen.state)
    return action, seen.carry, jnp.all(jnp.isfinite(log_probs)), state
