"""Small models, synthetic batches and shared compiled programs for the tests of the mathematics.

Dimensions differ wherever they can (P 16, G 3, K 5, A 6, D 24, four heads of 6 in two blocks, C 7,
L 12, predictor 20), so that a mistaken axis or a factor of the wrong size cannot hide. Parameters
are random, not initialised: nothing is zero, and no compilation is spent on initialisers.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np

from emerald_jax.agent.state import Learner, TrainState, build_learner, init_carry, init_state
from emerald_jax.config import Config
from emerald_jax.presets import get_preset
from emerald_jax.training import devices as devices_module
from emerald_jax.training.devices import compile_train_step, put_batch, split
from emerald_jax.training.update import train_step
from emerald_jax.types import Batch, Carry, Memory, Recurrent

NUM_ACTIONS = 6
BATCH, LENGTH, IMAGE = 8, 12, 16
#: Start of each imagined rollout in a sequence of LENGTH at the default stride of 4.
STARTS = (3, 7, 11)

#: Compiling costs more than running at these sizes.
QUICKLY = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}


def compiled(function: Callable, *args: Any) -> Callable:
    """``function`` compiled for the shapes of ``args``, with little optimisation."""
    return jax.jit(function).lower(*args).compile(compiler_options=QUICKLY)


def small_config(**changes: dict[str, Any]) -> Config:
    """The ``tiny`` preset with dimensions that differ; ``changes`` by group of settings."""
    config = get_preset("tiny")
    sizes: dict[str, dict[str, Any]] = {
        "model": dict(
            groups=3,
            classes=5,
            channels=4,
            width=24,
            latent_width=10,
            blocks=2,
            heads=4,
            context=7,
            predictor_width=20,
            predictor_blocks=1,
            token_width=9,
            bins=41,
        ),
        "behavior": dict(horizon=3, start_stride=4, decode_steps=3),
        "replay": dict(batch=BATCH, length=LENGTH),
        "optim": dict(model_lr=3e-3, actor_lr=1e-3, critic_lr=1e-3),
    }
    groups = {
        name: dataclasses.replace(
            getattr(config, name), **{**sizes.get(name, {}), **changes.get(name, {})}
        )
        for name in {*sizes, *changes}
    }
    return dataclasses.replace(config, **groups)


def random_params(shapes: Any, seed: int = 0) -> Any:
    """Parameters of the given shapes: kernels by their fan-in, norms near one, nothing zero."""
    rng = np.random.default_rng(seed)

    def one(path: tuple, leaf: jax.ShapeDtypeStruct) -> jax.Array:
        noise = rng.normal(size=leaf.shape)
        if path[-1].key == "scale":
            noise = 1 + 0.2 * noise
        elif len(leaf.shape) < 2:
            noise = 0.3 * noise
        elif path[-1].key != "words":
            noise = noise / np.sqrt(np.prod(leaf.shape[:-1]))
        return jnp.asarray(noise, leaf.dtype)

    return jax.tree_util.tree_map_with_path(one, shapes)


@cache
def small_learner() -> Learner:
    """Networks and optimisers of :func:`small_config`."""
    return build_learner(small_config(), NUM_ACTIONS)


def state_shapes(learner: Learner) -> TrainState:
    """The shapes of :func:`init_state`."""
    return jax.eval_shape(lambda key: init_state(learner, key), jax.random.key(0))


def make_state(learner: Learner, seed: int = 0) -> TrainState:
    """A state with random parameters; the slow critic differs from the critic."""
    state = state_shapes(learner)
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), state)
    return zeros.replace(
        params=random_params(state.params, seed),
        slow_critic=random_params(state.slow_critic, seed + 1),
        return_range=jnp.float32(2.0),
    )


def make_batch(learner: Learner, seed: int = 0, batch: int = BATCH) -> Batch:
    """Synthetic sequences with episode boundaries, terminations, time limits, and memory.

    Even sequences begin with a reset, every fourth of them in the middle of an episode; odd ones
    carry on. Every second sequence holds a border at step 5, after a death or after a time limit.
    """
    rng = np.random.default_rng(seed)
    size = learner.config.envs.image_size
    shape = (batch, LENGTH)
    is_first, is_last, is_terminal = (np.zeros(shape, bool) for _ in range(3))
    is_first[::4, 0] = True
    border = np.arange(batch) % 4 >= 2
    is_first[border, 5] = is_last[border, 4] = True
    is_terminal[np.arange(batch) % 4 == 2, 4] = True
    reset = is_first.copy()
    reset[::2, 0] = True
    action = rng.integers(0, NUM_ACTIONS, shape).astype(np.int32)
    return Batch(
        image=rng.integers(0, 256, (*shape, size, size, 3), dtype=np.uint8),
        action=np.where(is_first, np.int32(-1), action),
        reward=np.where(is_first, 0, rng.normal(size=shape)).astype(np.float32),
        is_first=is_first,
        is_last=is_last,
        is_terminal=is_terminal,
        reset=reset,
        carry=make_carry(learner, rng, ~reset[:, 0]),
    )


def make_carry(learner: Learner, rng: np.random.Generator, known: np.ndarray) -> Carry:
    """Carry `[B]`: random where ``known`` (the older half of it another episode's), else empty."""
    empty = jax.eval_shape(lambda: init_carry(learner, len(known)))

    def fill(noise: np.ndarray) -> np.ndarray:
        mask = known.reshape(-1, *[1] * (noise.ndim - 1))
        return np.where(mask, noise, 0).astype(np.float32)

    if isinstance(empty.memory, Recurrent):
        memory = Recurrent(fill(rng.uniform(-1, 1, size=empty.memory.h.shape)), known)
    else:
        valid = np.zeros(empty.memory.valid.shape, bool)
        valid[known, valid.shape[1] // 2 :] = True
        memory = Memory(*(fill(rng.normal(size=empty.memory.keys.shape)) for _ in range(2)), valid)
    z = rng.integers(0, learner.config.model.classes, empty.z.shape)
    return Carry(memory, (z * known[:, None, None]).astype(np.int32))


def one_sequence(batch: Batch, index: int) -> Batch:
    """Sequence ``index`` of a batch, without B."""
    return jax.tree.map(lambda x: x[index], batch)


@contextmanager
def little_optimisation() -> Iterator[None]:
    """What is compiled inside is compiled quickly, also where no options can be handed in."""
    jax.config.update("jax_disable_most_optimizations", True)
    try:
        yield
    finally:
        jax.config.update("jax_disable_most_optimizations", False)


@cache
def train_program(num_devices: int) -> Callable:
    """The update over that many devices: ``(state, batch, keys)``, keys and batch `[B]`.

    It fails when it is traced a second time, whichever test asks for it. The state is donated: hand
    in a :func:`copy` to keep it, on those devices.
    """
    devices, traces = jax.local_devices()[:num_devices], []

    def traced_once(*args: Any, **kwargs: Any) -> tuple:
        # chex.assert_max_traces identifies functions by their source, not their devices.
        traces.append(num_devices)
        assert len(traces) == 1, "the update was traced again"
        return train_step(*args, **kwargs)

    with mock.patch.object(devices_module, "train_step", traced_once):
        step = compile_train_step(small_learner(), devices)

    def update(state: TrainState, batch: Batch, keys: jax.Array) -> tuple:
        with little_optimisation():
            return step(state, put_batch(batch, devices), split(keys, num_devices))

    return update


@cache
def fresh_state() -> TrainState:
    """The initial state of a run; copy it before it is donated."""
    learner = small_learner()
    key = jax.random.key(0)
    return compiled(lambda key: init_state(learner, key), key)(key)


def sequence_keys(seed: int, batch: int = BATCH) -> jax.Array:
    """One key per sequence."""
    return jax.random.split(jax.random.key(seed), batch)


def copy(tree: Any, num_devices: int = 1) -> Any:
    """Fresh buffers, for what will be donated, placed as an update leaves them."""
    mesh = jax.sharding.Mesh(np.array(jax.local_devices()[:num_devices]), ("data",))
    everywhere = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    device = everywhere if num_devices > 1 else jax.local_devices()[0]
    return jax.tree.map(lambda x: jax.device_put(np.array(x), device), tree)


def to_numpy(tree: Any) -> Any:
    """Arrays on the host, so that oracles cannot use JAX by mistake."""
    return jax.tree.map(np.asarray, tree)
