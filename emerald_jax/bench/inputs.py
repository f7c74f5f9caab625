"""What benchmarks feed the networks: noise in the shapes of the real thing, full context included.

Parameters are random too, not initialised: compiling initialisers would cost more than most
measurements, and no time depends on the values.
"""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from emerald_jax.config import Config
from emerald_jax.imagination import starts_from
from emerald_jax.models.world_model import Pass
from emerald_jax.training.state import Learner, TrainState, init_carry, init_state
from emerald_jax.training.update import start_positions
from emerald_jax.types import Batch, Carry, Key, Starts

#: Actions where no environment is asked: Crafter's.
NUM_ACTIONS = 17


def with_changes(config: Config, **groups: dict[str, Any]) -> Config:
    """A configuration with some settings replaced, by group."""
    changed = {
        name: dataclasses.replace(getattr(config, name), **values)
        for name, values in groups.items()
    }
    return dataclasses.replace(config, **changed)


def random_state(learner: Learner, seed: int = 0) -> TrainState:
    """A train state with random parameters and fresh optimisers."""
    rng = np.random.default_rng(seed)
    shapes = jax.eval_shape(partial(init_state, learner), jax.random.key(0))
    state = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)

    def fill(leaf: jax.ShapeDtypeStruct) -> jax.Array:
        fan_in = np.prod(leaf.shape[:-1]) if len(leaf.shape) > 1 else 1
        noise = rng.standard_normal(leaf.shape, np.float32) / np.sqrt(fan_in)
        # Vectors are biases and the scales of norms: near one serves both.
        return jnp.asarray(noise if len(leaf.shape) > 1 else 1 + 0.1 * noise, leaf.dtype)

    params = jax.tree.map(fill, shapes.params)
    return state.replace(params=params, slow_critic=jax.tree.map(jnp.copy, params["critic"]))


def random_batch(config: Config, num_actions: int = NUM_ACTIONS) -> Batch:
    """Frames of noise, rewards of noise, no episode border; numpy, without a carry."""
    shape, rng = (config.replay.batch, config.replay.length), np.random.default_rng(0)
    size = config.envs.image_size
    flag = np.zeros(shape, bool)
    return Batch(
        image=rng.integers(0, 256, (*shape, size, size, 3), dtype=np.uint8),
        action=rng.integers(0, num_actions, shape).astype(np.int32),
        reward=rng.normal(size=shape).astype(np.float32),
        is_first=flag,
        is_last=flag,
        is_terminal=flag,
        reset=flag,
    )


def full_carry(learner: Learner, batch: int) -> Carry:
    """A carry `[batch]` whose whole memory is of the running episode."""
    shapes = jax.eval_shape(partial(init_carry, learner, batch))
    return jax.jit(partial(_noise, shapes, classes=learner.config.model.classes))(jax.random.key(1))


def full_context_starts(learner: Learner, sequences: int) -> Starts:
    """Starts `[sequences, n]` as an update makes them, each with C real tokens before it.

    A sequence of L steps after a carry of C tokens gives n = L // stride starts, which share its
    C + L keys and values. They are taken, by training's own function, from a pass made of noise in
    which every token is valid.
    """
    config = learner.config
    positions = start_positions(config.replay.length, config.behavior.start_stride)
    passed = jax.eval_shape(lambda: _read(learner, sequences))

    def make(key: Key) -> Starts:
        # Compiled, so that what no start looks at is never made.
        noise = _noise(passed, key, classes=config.model.classes)
        return jax.vmap(lambda one: starts_from(one, positions))(noise)

    return jax.jit(make)(jax.random.key(2))


def _read(learner: Learner, sequences: int) -> Pass:
    """Forward pass over some sequences; only its shapes are of interest."""
    config = with_changes(learner.config, replay={"batch": sequences})
    batch = jax.tree.map(jnp.asarray, random_batch(config))
    batch = batch._replace(carry=init_carry(learner, sequences))
    params = init_state(learner, jax.random.key(0)).params["world_model"]
    keys = jax.random.split(jax.random.key(0), sequences)
    return jax.vmap(lambda one, key: learner.model.apply({"params": params}, one, key))(batch, keys)


def _noise(shapes: Any, key: Key, *, classes: int) -> Any:
    """Arrays of the given shapes: normal numbers, classes, and yes to every question."""

    def one(leaf: jax.ShapeDtypeStruct, key: Key) -> jax.Array:
        if leaf.dtype == jnp.bool_:
            return jnp.ones(leaf.shape, bool)
        if jnp.issubdtype(leaf.dtype, jnp.integer):
            return jax.random.randint(key, leaf.shape, 0, classes, leaf.dtype)
        return jax.random.normal(key, leaf.shape, leaf.dtype)

    leaves, structure = jax.tree.flatten(shapes)
    keys = jax.random.split(key, len(leaves))
    return jax.tree.unflatten(structure, [one(*pair) for pair in zip(leaves, keys, strict=True)])
