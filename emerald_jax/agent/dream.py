"""Dreams of any length, for people to look at: real frames are read, then the model goes on alone.

Training imagines with ``imagination.world_model_step``, whose starts share one real past. Here a
rollout carries the memory that acting carries, so it may go on for ever and be steered one step at
a time; h_t is the same either way. Every imagined state keeps the probability that each of its
tokens was drawn with, which is what a picture tints.

Open-loop prediction: read a few real frames, then dream on with the real actions.

This is what the pictures of a run show: reconstruction of the frames that were read, and, from
there on, imagined frames beside those that really happened.

Looking inside the world model: how a latent is decoded, and what the past is attended to.

Pure functions over parameters, for reports; nothing here is on the path of training or acting. The
attention weights are taken by intercepting the transformer's own methods, so the modules need no
switch for it.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Float32, Int32, UInt8

from emerald_jax.agent.acting import Observation, act
from emerald_jax.agent.state import Learner, init_carry
from emerald_jax.imagination import decode, imagine, maskgit_decode, starts_from, world_model_step
from emerald_jax.models.tssm import HIDDEN, RelativeAttention, skew
from emerald_jax.models.world_model import Pass, WorldModel
from emerald_jax.ops.distributions import sample_categorical
from emerald_jax.ops.scalars import two_hot_mean
from emerald_jax.types import Array, Batch, Carry, Key, Params, PolicyFn, State


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
    return sample_categorical(
        key, learner.actor_critic.policy(params["actor"], State(state.z, state.h))
    )


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


class OpenLoop(NamedTuple):
    """Reconstruction and dream of B real sequences.

    Attributes:
        recon: `[B, L, height, width, 3]` float32 in [0, 1], every frame encoded and decoded.
        dream: `[B, L, height, width, 3]` float32 in [0, 1]; equals ``recon`` for the first
            ``context`` frames, imagined afterwards.
        reward: `[B, L]` predicted reward of the states in ``dream``.
        cont: `[B, L]` predicted probability to go on.
    """

    recon: Array
    dream: Array
    reward: Array
    cont: Array


def open_loop(
    params: dict[str, Params], batch: Batch, key: Key, *, learner: Learner, context: int
) -> OpenLoop:
    """Read ``context`` frames of every sequence and imagine the rest under the real actions.

    Args:
        params: ``world_model``.
        batch: :class:`Batch` `[B, L]` with its carry.
        key: `[B]` typed keys, one per sequence.
        learner: networks and settings (static).
        context: real frames read before the dream, 1 <= context < L (static).

    Returns:
        :class:`OpenLoop`. Frames after an episode's end dream on: the model is not told of it.
    """
    one = partial(_open_loop_one, params, learner=learner, context=context)
    return jax.vmap(one)(batch, key)


def _open_loop_one(
    params: dict[str, Params], sequence: Batch, key: Key, *, learner: Learner, context: int
) -> OpenLoop:
    """:func:`open_loop` for one sequence."""
    pass_key, dream_key = jax.random.split(key)
    model, variables = learner.model, {"params": params["world_model"]}
    passed: Pass = model.apply(variables, sequence, pass_key)
    horizon = sequence.action.shape[0] - context
    starts = starts_from(passed, jnp.array([context - 1]))
    actions = jnp.maximum(sequence.action[context:], 0)

    def replay_actions(params: Params, state: State, step: Array, key: Key) -> Array:
        del params, state, key
        return actions[step][None]

    own, step = world_model_step(
        model, starts, decode_steps=learner.config.behavior.decode_steps, horizon=horizon
    )
    trajectory = imagine(
        params, starts.state, own, dream_key, policy=replay_actions, step=step, horizon=horizon
    )
    imagined = jax.tree.map(lambda x: x[1:, 0], trajectory.state)
    seen = passed.state
    dreamt = jax.tree.map(lambda a, b: jnp.concatenate([a[:context], b]), seen, imagined)
    picture = partial(model.apply, variables, method=WorldModel.reconstruct)
    reward = model.apply(variables, dreamt.z, dreamt.h, method=WorldModel.reward)
    cont = model.apply(variables, dreamt.z, dreamt.h, method=WorldModel.cont)
    return OpenLoop(
        recon=jnp.clip(picture(seen.z, seen.h) + 0.5, 0, 1),
        dream=jnp.clip(picture(dreamt.z, dreamt.h) + 0.5, 0, 1),
        reward=two_hot_mean(reward),
        cont=jax.nn.sigmoid(cont),
    )


class DecodingTrace(NamedTuple):
    """How one latent came about, decoding step by decoding step.

    Attributes:
        frame: `[S, height, width, 3]` uint8, what the latent looks like at the end of each step.
        masked: `[S, P, G]` bool, the tokens that were MASK at its start and are drawn in it.
        tokens: `[S, P, G]` int32, the tokens in place at the end of each step. One that a later
            step draws again stands at its likeliest class here.
        confidence: `[S, P, G]` float32, the probability of each of them when it was predicted.
    """

    frame: Array
    masked: Array
    tokens: Array
    confidence: Array


def decoding_trace(
    params: dict[str, Params], h: Float[Array, " D"], key: Key, *, learner: Learner, steps: int
) -> DecodingTrace:
    """Decode a latent with MaskGIT, and keep what stood there after each step.

    Step by step the same draws as :func:`imagination.decode`: decoding in s steps is not a
    beginning of decoding in S, so every step is read off one decoding.

    Args:
        params: ``world_model``.
        h: `[D]`.
        key: consumed; the same tokens as ``decode`` gives with it.
        learner: networks and settings (static).
        steps: S >= 1 (static).

    Returns:
        :class:`DecodingTrace`.
    """
    model, variables = learner.model, {"params": params["world_model"]}
    features = model.apply(variables, h, method=WorldModel.prior_features)
    # The tokens put in are those of the step before, the masked ones replaced: a decoding of S
    # steps asks S times, and what it asks with tells what it had drawn, except for what it masks.
    asked: list[Array] = []

    def probs_fn(tokens: Array | None) -> Array:
        asked.append(
            jnp.exp(model.apply(variables, features, tokens, method=WorldModel.masked_prior))
        )
        return asked[-1]

    shape = (features.shape[-2], model.config.groups)
    decoded = maskgit_decode(probs_fn, key, steps=steps, shape=shape)
    tokens, sure = [decoded.z], [jnp.exp(decoded.log_prob)]
    # Backwards: a token masked in step s + 1 was another before; the likeliest stands for it.
    for s in range(steps - 1, 0, -1):
        again = decoded.masked[s]
        best = asked[s - 1]
        tokens.insert(0, jnp.where(again, jnp.argmax(best, -1), tokens[0]))
        sure.insert(0, jnp.where(again, best.max(-1), sure[0]))
    z = jnp.stack(tokens)
    state = State(z, jnp.broadcast_to(h, (steps, *h.shape)))
    frame = show(params, state, learner=learner).frame
    return DecodingTrace(frame, jnp.stack(decoded.masked), z, jnp.stack(sure))


def attention_weights(
    params: dict[str, Params], sequence: Batch, key: Key, *, learner: Learner
) -> Float32[Array, "blocks heads L keys"]:
    """How strongly each step of a real sequence attends to each step of its past.

    Args:
        params: ``world_model``.
        sequence: :class:`Batch` without its leading B, its carry included.
        key: consumed; samples the latents.
        learner: networks and settings (static); its sequence model must be the transformer.

    Returns:
        `[blocks, heads, L, C + L]` float32, each row sums to 1 over the tokens that are visible.
    """
    found: list[Array] = []

    def tap(run: Any, args: tuple, kwargs: dict, context: nn.module.InterceptorContext) -> Any:
        if isinstance(context.module, RelativeAttention) and context.method_name == "chunk":
            found.append(_chunk_weights(context.module, *args[:3]))
        return run(*args, **kwargs)

    with nn.intercept_methods(tap):
        learner.model.apply({"params": params["world_model"]}, sequence, key)
    return jnp.stack(found)


def _chunk_weights(
    attention: RelativeAttention, x: Array, past: tuple[Array, Array], visible: Array
) -> Array:
    """The weights inside :meth:`RelativeAttention.chunk`, `[heads, L, C + L]`."""
    query, key, _ = attention.project(x)
    keys = jnp.concatenate([past[0].astype(attention.dtype), key])
    content, distance = attention.biased(query)
    scores = jnp.einsum("qhd,khd->hqk", content, keys)
    scores = scores + skew(attention.distance_terms(distance), keys.shape[0])
    scores = jnp.where(visible[None], scores.astype(jnp.float32), HIDDEN)
    return jax.nn.softmax(scores, axis=-1)


def by_distance(
    weights: Float32[np.ndarray, "*n L keys"], context: int
) -> Float32[np.ndarray, "*n L {context}+1"]:
    """Attention laid out by how far back it looks.

    Args:
        weights: `[..., L, C + L]` from :func:`attention_weights`.
        context: C.

    Returns:
        `[..., L, C + 1]`: 0 is the newest token, C the farthest.
    """
    length = weights.shape[-2]
    key = context + np.arange(length)[:, None] - np.arange(context + 1)[None]
    return np.take_along_axis(
        weights, np.broadcast_to(key, (*weights.shape[:-2], *key.shape)), axis=-1
    )
