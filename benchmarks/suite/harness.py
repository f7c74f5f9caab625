"""How a number is taken: warm up, wait for the device, repeat until the time is used up.

What a benchmark may be asked: the words of the command, checked and typed.

What benchmarks feed the networks: noise in the shapes of the real thing, full context included.

Parameters are random too, not initialised: compiling initialisers would cost more than most
measurements, and no time depends on the values.

What this machine could do at best: the rate of large square matrix products.
"""

from __future__ import annotations

import dataclasses
import resource
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.compilation_cache import compilation_cache

from benchmarks.suite.flops import Flops, counted
from benchmarks.suite.report import Row
from emerald_jax.agent.state import Learner, TrainState, init_carry, init_state
from emerald_jax.config import Config, ConfigError, ModelConfig
from emerald_jax.imagination import starts_from
from emerald_jax.models.world_model import Pass
from emerald_jax.presets import get_preset
from emerald_jax.run.machine import compile_program
from emerald_jax.training.update import start_positions
from emerald_jax.types import Batch, Carry, Key, Starts


def repeat(call: Callable[[], Any], budget: Budget) -> list[float]:
    """Seconds of every repeat of ``call``, each waited for.

    The first call warms up and is not counted, unless it takes longer than the whole budget: what a
    cold start adds is lost in a call of many seconds, and the call is not made for nothing.
    """
    first = _timed(call)
    seconds = [first] if first > budget.seconds else []
    while len(seconds) < budget.least or (
        sum(seconds) < budget.seconds and len(seconds) < budget.most
    ):
        seconds.append(_timed(call))
    return seconds


def _timed(call: Callable[[], Any]) -> float:
    began = time.perf_counter()
    jax.block_until_ready(call())
    return time.perf_counter() - began


def unless_memory_lacks(what: str, measure: Callable[[], Row]) -> Row | str:
    """The row, or a line that says that ``what`` does not fit into the device's memory."""
    try:
        return measure()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return f"{what}: it does not fit into the device's memory"


@dataclass(frozen=True)
class Compiled:
    """A compiled program and what it took to make it.

    Attributes:
        call: the program.
        compile_seconds: tracing, lowering and compiling, nothing from a cache.
        temporaries_bytes: memory it needs beside arguments and results; 0 where JAX cannot say.
        arguments_bytes: of the arguments.
        results_bytes: of the results, donated arguments excluded.
    """

    call: Callable
    compile_seconds: float
    temporaries_bytes: int
    arguments_bytes: int
    results_bytes: int

    def facts(self) -> dict[str, Any]:
        """For a row."""
        return {
            "compile_seconds": round(self.compile_seconds, 2),
            "temporaries_bytes": self.temporaries_bytes,
            "arguments_bytes": self.arguments_bytes,
            "results_bytes": self.results_bytes,
        }


def compile_for(function: Any, *arguments: Any) -> Compiled:
    """Compile a jitted or pmapped function as training does, for the shapes of ``arguments``."""
    with no_compilation_cache():
        began = time.perf_counter()
        program = compile_program(function.lower(*arguments))
        seconds = time.perf_counter() - began
    memory = program.memory_analysis()
    sizes = [
        int(getattr(memory, f"{name}_size_in_bytes", 0) or 0)
        for name in ("temp", "argument", "output", "alias")
    ]
    temporaries, inputs, outputs, aliased = sizes
    return Compiled(program, seconds, temporaries, inputs, outputs - aliased)


@contextmanager
def no_compilation_cache() -> Iterator[None]:
    """Compile anew inside: a compile time read from a cache is none."""
    before = jax.config.jax_enable_compilation_cache
    _use_cache(False)
    try:
        yield
    finally:
        _use_cache(before)


def _use_cache(on: bool) -> None:
    jax.config.update("jax_enable_compilation_cache", on)
    # JAX asks once per process whether there is a cache and remembers the answer.
    compilation_cache.reset_cache()


def memory_peaks() -> dict[str, int]:
    """Highest use of memory so far: of this process, and of the first accelerator if it counts."""
    # Linux counts kibibytes, macOS bytes.
    unit = 1 if sys.platform == "darwin" else 1024
    peaks = {"process_peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit}
    device = (jax.local_devices()[0].memory_stats() or {}).get("peak_bytes_in_use")
    return peaks if device is None else {**peaks, "device_peak_bytes": int(device)}


@dataclass(frozen=True)
class Budget:
    """How long one number may take.

    Attributes:
        seconds: repeats go on until this many have passed, warm-up not counted ...
        least: ... but there are at least so many ...
        most: ... and at most so many.
    """

    seconds: float = 10.0
    least: int = 3
    most: int = 200


@dataclass(frozen=True, kw_only=True)
class Options:
    """How much to measure; the empty tuples mean "what the benchmark chooses on this machine".

    Attributes:
        preset: whose sizes are measured; empty leaves the choice to the benchmark.
        quick: a handful of points, a second each.
        full: the whole grid, also where it takes hours.
        seconds: budget of one number; 0 leaves the choice to the benchmark.
        decode_steps, horizons, starts, dtypes, devices, remat: points of the grid.
        minutes: length of the end-to-end run; 0 leaves the choice to the benchmark.
        envs: environments to step.
        counts: how many of them side by side.
        records: records in the replay.
    """

    preset: str = ""
    quick: bool = False
    full: bool = False
    seconds: float = 0.0
    decode_steps: tuple[int, ...] = ()
    horizons: tuple[int, ...] = ()
    starts: tuple[int, ...] = ()
    dtypes: tuple[str, ...] = ()
    devices: tuple[int, ...] = ()
    remat: tuple[bool, ...] = ()
    minutes: float = 0.0
    envs: tuple[str, ...] = ()
    counts: tuple[int, ...] = ()
    records: int = 0
    found: dict[str, float] = field(default_factory=dict)
    """What earlier benchmarks of this command found out: ``updates_per_s``."""

    def budget(self) -> Budget:
        """Of one number."""
        if self.quick:
            return Budget(self.seconds or 1.0, least=2)
        return Budget(self.seconds or 10.0)

    def config(self, otherwise: str = "crafter") -> Config:
        """The configuration whose sizes are measured.

        Args:
            otherwise: the preset when none was named. Quick on a CPU it is always
                ``crafter-small``: one update of the paper's takes a CPU the better part of a
                minute.
        """
        if self.quick and on_cpu():
            otherwise = "crafter-small"
        return get_preset(self.preset or otherwise)

    def check(self) -> None:
        """Refuse what cannot be measured, before anything is.

        Raises:
            ConfigError: naming the option.
        """
        if self.preset:
            get_preset(self.preset)
        if self.quick and self.full:
            raise ConfigError("--quick and --full exclude each other: choose one")
        for name, values, lowest in (
            ("--decode-steps", self.decode_steps, 0),
            ("--horizon", self.horizons, 1),
            ("--starts", self.starts, 1),
            ("--devices", self.devices, 1),
            ("--counts", self.counts, 1),
        ):
            for value in values:
                if value < lowest:
                    raise ConfigError(f"{name} {value}: it must be at least {lowest}")
        if self.seconds < 0 or self.minutes < 0 or self.records < 0:
            raise ConfigError("--seconds, --minutes and --records must not be negative")


def on_cpu() -> bool:
    """Whether this machine's devices are CPUs: there the grids are small."""
    import jax

    return jax.default_backend() == "cpu"


def device_counts(options: Options) -> tuple[int, ...]:
    """Numbers of devices to measure: those asked for, or 1, 2, 4, … up to all.

    Raises:
        ConfigError: when there are fewer than asked for.
    """
    import jax

    there = len(jax.local_devices())
    for count in options.devices:
        if count > there:
            raise ConfigError(f"--devices {count}: this machine has {there} JAX device(s)")
    if options.devices:
        return options.devices
    powers = [2**i for i in range(there.bit_length()) if 2**i < there]
    return (*powers, there)


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


#: Sizes that are tried, smallest first; the best rate counts.
CPU_SIZES = (1024, 2048, 4096)
ACCELERATOR_SIZES = (2048, 4096, 8192, 16384)
#: A rate is the best of at least so many products, and of so many seconds of them.
_LEAST, _SECONDS = 3, 0.3


def repeat_beside_ceiling(
    call: Callable[[], Any], budget: Budget, dtype: str
) -> tuple[list[float], float]:
    """:func:`repeat`, and one device's ceiling at the same time, in FLOP/s.

    The speed of a machine changes with its clock and its neighbours (a factor of two between
    minutes was seen on a virtual machine), so the ceiling is taken just before and just after: the
    better of the two counts.
    """
    size = best_size(dtype)
    before = _rate(size, dtype)
    seconds = repeat(call, budget)
    return seconds, max(before, _rate(size, dtype))


@cache
def best_size(dtype: str) -> int:
    """The size of the fastest products: float32 at JAX's default precision, as the model's are.

    On recent GPUs that is TF32. All cores of a CPU work on one product. Tried once per process.

    Args:
        dtype: ``float32`` or ``bfloat16``, of operands and result.
    """
    sizes = CPU_SIZES if jax.default_backend() == "cpu" else ACCELERATOR_SIZES
    return max(sizes, key=lambda size: _rate(size, dtype))


def _rate(size: int, dtype: str) -> float:
    """Best FLOP/s of some products of one size."""
    left, right = (
        jax.random.normal(key, (size, size), jnp.dtype(dtype))
        for key in jax.random.split(jax.random.key(size))
    )
    product = jax.jit(jnp.matmul)
    seconds = repeat(lambda: product(left, right), Budget(_SECONDS, least=_LEAST))
    return 2 * size**3 / min(seconds)


def share_facts(
    work: Flops, seconds: float, ceiling: float, *, model: ModelConfig, devices: int
) -> dict[str, Any]:
    """For a row: the work, and what share of the machine's ceiling it was done at.

    Args:
        work: useful FLOPs of one call.
        seconds: of one call, all devices together.
        ceiling: of one device, FLOP/s, from :func:`repeat_beside_ceiling`.
        model: sizes; of a variant that is not counted only the time is known.
        devices: how many worked on it; a CPU's virtual devices share its cores.
    """
    if not counted(model):
        return {"seconds": seconds}
    if jax.default_backend() != "cpu":
        ceiling *= devices
    return {
        "seconds": seconds,
        "useful_flops": work.useful,
        "least_flops": work.least,
        "ceiling_flops_per_s": ceiling,
        "share_of_ceiling": work.useful / seconds / ceiling,
        "share_of_ceiling_least": work.least / seconds / ceiling,
    }
