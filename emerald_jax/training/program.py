"""Everything a run computes on its devices, compiled before it starts.

Late compilation must not end a night's run: the train step, acting and the pictures are lowered and
compiled ahead, side by side, and the compiled programs refuse any other shape instead of compiling
again. A persistent cache makes the second start of the same run short.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from emerald_jax.config import Config
from emerald_jax.envs.base import EnvSpec
from emerald_jax.training.acting import Observation, act, held_noise
from emerald_jax.training.parallel import compile_train_step, split
from emerald_jax.training.report import open_loop
from emerald_jax.training.state import Learner, TrainState, init_carry
from emerald_jax.types import Array, Batch, Key

_log = logging.getLogger(__name__)

#: Flags for CPUs. Ordering operations for concurrency keeps everything alive at once: XLA plans
#: 20 GiB for the paper's world-model gradient instead of 9. The YNNPACK fusions run convolutions on
#: one core: an update of crafter-small, then with 8 x 32 batches and 16 channels, took 6.2 s with
#: and 3.4 s without them (two cores, busy).
_CPU_FLAGS = {
    "--xla_cpu_enable_concurrency_optimized_scheduler": "false",
    "--xla_cpu_experimental_ynn_fusion_type": "",
}

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


def prepare_jax() -> None:
    """Settings of JAX itself that every run wants; call it before the first computation.

    * Compiled programs are kept in a per-user directory across processes.
    * Two of XLA's CPU defaults are turned off (:data:`_CPU_FLAGS`); accelerators do not read them.
    """
    # XLA ends the process on a flag it does not know; these exist in the versions we tested.
    if jax.__version_info__ < (0, 12):
        given = os.environ.get("XLA_FLAGS", "")
        ours = [f"{flag}={value}" for flag, value in _CPU_FLAGS.items() if flag not in given]
        os.environ["XLA_FLAGS"] = " ".join([given, *ours]).strip()
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    if jax.config.jax_compilation_cache_dir is None:
        jax.config.update("jax_compilation_cache_dir", str(Path(base) / "emerald_jax" / "xla"))


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


def compile_program(program: Any) -> Any:
    """Compile a lowered program.

    On a CPU the matrix products are library calls; LLVM's higher levels make the rest no faster but
    take a third longer to compile (own measurement, quickstart's train step).
    """
    cpu = jax.default_backend() == "cpu"
    return program.compile(compiler_options={"xla_backend_optimization_level": 1} if cpu else None)


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


def put_step(number: int, hold: int = 1) -> Array:
    """A vector step for acting, on the device: its number, and how long noise is held."""
    return jax.device_put(np.array([number, hold], np.uint32))


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
