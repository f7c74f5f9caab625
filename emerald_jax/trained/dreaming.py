"""Dreams of any length, for people to look at: real frames are read, then the model goes on alone.

Training imagines with ``imagination.world_model_step``, whose starts share one real past. Here a
rollout carries the memory that acting carries, so it may go on for ever and be steered one step at
a time; h_t is the same either way. Every imagined state keeps the probability that each of its
tokens was drawn with, which is what a picture tints.
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Int32, UInt8

from emerald_jax.imagination import decode, imagine
from emerald_jax.models.world_model import WorldModel
from emerald_jax.ops.distributions import sample_categorical
from emerald_jax.ops.scalars import two_hot_mean
from emerald_jax.training.acting import Observation, act
from emerald_jax.training.state import Learner, init_carry
from emerald_jax.types import Array, Carry, Key, Params, PolicyFn, State


class Dreamt(NamedTuple):
    """A :class:`State` that remembers how sure the model was of it.

    Attributes:
        z: `[..., P, G]` int32 class indices.
        h: `[..., D]`.
        confidence: `[..., P, G]` float32 in (0, 1], the probability each token was drawn with; 1
            where the state was read from a real frame.
    """

    z: Array
    h: Array
    confidence: Array


class Shown(NamedTuple):
    """What the world model's heads say of states.

    Attributes:
        frame: `[..., height, width, 3]` uint8.
        reward: `[...]` float32, the predicted reward that led into the state.
        cont: `[...]` float32, the predicted probability that the episode goes on.
    """

    frame: Array
    reward: Array
    cont: Array


class Rollout(NamedTuple):
    """A dream of B rollouts, time first.

    Attributes:
        seen: :class:`State` `[T, B]`, the states of the frames that were read.
        state: :class:`Dreamt` `[H, B]`, the imagined states.
        action: `[H, B]` int32; ``action[k]`` led into ``state[k]``.
    """

    seen: State
    state: Dreamt
    action: Array


def dream_step(
    params: dict[str, Params],
    carry: Carry,
    action: Int32[Array, " B"],
    key: Key,
    *,
    learner: Learner,
    steps: int,
    temperature: Array | float | None = None,
) -> tuple[Carry, Dreamt]:
    """One imagined step of every rollout.

    Args:
        params: ``world_model``.
        carry: :class:`Carry` `[B]`, as :func:`acting.act` or the last step left it.
        action: `[B]` int32, taken in the newest state.
        key: consumed; one key per rollout is split from it.
        learner: networks and settings (static).
        steps: decoding steps S (static).
        temperature: of the tokens, see :func:`imagination.decode`.

    Returns:
        The carry and the imagined state, both `[B]`.
    """
    keys = jax.random.split(key, action.shape[0])

    def one(carry: Carry, action: Array, key: Key) -> tuple[Carry, Dreamt]:
        net = learner.model.bind({"params": params["world_model"]})
        h, memory = net.advance(
            carry.z[None], action[None], jnp.zeros((1,), jnp.bool_), carry.memory
        )
        decoded = decode(
            params["world_model"],
            h[0],
            key,
            model=learner.model,
            steps=steps,
            temperature=temperature,
        )
        return Carry(memory, decoded.z), Dreamt(decoded.z, h[0], jnp.exp(decoded.log_prob))

    return jax.vmap(one)(carry, action, keys)


def read(
    params: dict[str, Params],
    image: UInt8[Array, "T B height width 3"],
    action: Int32[Array, "T B"],
    key: Key,
    *,
    learner: Learner,
) -> tuple[Carry, State]:
    """Read real frames one by one, as the acting agent does.

    Args:
        params: ``world_model`` and ``actor``.
        image: `[T, B, height, width, 3]` uint8.
        action: `[T, B]` int32, the action that led into each image; -1 on first frames, where the
            model forgets what lies before.
        key: consumed.
        learner: networks and settings (static).

    Returns:
        The carry `[B]` after the last frame and the states `[T, B]`.
    """

    def body(carry: Carry, inputs: tuple[Array, Array, Key]) -> tuple[Carry, State]:
        image, action, key = inputs
        seen = act(params, carry, Observation(image, action, action < 0), key, learner=learner)
        return seen.carry, seen.state

    keys = jax.random.split(key, image.shape[0])
    return jax.lax.scan(body, init_carry(learner, image.shape[1]), (image, action, keys))


def dream(
    params: dict[str, Params],
    image: UInt8[Array, "T B height width 3"],
    action: Int32[Array, "T B"],
    future: Int32[Array, "H B"] | None,
    key: Key,
    *,
    learner: Learner,
    horizon: int,
    steps: int,
    temperature: Array | float | None = None,
    policy: PolicyFn | None = None,
) -> Rollout:
    """Read T real frames, then imagine H steps.

    Args:
        params: ``world_model`` and ``actor``.
        image: `[T, B, height, width, 3]` uint8.
        action: `[T, B]` int32, see :func:`read`.
        future: `[H, B]` int32, the actions of the dream; None lets ``policy`` choose.
        key: consumed.
        learner: networks and settings (static).
        horizon: H (static).
        steps: decoding steps S (static).
        temperature: of the tokens, see :func:`imagination.decode`.
        policy: any policy (static); None takes the agent's own, sampled.

    Returns:
        :class:`Rollout`.
    """
    read_key, dream_key = jax.random.split(key)
    carry, seen = read(params, image, action, read_key, learner=learner)

    def follow(params: Params, state: Dreamt, step: Array, key: Key) -> Array:
        del params, state, key
        return future[step]

    def step(
        params: Params, carry: Carry, state: Dreamt, action: Array, index: Array, key: Key
    ) -> tuple[Carry, Dreamt]:
        del state, index
        options = dict(learner=learner, steps=steps, temperature=temperature)
        return dream_step(params, carry, action, key, **options)

    start = Dreamt(seen.z[-1], seen.h[-1], jnp.ones(seen.z.shape[1:], jnp.float32))
    chosen = policy or partial(sample_policy, learner=learner)
    trajectory = imagine(
        params,
        start,
        carry,
        dream_key,
        policy=chosen if future is None else follow,
        step=step,
        horizon=horizon,
    )
    return Rollout(seen, jax.tree.map(lambda x: x[1:], trajectory.state), trajectory.action)


def sample_policy(
    params: dict[str, Params], state: State | Dreamt, step: Array, key: Key, *, learner: Learner
) -> Array:
    """The agent's own policy as a :data:`PolicyFn` once ``learner`` is bound: `[B]` actions."""
    del step
    return sample_categorical(key, learner.agent.policy(params["actor"], State(state.z, state.h)))


def show(params: dict[str, Params], state: State | Dreamt, *, learner: Learner) -> Shown:
    """Decode states to frames and read reward and continue off them.

    Args:
        params: ``world_model``.
        state: with any leading dimensions.
        learner: networks and settings (static).

    Returns:
        :class:`Shown` with the same leading dimensions.
    """
    variables, model = {"params": params["world_model"]}, learner.model
    lead = state.h.shape[:-1]
    z = state.z.reshape(-1, *state.z.shape[len(lead) :])
    h = state.h.reshape(-1, state.h.shape[-1])
    image = model.apply(variables, z, h, method=WorldModel.reconstruct)
    reward = two_hot_mean(model.apply(variables, z, h, method=WorldModel.reward))
    cont = jax.nn.sigmoid(model.apply(variables, z, h, method=WorldModel.cont))
    pixels = jnp.round(255 * jnp.clip(image.astype(jnp.float32) + 0.5, 0, 1)).astype(jnp.uint8)
    return Shown(pixels.reshape(*lead, *pixels.shape[1:]), reward.reshape(lead), cont.reshape(lead))
