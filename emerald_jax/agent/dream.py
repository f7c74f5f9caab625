"""Dreams: read real frames, then let the world model continue alone, for any number of steps.

The one engine is :func:`dream_on`. Its rollouts carry the memory that acting carries, so they have
no maximum length and can be steered step by step; training's imagination
(``imagination.world_model_step``) shares one real past between many starts instead. Both compute
the same h_t. Every imagined state keeps the probability with which each of its tokens was drawn.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Num, UInt8

from emerald_jax.actions import absent
from emerald_jax.agent.state import Learner, init_carry
from emerald_jax.imagination import decode, imagine
from emerald_jax.models.world_model import WorldModel
from emerald_jax.ops.scalars import two_hot_mean
from emerald_jax.types import Array, Batch, Before, Carry, Key, Params, PolicyFn, State


class Dreamt(NamedTuple):
    """A :class:`State` with the model's confidence in it.

    Attributes:
        z: `[..., P, G]` int32 class indices.
        h: `[..., D]`.
        confidence: `[..., P, G]` float32, probability of each token drawn; 1 for a real frame.
    """

    z: Array
    h: Array
    confidence: Array


class Shown(NamedTuple):
    """Outputs of the world model's heads for given states.

    Attributes:
        frame: `[..., height, width, 3]`, float32 in [0, 1] from :func:`predict`, uint8 from `show`.
        reward: `[...]` float32, predicted reward that led into the state.
        cont: `[...]` float32, predicted probability that the episode continues.
    """

    frame: Array
    reward: Array
    cont: Array


class Rollout(NamedTuple):
    """A dream of B rollouts, time first.

    Attributes:
        seen: :class:`State` `[T, B]`, states of the real frames.
        state: :class:`Dreamt` `[H, B]`, imagined states.
        action: `[H, B]` or `[H, B, A]`; ``action[k]`` led into ``state[k]``.
    """

    seen: State
    state: Dreamt
    action: Array


class OpenLoop(NamedTuple):
    """Reconstruction and open-loop prediction of B real sequences.

    Attributes:
        recon: `[B, L, height, width, 3]` float32 in [0, 1], every frame encoded and decoded.
        dream: the same shape; ``recon`` in the first ``context`` frames, imagined afterwards.
        reward: `[B, L]` predicted reward of the states in ``dream``.
        cont: `[B, L]` predicted probability that the episode continues.
    """

    recon: Array
    dream: Array
    reward: Array
    cont: Array


def read(
    params: dict[str, Params],
    image: UInt8[Array, "T B height width 3"],
    action: Num[Array, "T B *A"],
    key: Key,
    *,
    learner: Learner,
    carry: Carry | None = None,
    reset: Bool[Array, "T B"] | None = None,
) -> tuple[Carry, State]:
    """Read real frames in one pass; h_t is what the acting agent computes frame by frame.

    ``action`` led into each image, none on first frames. ``carry`` `[B]` is of earlier frames, None
    when there are none. ``reset`` forgets everything before a frame; None resets on first frames.
    Returns the carry `[B]` after the last frame and the states `[T, B]`.
    """
    batch = image.shape[1]
    carry = init_carry(learner, batch) if carry is None else carry
    reset = absent(action) if reset is None else reset
    net = learner.model.bind({"params": params["world_model"]})
    image, action, reset = (jnp.swapaxes(x, 0, 1) for x in (image, action, reset))
    passed = net.observe(image, action, reset, carry, jax.random.split(key, batch))
    return passed.carry, jax.tree.map(lambda x: jnp.swapaxes(x, 0, 1), passed.state)


def dream_step(
    params: dict[str, Params],
    carry: Carry,
    action: Num[Array, " B *A"],
    key: Key,
    *,
    learner: Learner,
    steps: int,
    temperature: Array | float | None = None,
) -> tuple[Carry, Dreamt]:
    """Imagine one step of every rollout with S decoding ``steps``.

    ``action`` `[B]` is taken in the newest state, ``temperature`` as in :func:`imagination.decode`.
    Returns the carry `[B]` after the imagined state, and the state, :class:`Dreamt` `[B]`.
    """
    options = {"model": learner.model, "steps": steps, "temperature": temperature}
    net = learner.model.bind({"params": params["world_model"]})
    never = jnp.zeros((len(action), 1), jnp.bool_)
    h, memory = net.advance(carry.z[:, None], action[:, None], never, carry.memory)
    keys = jax.random.split(key, len(action))
    options |= learner.config.behavior.decoding
    options |= {"before": Before(carry.z, action)}
    decoded = decode(params["world_model"], h[:, 0], keys, **options)
    return Carry(memory, decoded.z), Dreamt(decoded.z, h[:, 0], jnp.exp(decoded.log_prob))


def dream_on(
    params: dict[str, Params],
    carry: Carry,
    state: State,
    key: Key,
    *,
    learner: Learner,
    horizon: int,
    steps: int,
    temperature: Array | float | None = None,
    future: Num[Array, "H B *A"] | None = None,
    policy: PolicyFn | None = None,
) -> tuple[Dreamt, Array]:
    """Imagine H steps from states that were read; ``learner``, H, S and ``policy`` are static.

    ``carry`` `[B]` is after ``state`` `[B]`; ``temperature`` as in :func:`imagination.decode`.
    ``future`` are given actions (an open loop); None lets ``policy`` choose, by default the agent's
    own. Returns :class:`Dreamt` `[H, B]` and the actions `[H, B]` that led into its states.
    """
    one = partial(dream_step, learner=learner, steps=steps, temperature=temperature)

    def step(
        params: Params, carry: Carry, state: Dreamt, action: Array, index: Array, key: Key
    ) -> tuple[Carry, Dreamt]:
        del state, index
        return one(params, carry, action, key)

    policy = policy or partial(sample_policy, learner=learner)
    if future is not None:
        policy = partial(_given, future)
    start = Dreamt(state.z, state.h, jnp.ones(state.z.shape, jnp.float32))
    run = imagine(params, start, carry, key, policy=policy, step=step, horizon=horizon)
    return jax.tree.map(lambda x: x[1:], run.state), run.action


def _given(future: Array, params: Params, state: Dreamt, step: Array, key: Key) -> Array:
    """A :data:`PolicyFn` that repeats given actions `[H, B]`."""
    del params, state, key
    return future[step]


def dream(
    params: dict[str, Params],
    image: UInt8[Array, "T B height width 3"],
    action: Num[Array, "T B *A"],
    future: Num[Array, "H B *A"] | None,
    key: Key,
    *,
    learner: Learner,
    **options: Any,
) -> Rollout:
    """Read T real frames, then imagine H steps: :func:`read`, :func:`dream_on` with ``options``."""
    read_key, dream_key = jax.random.split(key)
    carry, seen = read(params, image, action, read_key, learner=learner)
    options |= {"learner": learner, "future": future}
    return Rollout(seen, *dream_on(params, carry, _last(seen), dream_key, **options))


def _last(states: State) -> State:
    return jax.tree.map(lambda x: x[-1], states)


def open_loop(
    params: dict[str, Params], batch: Batch, key: Key, *, learner: Learner, context: int
) -> OpenLoop:
    """Read ``context`` frames of every sequence and imagine the rest with the real actions.

    Args:
        params: ``world_model``.
        batch: :class:`Batch` `[B, L]` with its carry.
        key: `[B]` typed keys, one per sequence.
        learner: networks and settings (static).
        context: real frames read before the dream, 1 <= context < L (static).

    Returns:
        :class:`OpenLoop`. The dream ignores the end of an episode and continues.
    """
    one = partial(_open_loop_one, params, learner=learner, context=context)
    return jax.vmap(one)(batch, key)


def _open_loop_one(
    params: dict[str, Params], sequence: Batch, key: Key, *, learner: Learner, context: int
) -> OpenLoop:
    """:func:`open_loop` of one sequence, read as a batch of one."""
    read_key, rest_key, dream_key = jax.random.split(key, 3)
    image, action, reset = (x[:, None] for x in (sequence.image, sequence.action, sequence.reset))
    first, rest = slice(None, context), slice(context, None)
    past = jax.tree.map(lambda x: x[None], sequence.carry)
    given = partial(read, params, learner=learner)
    carry, seen = given(image[first], action[first], read_key, carry=past, reset=reset[first])
    _, later = given(image[rest], action[rest], rest_key, carry=carry, reset=reset[rest])
    imagined, _ = dream_on(
        *(params, carry, _last(seen), dream_key),
        learner=learner,
        horizon=action.shape[0] - context,
        steps=learner.config.behavior.decode_steps,
        future=_filled(action[rest]),
    )

    def shown(after: State) -> Shown:
        joined = jax.tree.map(lambda a, b: jnp.concatenate([a, b])[:, 0], seen, after)
        return predict(params, joined, learner=learner)

    real, dreamt = shown(later), shown(State(imagined.z, imagined.h))
    return OpenLoop(real.frame, dreamt.frame, dreamt.reward, dreamt.cont)


def _filled(action: Array) -> Array:
    """Some action in place of none, where a dream continues past an episode's end."""
    if jnp.issubdtype(action.dtype, jnp.floating):
        return jnp.nan_to_num(action)
    return jnp.maximum(action, 0)


def sample_policy(
    params: dict[str, Params], state: State | Dreamt, step: Array, key: Key, *, learner: Learner
) -> Array:
    """The agent's own policy as a :data:`PolicyFn` once ``learner`` is bound: `[B]` actions."""
    del step
    state = State(state.z, state.h)
    return learner.actor_critic.policy(params["actor"], state).act(key)


def predict(params: dict[str, Params], state: State | Dreamt, *, learner: Learner) -> Shown:
    """Decode states with any leading dimensions; frames are float32 in [0, 1]."""
    variables, model = {"params": params["world_model"]}, learner.model
    lead = state.h.shape[:-1]
    z = state.z.reshape(-1, *state.z.shape[len(lead) :])
    h = state.h.reshape(-1, state.h.shape[-1])
    image = model.apply(variables, z, h, method=WorldModel.reconstruct)
    reward = two_hot_mean(model.apply(variables, z, h, method=WorldModel.reward))
    cont = jax.nn.sigmoid(model.apply(variables, z, h, method=WorldModel.cont))
    frame = jnp.clip(image.astype(jnp.float32) + 0.5, 0, 1)
    return Shown(frame.reshape(*lead, *frame.shape[1:]), reward.reshape(lead), cont.reshape(lead))


def show(params: dict[str, Params], state: State | Dreamt, *, learner: Learner) -> Shown:
    """:func:`predict` with uint8 frames."""
    found = predict(params, state, learner=learner)
    return found._replace(frame=jnp.round(255 * found.frame).astype(jnp.uint8))
