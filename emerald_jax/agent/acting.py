"""Acting: one compiled step that reads records, advances each environment's memory and acts.

The same step serves training and evaluation. Each environment carries the sequence model's memory
and its newest latent: the transformer's last C keys and values, so that the agent remembers
C x blocks steps back, or the GRU's state. At an episode's first frame a learned start stands in for
the past, exactly as in training.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from emerald_jax.agent.state import Learner, init_carry
from emerald_jax.envs.base import EnvSpec
from emerald_jax.ops.distributions import sample_categorical
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
    noise: Key | None = None,
) -> Acted:
    """Choose one action for every environment.

    Args:
        params: ``world_model`` and ``actor``.
        carry: :class:`Carry` `[E]`.
        observation: :class:`Observation` `[E]`.
        key: consumed.
        learner: networks and settings (static).
        mode: the most probable action instead of a sample (static). The paper samples.
        noise: `[E]` keys that actions are drawn with, from :func:`held_noise`; None draws with
            ``key``.

    Returns:
        :class:`Acted`.
    """
    keys = jax.vmap(jax.random.split)(jax.random.split(key, observation.action.shape[0]))
    one = partial(_act_one, params, learner=learner, mode=mode)
    drawn = keys[:, 1] if noise is None else noise
    action, new_carry, finite, state = jax.vmap(one)(carry, observation, keys[:, 0], drawn)
    return Acted(action, new_carry, finite.all(), state)


def held_noise(base: Key, number: Array, hold: Array, count: int) -> Key:
    """Keys for the actions of one vector step, each kept for ``hold`` steps.

    An environment's action is drawn by comparing the policy's cumulated probabilities with one
    uniform number. A number that is kept is as even as a new one, so at any one step each action is
    as probable as the policy has it; successive actions are no longer independent. A sure policy
    acts as ever, one that does not care repeats itself instead of trembling on the spot. (Our own;
    the idea is that of coloured noise for continuous actions, Eberhard et al., ICLR 2023.) The
    environments' changes are spread over the ``hold`` steps.

    Args:
        base: the run's key.
        number: `[]` uint32, vector steps so far.
        hold: `[]` uint32, at least 1; ``hold`` x E must fit. 1 gives the keys that :func:`act`
            makes itself of ``base`` with ``number`` folded in.
        count: E.

    Returns:
        `[E]` keys.
    """
    periods = number // hold
    offset = jnp.arange(count, dtype=jnp.uint32) * hold // count
    old, new = (jax.random.split(jax.random.fold_in(base, periods + i), count) for i in (0, 1))
    keys = jnp.where(number % hold + offset >= hold, new, old)
    return jax.vmap(jax.random.split)(keys)[:, 1]


def _act_one(
    params: dict[str, Params],
    carry: Carry,
    observation: Observation,
    latent_key: Key,
    action_key: Key,
    *,
    learner: Learner,
    mode: bool,
) -> tuple[Array, Carry, Array, State]:
    """:func:`act` for one environment; a chunk of length one through the training path."""
    net = learner.model.bind({"params": params["world_model"]})
    image, led, first = (x[None] for x in observation)
    seen = net.observe(image, led, first, carry, latent_key)
    log_probs = learner.actor_critic.policy(params["actor"], seen.state)[0]
    sampled = sample_categorical(action_key, log_probs)
    action = jnp.argmax(log_probs).astype(jnp.int32) if mode else sampled
    state = jax.tree.map(lambda x: x[0], seen.state)
    return action, seen.carry, jnp.all(jnp.isfinite(log_probs)), state


def compile_acting(learner: Learner, *, mode: bool = False) -> Callable:
    """:func:`acting.act` as a jitted function of a base key and a step from :func:`put_step`."""

    def one(params: Any, carry: Any, observation: Observation, base: Key, step: Array) -> Any:
        number, hold = step
        key = jax.random.fold_in(base, number)
        noise = held_noise(base, number, hold, observation.action.shape[0])
        return act(params, carry, observation, key, learner=learner, mode=mode, noise=noise)

    return jax.jit(one, donate_argnums=1)


def abstract_acting(learner: Learner, spec: EnvSpec, count: int) -> tuple[Any, Observation]:
    """Shapes of the acting carry and observation of ``count`` environments."""
    carry = jax.eval_shape(partial(init_carry, learner, count))
    observation = Observation(
        image=jax.ShapeDtypeStruct((count, *spec.image_shape), jnp.uint8),
        action=jax.ShapeDtypeStruct((count,), jnp.int32),
        is_first=jax.ShapeDtypeStruct((count,), jnp.bool_),
    )
    return carry, observation


def put_step(number: int, hold: int = 1) -> Array:
    """A vector step for acting, on the device: its number, and how long noise is held."""
    return jax.device_put(np.array([number, hold], np.uint32))
