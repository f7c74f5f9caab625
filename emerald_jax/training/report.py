"""Open-loop prediction: read a few real frames, then dream on with the real actions.

This is what the pictures of a run show: reconstruction of the frames that were read, and, from
there on, imagined frames beside those that really happened.
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from emerald_jax.imagination import imagine, starts_from, world_model_step
from emerald_jax.models.world_model import Pass, WorldModel
from emerald_jax.ops.scalars import two_hot_mean
from emerald_jax.training.state import Learner
from emerald_jax.types import Array, Batch, Key, Params, State


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
