"""All multi-device code: ``jax.pmap`` over the local devices, and nothing else.

The state keeps single-device shapes and is the same on every device; the batch, its carry and its
keys are split along a leading device axis. On one device plain ``jit`` runs the same function.
Leaving pmap (since JAX 0.10 a ``jit(shard_map)``) means editing this file alone.

Everything a run computes on its devices, compiled before it starts.

Late compilation must not end a night's run: the train step, acting and the pictures are lowered and
compiled ahead, side by side, and the compiled programs refuse any other shape instead of compiling
again. A persistent cache makes the second start of the same run short.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from emerald_jax.agent.acting import abstract_acting, compile_acting
from emerald_jax.agent.dream import open_loop
from emerald_jax.agent.state import Learner, TrainState, init_carry
from emerald_jax.config import Config, ConfigError
from emerald_jax.envs.base import EnvSpec
from emerald_jax.run.machine import compile_program
from emerald_jax.training.update import rollout, train_step
from emerald_jax.types import Array, Batch, Key, Params, Starts, Trajectory

AXIS = "data"


def local_devices(count: int) -> list[jax.Device]:
    """The first ``count`` local devices; 0 means all.

    Raises:
        ConfigError: when there are fewer.
    """
    devices = jax.local_devices()
    if count > len(devices):
        raise ConfigError(f"--devices {count}: this machine has {len(devices)} JAX device(s)")
    return devices[: count or len(devices)]


def compile_train_step(learner: Learner, devices: list[jax.Device]) -> Callable:
    """The update as one program over ``devices``, its state donated.

    Args:
        learner: networks, optimisers and settings.
        devices: from :func:`local_devices`.

    Returns:
        ``step(state, batch, keys) -> (state, carry, metrics)``. Batch, keys and carry have the
        leading axes that :func:`split` makes.
    """
    if len(devices) == 1:
        return jax.jit(partial(train_step, learner=learner), donate_argnums=0)
    return jax.pmap(
        partial(train_step, learner=learner, axis_name=AXIS),
        axis_name=AXIS,
        in_axes=(None, 0, 0),
        out_axes=(None, 0, None),
        devices=devices,
        donate_argnums=0,
    )


def compile_imagination(learner: Learner, devices: list[jax.Device]) -> Callable:
    """Imagination alone, from starts of many sequences, as one program over ``devices``.

    Args:
        learner: networks and settings; its behaviour says H and S.
        devices: from :func:`local_devices`.

    Returns:
        ``imagine(params, starts, keys) -> Trajectory`` `[B, H + 1, n]`. Starts are those of B
        sequences, one key for each; all have the leading axes that :func:`split` makes. Rollouts
        do not meet, so the devices have nothing to tell one another.
    """
    dream = partial(_imagine_batch, learner=learner)
    if len(devices) == 1:
        return jax.jit(dream)
    return jax.pmap(dream, axis_name=AXIS, in_axes=(None, 0, 0), devices=devices)


def _imagine_batch(
    params: dict[str, Params], starts: Starts, keys: Key, *, learner: Learner
) -> Trajectory:
    """:func:`rollout` of `[B]` sequences."""
    return jax.vmap(partial(rollout, params, learner=learner))(starts, keys)


def split(tree: Any, num_devices: int) -> Any:
    """`[B, ...]` -> `[devices, B / devices, ...]`; unchanged for one device.

    Raises:
        ConfigError: when the devices do not divide B.
    """
    if num_devices == 1:
        return tree

    def one(x: Any) -> Any:
        if x.shape[0] % num_devices:
            raise ConfigError(
                f"a batch of {x.shape[0]} does not divide over {num_devices} devices: "
                f"choose a multiple of {num_devices}, or set --devices"
            )
        return x.reshape(num_devices, x.shape[0] // num_devices, *x.shape[1:])

    return jax.tree.map(one, tree)


def join(tree: Any, num_devices: int) -> Any:
    """The inverse of :func:`split`, so that checkpoints do not know the device count."""
    if num_devices == 1:
        return tree
    return jax.tree.map(lambda x: x.reshape(x.shape[0] * x.shape[1], *x.shape[2:]), tree)


def put_batch(batch: Batch, devices: list[jax.Device]) -> Batch:
    """Start copying a host batch to where the next update reads it; returns at once."""
    if len(devices) == 1:
        return jax.device_put(batch, devices[0])
    return place_shares(split(batch, len(devices)), devices)


def place_shares(tree: Any, devices: list[jax.Device]) -> Any:
    """Send `[devices, ...]` arrays of :func:`split` to their devices; unchanged for one device."""
    return tree if len(devices) == 1 else jax.device_put(tree, _sharding(devices, AXIS))


def place_state(state: Any, devices: list[jax.Device]) -> Any:
    """Send a state to every device before the first update, which hands it on by itself.

    pmap would do so too, but by an implicit transfer, which the hot loop's guard refuses.
    """
    return state if len(devices) == 1 else jax.device_put(state, _sharding(devices))


def on_first_device(tree: Any, devices: list[jax.Device]) -> Any:
    """The first device's own copy of a state, for programs that run there alone; copies nothing."""
    if len(devices) == 1:
        return tree
    return jax.tree.map(lambda x: x.addressable_data(0), tree)


def _sharding(devices: list[jax.Device], *axes: str) -> jax.sharding.NamedSharding:
    mesh = jax.sharding.Mesh(np.array(devices), (AXIS,))
    return jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*axes))


_log = logging.getLogger(__name__)


#: Sequences in a run's picture, and the most frames of each.
PICTURE_SEQUENCES, PICTURE_FRAMES = 3, 20


class Programs(NamedTuple):
    """Compiled programs of a run; inputs must already be on the device.

    Attributes:
        train: ``(state, batch, keys) -> (state, carry, metrics)``, state donated.
        update_keys: ``(base key, update number) -> [B] keys``, one per sequence.
        act: ``(params, carry, observation, base key, step) -> Acted``, carry donated; the step
            from :func:`put_step`.
        picture: ``(params, batch, base key, update number) -> OpenLoop``.
        seconds: what compiling took, in all.
        temporaries: bytes the train step needs beside its inputs and outputs.
        memory: bytes the train step needs in all, per device.
    """

    train: Callable
    update_keys: Callable
    act: Callable
    picture: Callable
    seconds: float
    temporaries: int
    memory: int


def picture_length(config: Config) -> tuple[int, int]:
    """Frames of a picture's sequences, and how many of them the model reads before it dreams."""
    length = min(config.replay.length, PICTURE_FRAMES)
    return length, max(1, length // 4)


def build_programs(
    learner: Learner, state: TrainState, spec: EnvSpec, devices: list[jax.Device]
) -> Programs:
    """Compile everything for the shapes of this run.

    Args:
        learner: networks and settings.
        state: the initial state; only its shapes are read.
        spec: the environment's spec.
        devices: what the batch is split over.
    """
    config, began = learner.config, time.monotonic()
    count = len(devices)
    batch = abstract_batch(learner, spec, config.replay.batch, config.replay.length)
    shapes = jax.eval_shape(lambda: state)
    base, index = jax.eval_shape(lambda: jax.random.key(0)), jax.ShapeDtypeStruct((), jnp.uint32)
    step = jax.ShapeDtypeStruct((2,), jnp.uint32)
    keys = jax.eval_shape(partial(_update_keys, config=config, devices=count), base, index)
    sharded = jax.eval_shape(lambda: split(jax.tree.map(_zeros, batch), count))
    length, context = picture_length(config)
    rows = min(PICTURE_SEQUENCES, config.replay.batch)
    jobs = {
        "train": lambda: compile_train_step(learner, devices).lower(shapes, sharded, keys),
        "update_keys": lambda: jax.jit(partial(_update_keys, config=config, devices=count)).lower(
            base, index
        ),
        "act": lambda: compile_acting(learner).lower(
            shapes.params, *abstract_acting(learner, spec, config.envs.count), base, step
        ),
        "picture": lambda: jax.jit(partial(_picture, learner=learner, context=context)).lower(
            shapes.params, abstract_batch(learner, spec, rows, length), base, index
        ),
    }
    # Tracing holds Python's lock, compiling does not: trace in turn, compile side by side.
    lowered = {name: job() for name, job in jobs.items()}
    with ThreadPoolExecutor(len(lowered)) as pool:
        running = {name: pool.submit(compile_program, program) for name, program in lowered.items()}
        done = {name: future.result() for name, future in running.items()}
    temporaries, memory = memory_needed(done["train"])
    seconds = time.monotonic() - began
    return Programs(**done, seconds=seconds, temporaries=temporaries, memory=memory)


def memory_needed(program: Any) -> tuple[int, int]:
    """What the compiler says a program needs on each device.

    Args:
        program: compiled.

    Returns:
        Bytes of temporaries, and of everything: arguments and results (those that share a donated
        argument's place once) and temporaries. Zeros where the compiler does not tell.
    """
    facts = program.memory_analysis()
    arguments, outputs, shared, temporaries = (
        int(getattr(facts, f"{name}_size_in_bytes", 0) or 0)
        for name in ("argument", "output", "alias", "temp")
    )
    return temporaries, arguments + outputs - shared + temporaries


def abstract_batch(learner: Learner, spec: EnvSpec, batch: int, length: int) -> Batch:
    """Shapes of a batch with its carry."""
    flag = jax.ShapeDtypeStruct((batch, length), jnp.bool_)
    return Batch(
        image=jax.ShapeDtypeStruct((batch, length, *spec.image_shape), jnp.uint8),
        action=jax.ShapeDtypeStruct((batch, length), jnp.int32),
        reward=jax.ShapeDtypeStruct((batch, length), jnp.float32),
        is_first=flag,
        is_last=flag,
        is_terminal=flag,
        reset=flag,
        carry=jax.eval_shape(partial(init_carry, learner, batch)),
    )


def put_index(number: int) -> Array:
    """A counter on the device, by an explicit transfer."""
    return jax.device_put(np.uint32(number))


def _update_keys(base: Key, index: Array, *, config: Config, devices: int) -> Key:
    """One key per sequence of an update, in the layout the train step expects."""
    return split(jax.random.split(jax.random.fold_in(base, index), config.replay.batch), devices)


def _picture(
    params: Any, batch: Batch, base: Key, index: Array, *, learner: Learner, context: int
) -> Any:
    """:func:`report.open_loop` with keys made from the update number."""
    keys = jax.random.split(jax.random.fold_in(base, index), batch.action.shape[0])
    return open_loop(params, batch, keys, learner=learner, context=context)


def _zeros(shape: jax.ShapeDtypeStruct) -> Array:
    return jnp.zeros(shape.shape, shape.dtype)
