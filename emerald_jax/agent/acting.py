"""Acting: one compiled step that encodes images, updates each environment's memory and acts.

:func:`act` is the pure step. :class:`Player` calls it once per vector step and keeps the memory:
the transformer's last C keys and values, so that the agent remembers C x blocks steps, or the state
of the GRU. At an episode's first frame a learned start replaces the past, exactly as in training.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from emerald_jax.agent.state import Learner, RunError, init_carry
from emerald_jax.envs.base import EnvSpec, VectorStep
from emerald_jax.ops.distributions import sample_categorical
from emerald_jax.types import Array, Carry, Key, Params, State


class Observation(NamedTuple):
    """The fields of a vector step that acting reads.

    Attributes:
        image: `[E, height, width, 3]` uint8.
        action: `[E]` int32, the action that led into the image; -1 on first frames.
        is_first: `[E]` bool.
    """

    image: Array
    action: Array
    is_first: Array


class Acted(NamedTuple):
    """Result of one acting step.

    Attributes:
        action: `[E]` int32.
        carry: :class:`Carry` `[E]` for the next step.
        finite: `[]` bool, False when a policy output was NaN or infinite.
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
    """Choose one action for every environment; ``learner`` and ``mode`` are static.

    ``params`` are ``world_model`` and ``actor``. ``mode`` takes the most probable action instead of
    a sample (the paper samples). ``noise`` are `[E]` keys for the actions, from :func:`held_noise`;
    None derives them from ``key``.
    """
    keys = jax.vmap(jax.random.split)(jax.random.split(key, observation.action.shape[0]))

    def one(carry: Carry, seen: Observation, latent_key: Key, action_key: Key) -> tuple:
        net = learner.model.bind({"params": params["world_model"]})
        image, led, first = (x[None] for x in seen)  # a chunk of length one, as in training
        passed = net.observe(image, led, first, carry, latent_key)
        log_probs = learner.actor_critic.policy(params["actor"], passed.state)[0]
        sampled = sample_categorical(action_key, log_probs)
        action = jnp.argmax(log_probs).astype(jnp.int32) if mode else sampled
        state = jax.tree.map(lambda x: x[0], passed.state)
        return action, passed.carry, jnp.all(jnp.isfinite(log_probs)), state

    action_keys = keys[:, 1] if noise is None else noise
    action, carry, finite, state = jax.vmap(one)(carry, observation, keys[:, 0], action_keys)
    return Acted(action, carry, finite.all(), state)


def held_noise(base: Key, number: Array, hold: Array, count: int) -> Key:
    """`[count]` keys for the actions of one vector step; each is used for ``hold`` steps in a row.

    An action is sampled by comparing the policy's cumulative probabilities with one uniform number.
    Holding the number keeps each step's action distribution and correlates successive actions: a
    confident policy is unaffected; a near-uniform one repeats its action for ``hold`` steps instead
    of dithering. (Own choice; related to coloured noise for continuous actions, Eberhard et al.,
    ICLR 2023.) The environments change their keys at different steps. A hold of 1 gives the keys
    that :func:`act` derives from ``base`` with ``number`` folded in; hold x count must fit uint32.
    """
    periods = number // hold
    offset = jnp.arange(count, dtype=jnp.uint32) * hold // count
    old, new = (jax.random.split(jax.random.fold_in(base, periods + i), count) for i in (0, 1))
    keys = jnp.where(number % hold + offset >= hold, new, old)
    return jax.vmap(jax.random.split)(keys)[:, 1]


def compile_acting(learner: Learner, *, mode: bool = False) -> Callable:
    """:func:`act` jitted: ``(params, carry, observation, base key, step) -> Acted``, carry donated.

    ``step`` is `[2]` uint32, the vector step's number and the steps that noise is held for.
    """

    def one(params: Any, carry: Any, observation: Observation, base: Key, step: Array) -> Acted:
        number, hold = step
        key = jax.random.fold_in(base, number)
        noise = held_noise(base, number, hold, observation.action.shape[0])
        return act(params, carry, observation, key, learner=learner, mode=mode, noise=noise)

    return jax.jit(one, donate_argnums=1)


def abstract_acting(learner: Learner, spec: EnvSpec, count: int) -> tuple[Any, Observation, Array]:
    """Shapes of carry, observation and step of ``count`` environments."""
    carry = jax.eval_shape(partial(init_carry, learner, count))
    observation = Observation(
        image=jax.ShapeDtypeStruct((count, *spec.image_shape), jnp.uint8),
        action=jax.ShapeDtypeStruct((count,), jnp.int32),
        is_first=jax.ShapeDtypeStruct((count,), jnp.bool_),
    )
    return carry, observation, jax.ShapeDtypeStruct((2,), jnp.uint32)


class Player:
    """Plays E environments with an agent and remembers their past between vector steps.

    Attributes:
        params: ``world_model`` and ``actor``; may be replaced between steps, as training does.
        carry: :class:`Carry` `[E]`.
        state: :class:`State` `[E]` of the newest frames; None before the first step.
        number: vector steps so far; decides the random numbers of the next one.
    """

    def __init__(
        self, act: Callable, params: dict[str, Params], carry: Carry, key: Key, hold: int = 1
    ) -> None:
        """Play with ``act`` of :func:`compile_acting`; ``key`` is the base key of all actions."""
        self.params, self.carry, self.number = params, carry, 0
        self.state: State | None = None
        self._act, self._key, self._hold = act, key, hold

    def __call__(self, record: VectorStep) -> np.ndarray:
        """Choose one action `[E]` int32 for every environment.

        Raises:
            RunError: a policy output is not finite.
        """
        seen = jax.device_put(Observation(record.image, record.action, record.is_first))
        step = jax.device_put(np.array([self.number, self._hold], np.uint32))
        acted = self._act(self.params, self.carry, seen, self._key, step)
        self.carry, self.state = acted.carry, acted.state
        self.number += 1
        action, finite = jax.device_get((acted.action, acted.finite))
        if not finite:
            raise RunError("the policy is not finite: use an earlier checkpoint")
        return action
