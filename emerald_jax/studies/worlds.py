"""World models trained on recorded play alone: no actor, no critic, no environment."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np
import optax

from emerald_jax.config import Config
from emerald_jax.models.world_model import init_world_model
from emerald_jax.replay import Replay, ReplayError, make_sampler
from emerald_jax.training.faults import RunError
from emerald_jax.training.program import compile_program, put_index
from emerald_jax.training.state import Learner, build_learner, init_carry
from emerald_jax.training.update import model_gradient
from emerald_jax.types import Array, Batch, Carry, Key, Params

#: Points of a training curve.
_POINTS = 40


class World(NamedTuple):
    """A trained world model.

    Attributes:
        learner: its networks and settings.
        params: the world model's parameters.
        curve: ``[update, metrics]`` rows along the training, metrics by name.
        seconds: wall time of the updates, compiling excluded.
        machine: where and with which code it was trained; empty where nobody noted it.
    """

    learner: Learner
    params: Params
    curve: list[list[Any]]
    seconds: float
    machine: str = ""


def train_world(
    config: Config, replay: Replay, num_actions: int, *, updates: int, seed: int
) -> World:
    """Take gradient steps on the world-model loss, as a run does, on batches of recorded play.

    Args:
        config: networks, loss, optimiser and sampler.
        replay: what batches are drawn from.
        num_actions: A.
        updates: gradient steps.
        seed: of parameters, batches and sampled latents.

    Raises:
        RunError: the loss is not finite.
        ReplayError: the replay holds too little.
    """
    learner, batch_size = build_learner(config, num_actions), config.replay.batch
    init_key, base = jax.random.split(jax.random.key(seed))
    params = jax.jit(fresh_params(learner))(init_key)
    opt_state = jax.jit(learner.optimizers["world_model"].init)(params)
    carry = init_carry(learner, batch_size)
    sampler = make_sampler(
        config.replay.sampler, replay, batch_size, config.replay.length, config.seed + seed
    )
    batch = sampler.sample()
    lowered = jax.jit(partial(_update, learner=learner), donate_argnums=(0, 1, 2)).lower(
        params, opt_state, carry, batch, base, put_index(0)
    )
    step, curve, every = compile_program(lowered), [], max(1, updates // _POINTS)
    began = time.monotonic()
    for number in range(updates):
        arguments = (carry, batch, base, put_index(number))
        params, opt_state, carry, metrics = step(params, opt_state, *arguments)
        batch = sampler.sample()
        if (number + 1) % every == 0 or number + 1 == updates:
            values = {name: float(x) for name, x in jax.device_get(metrics).items()}
            if not np.isfinite(values["loss/model"]):
                raise RunError(f"the world model's loss is not finite after {number + 1} updates")
            curve.append([number + 1, values])
    jax.block_until_ready(params)
    return World(learner, params, curve, time.monotonic() - began)


def fresh_params(learner: Learner) -> Callable[[Key], Params]:
    """What makes a world model's untrained parameters of a key."""
    return partial(init_world_model, learner.model)


def _update(
    params: Params,
    opt_state: Any,
    carry: Carry,
    batch: Batch,
    base: Key,
    index: Array,
    *,
    learner: Learner,
) -> tuple[Params, Any, Carry, dict[str, Array]]:
    """One gradient step of the world model; the carry goes on to the next batch."""
    keys = jax.random.split(jax.random.fold_in(base, index), batch.action.shape[0])
    batch = batch._replace(carry=carry)
    grads, (passed, metrics) = model_gradient(params, batch, keys, learner)
    updates, opt_state = learner.optimizers["world_model"].update(grads, opt_state, params)
    return optax.apply_updates(params, updates), opt_state, passed.carry, metrics


def whole_windows(replay: Replay, count: int, length: int, seed: int) -> Batch:
    """Windows that lie within one episode each, drawn uniformly among all such windows.

    Args:
        replay: what is drawn from.
        count: windows W.
        length: records T of each.
        seed: decides the draw.

    Returns:
        :class:`Batch` `[W, T]` of numpy arrays, without carry.

    Raises:
        ReplayError: episodes are shorter than that.
    """
    sampler = make_sampler("windows", replay, 4 * count, length, seed)
    kept: list[Batch] = []
    found = 0
    for _ in range(50):
        batch = sampler.sample()
        inside = ~batch.reset[:, 1:].any(axis=1)
        kept.append(Batch(*(x[inside] for x in batch[:-1])))
        found += int(inside.sum())
        if found >= count:
            return Batch(
                *(np.concatenate(x)[:count] for x in zip(*(b[:-1] for b in kept), strict=True))
            )
    raise ReplayError(
        f"the recorded episodes hold too few windows of {length} steps: record longer ones, or "
        "shorten context and horizon"
    )
