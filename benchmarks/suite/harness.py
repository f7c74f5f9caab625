"""How a number is measured: options, repeats, compilation, the machine's ceiling, and inputs.

Inputs are noise in the real shapes, with full context. Parameters are random, not initialised:
compiling initialisers would take longer than most measurements, and no time depends on the values.
"""

from __future__ import annotations

import argparse
import dataclasses
import inspect
import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path
from statistics import median
from typing import Any, NoReturn, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.compilation_cache import compilation_cache

from benchmarks.suite.flops import Flops
from benchmarks.suite.machine import machine_line
from benchmarks.suite.report import Row, check_writable
from emerald_jax.agent.state import Learner, TrainState, fresh_state, init_carry, init_state
from emerald_jax.cli import guarded
from emerald_jax.commands import Parser, number
from emerald_jax.config import Config, ConfigError
from emerald_jax.imagination import starts_from
from emerald_jax.presets import get_preset
from emerald_jax.run.directory import write_json
from emerald_jax.run.machine import compile_program
from emerald_jax.training.played import with_played
from emerald_jax.training.update import start_positions
from emerald_jax.types import Batch, Carry, Key, Starts

#: Actions where no environment is involved: Crafter's.
NUM_ACTIONS = 17


@dataclass(frozen=True)
class Budget:
    """When to stop repeating: after ``seconds``, but not before ``least`` or after ``most``."""

    seconds: float = 10.0
    least: int = 3
    most: int = 200


def _option(about: str, default: Any = (), **extra: Any) -> Any:
    """A field of :class:`Options`, with the keywords of its command line option."""
    return field(default=default, metadata={"help": about, **extra})


@dataclass(frozen=True, kw_only=True)
class Options:
    """What to measure; each field is an option of ``python -m benchmarks``.

    Empty tuples and zeros leave the choice to the benchmark. ``found`` is no option: it hands
    ``updates_per_s`` from ``train`` to later benchmarks of the same command.
    """

    quick: bool = _option("a few points, a second each", False, action="store_true")
    full: bool = _option("all points, even where it takes hours", False, action="store_true")
    preset: str = _option("whose sizes (crafter; end-to-end on a CPU: crafter-small)", "")
    seconds: float = _option("for each number (10; quick: 1)", 0.0, type=number(0, kind=float))
    minutes: float = _option("of end-to-end (2; quick: 0.25)", 0.0, type=number(0, kind=float))
    decode_steps: tuple[int, ...] = _option("MaskGIT steps", type=number(0), metavar="S")
    horizon: tuple[int, ...] = _option("imagined steps", type=number(1), metavar="H")
    starts: tuple[int, ...] = _option("rollouts at once", type=number(1), metavar="N")
    dtype: tuple[str, ...] = _option("compute types", choices=("float32", "bfloat16"))
    devices: tuple[int, ...] = _option("numbers of devices", type=number(1), metavar="N")
    remat: tuple[str, ...] = _option("rematerialisation, in train", choices=("on", "off"))
    envs: tuple[str, ...] = _option("environments, in envs", metavar="ENV")
    counts: tuple[int, ...] = _option("how many, in envs", type=number(1), metavar="N")
    records: int = _option("in replay (the preset's capacity)", 0, type=number(0), metavar="N")
    found: dict[str, float] = field(default_factory=dict)

    @classmethod
    def add_to(cls, parser: argparse.ArgumentParser) -> None:
        """Add the options to a parser."""
        for f in dataclasses.fields(cls):
            if f.metadata:
                many = {"nargs": "+"} if f.default == () else {}
                parser.add_argument(f"--{f.name.replace('_', '-')}", **f.metadata, **many)

    @classmethod
    def of(cls, parsed: argparse.Namespace) -> Options:
        """The parsed options; ConfigError where they are invalid."""
        given = {f.name: getattr(parsed, f.name) for f in dataclasses.fields(cls) if f.metadata}
        given = {name: tuple(v) if isinstance(v, list) else v for name, v in given.items() if v}
        get_preset(given.get("preset", "crafter"))
        if parsed.quick and parsed.full:
            raise ConfigError("--quick and --full exclude each other: choose one")
        return cls(**given)

    def budget(self) -> Budget:
        """Of one number."""
        return Budget(self.seconds or 1.0, least=2) if self.quick else Budget(self.seconds or 10.0)

    def config(self, default: str = "crafter") -> Config:
        """The configuration whose sizes are measured; ``default`` where none was named.

        With ``quick`` on a CPU the default is always ``crafter-small``: one update at the paper's
        sizes takes a CPU half a minute.
        """
        if self.quick and on_cpu():
            default = "crafter-small"
        return get_preset(self.preset or default)


def on_cpu() -> bool:
    """Whether JAX computes on CPUs: there the grids are small."""
    return jax.default_backend() == "cpu"


def device_counts(options: Options) -> tuple[int, ...]:
    """Numbers of devices to measure: those asked for, or 1, 2, 4, … up to all."""
    available, most = len(jax.local_devices()), max(options.devices, default=0)
    if most > available:
        raise ConfigError(f"--devices {most}: this machine has {available} JAX device(s)")
    powers = [2**i for i in range(available.bit_length()) if 2**i < available]
    return options.devices or (*powers, available)


def repeat(call: Callable[[], Any], budget: Budget) -> list[float]:
    """Seconds of every repeat of ``call``, each waited for.

    The first call is the warm-up and is not counted, unless it takes longer than the budget: in a
    call of many seconds the overhead of a cold start is negligible.
    """

    def timed() -> float:
        start = time.perf_counter()
        jax.block_until_ready(call())
        return time.perf_counter() - start

    seconds = [first] if (first := timed()) > budget.seconds else []
    while len(seconds) < (budget.most if sum(seconds) < budget.seconds else budget.least):
        seconds.append(timed())
    return seconds


def unless_memory_lacks(what: str, measure: Callable[[], Row]) -> Row | str:
    """The row, or a line that ``what`` does not fit into the device's memory."""
    try:
        return measure()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return f"{what}: it does not fit into the device's memory"


def compile_for(function: Any, *arguments: Any) -> tuple[Callable, dict[str, Any]]:
    """Compile a jitted or pmapped function as training does, for the shapes of ``arguments``.

    Returns the program, and its facts for a row. Seconds are those of tracing, lowering and
    compiling, bytes are 0 where JAX does not report them; donated arguments are no results.
    """
    with no_compilation_cache():
        start = time.perf_counter()
        program = compile_program(function.lower(*arguments))
        seconds = time.perf_counter() - start
    memory = program.memory_analysis()
    temporaries, arguments, results, donated = (
        int(getattr(memory, f"{name}_size_in_bytes", 0) or 0)
        for name in ("temp", "argument", "output", "alias")
    )
    return program, {
        "compile_seconds": round(seconds, 2),
        "temporaries_bytes": temporaries,
        "arguments_bytes": arguments,
        "results_bytes": results - donated,
    }


@contextmanager
def no_compilation_cache() -> Iterator[None]:
    """Disable the compilation cache, so that compile times are real."""
    before = jax.config.jax_enable_compilation_cache

    def use(on: bool) -> None:
        jax.config.update("jax_enable_compilation_cache", on)
        compilation_cache.reset_cache()  # JAX reads the setting only once after a reset

    use(False)
    try:
        yield
    finally:
        use(before)


def memory_peaks() -> dict[str, int]:
    """Highest memory use so far: of this process, and of the first accelerator if it reports it."""
    unit = 1 if sys.platform == "darwin" else 1024  # macOS counts bytes, Linux kibibytes
    peaks = {"process_peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit}
    if device := (jax.local_devices()[0].memory_stats() or {}).get("peak_bytes_in_use"):
        peaks["device_peak_bytes"] = int(device)
    return peaks


def program_row(
    budget: Budget, call: Callable[[], Any], amount: float, work: Flops, facts: dict, **names: Any
) -> tuple[list[float], Row]:
    """Time a compiled program that makes ``amount`` units per ``call`` with some ``work``.

    ``facts`` are from :func:`compile_for`, ``names`` the row's benchmark, case and unit.
    Returns the seconds of every repeat, and the row.
    """
    case = names["case"]
    seconds, ceiling = repeat_with_ceiling(call, budget, case["dtype"])
    facts = share_facts(work, median(seconds), ceiling, devices=case.get("devices", 1)) | facts
    rates = [amount / s for s in seconds]
    return seconds, Row.of(rates, facts=facts | memory_peaks(), **names)


#: Sizes of the square products that are tried; the best rate of ``_SECONDS`` of them counts.
CPU_SIZES = (1024, 2048, 4096)
ACCELERATOR_SIZES = (2048, 4096, 8192, 16384)
_SECONDS = 0.3


def repeat_with_ceiling(
    call: Callable[[], Any], budget: Budget, dtype: str
) -> tuple[list[float], float]:
    """:func:`repeat`, and one device's ceiling in FLOP/s: the rate of large matrix products.

    Measured just before and just after, because a machine's speed changes; the better one counts.
    """
    size = best_size(dtype)
    before = _rate(size, dtype)
    seconds = repeat(call, budget)
    return seconds, max(before, _rate(size, dtype))


@cache
def best_size(dtype: str) -> int:
    """The size of the fastest products, tried once per process; float32 is TF32 on recent GPUs."""
    sizes = CPU_SIZES if on_cpu() else ACCELERATOR_SIZES
    return max(sizes, key=lambda size: _rate(size, dtype))


def _rate(size: int, dtype: str) -> float:
    """Best FLOP/s of some products of one size."""
    left, right = jax.random.normal(jax.random.key(size), (2, size, size), jnp.dtype(dtype))
    product = jax.jit(jnp.matmul)
    seconds = repeat(lambda: product(left, right), Budget(_SECONDS))
    return 2 * size**3 / min(seconds)


def share_facts(work: Flops, seconds: float, ceiling: float, *, devices: int) -> dict[str, Any]:
    """For a row: the work of a call in ``seconds``, and its share of the machine's ceiling.

    ``ceiling`` is that of one device, from :func:`repeat_with_ceiling`.
    """
    if not on_cpu():  # a CPU's virtual devices share its cores
        ceiling *= devices
    return {
        "seconds": seconds,
        "useful_flops": work.useful,
        "least_flops": work.least,
        "ceiling_flops_per_s": ceiling,
        "share_of_ceiling": work.useful / seconds / ceiling,
        "share_of_ceiling_least": work.least / seconds / ceiling,
    }


def with_changes(config: Config, **groups: dict[str, Any]) -> Config:
    """A configuration with some settings replaced, by group."""
    changed = {k: dataclasses.replace(getattr(config, k), **v) for k, v in groups.items()}
    return dataclasses.replace(config, **changed)


def random_state(learner: Learner, seed: int = 0) -> TrainState:
    """A train state with random parameters and fresh optimisers."""
    rng = np.random.default_rng(seed)

    def fill(leaf: jax.ShapeDtypeStruct) -> jax.Array:
        fan_in = np.prod(leaf.shape[:-1]) if len(leaf.shape) > 1 else 1
        noise = rng.standard_normal(leaf.shape, np.float32) / np.sqrt(fan_in)
        # Vectors are biases and scales of norms: values near one suit both.
        return jnp.asarray(noise if len(leaf.shape) > 1 else 1 + 0.1 * noise, leaf.dtype)

    shapes = jax.eval_shape(partial(init_state, learner), jax.random.key(0))
    return fresh_state(learner, jax.tree.map(fill, shapes.params))


def random_batch(config: Config, num_actions: int = NUM_ACTIONS) -> Batch:
    """Random frames and rewards `[B, L]` without episode borders; numpy, without a carry."""
    shape, rng = (config.replay.batch, config.replay.length), np.random.default_rng(0)
    size, flag = config.envs.image_size, np.zeros(shape, bool)
    image = rng.integers(0, 256, (*shape, size, size, 3), dtype=np.uint8)
    action = rng.integers(0, num_actions, shape).astype(np.int32)
    reward = rng.normal(size=shape).astype(np.float32)
    return Batch(image, action, reward, is_first=flag, is_last=flag, is_terminal=flag, reset=flag)


def full_batch(learner: Learner) -> Batch:
    """What one update reads: :func:`random_batch`, :func:`full_carry`, and steps just played."""
    config = learner.config
    batch = random_batch(config)._replace(carry=full_carry(learner, config.replay.batch))
    return with_played(batch, learner)


def full_carry(learner: Learner, batch: int) -> Carry:
    """A carry `[batch]` in which every remembered token belongs to the running episode."""
    shapes = jax.eval_shape(partial(init_carry, learner, batch))
    return jax.jit(partial(_noise, shapes, classes=learner.config.model.classes))(jax.random.key(1))


def full_context_starts(learner: Learner, sequences: int) -> Starts:
    """Starts `[sequences, n]` as an update makes them, each with C real tokens before it.

    Training's own function takes them from a pass of noise in which every token is valid.
    """
    config = with_changes(learner.config, replay={"batch": sequences})
    positions = start_positions(config.replay.length, config.behavior.start_stride)

    def read(key: Key) -> Any:
        batch = random_batch(config)._replace(carry=init_carry(learner, sequences))
        params = init_state(learner, key).params["world_model"]
        keys = jax.random.split(key, sequences)
        return learner.model.apply({"params": params}, batch, keys)

    @jax.jit  # so that parts which no start reads are never made
    def make(key: Key) -> Starts:
        noise = _noise(jax.eval_shape(read, key), key, classes=config.model.classes)
        return starts_from(noise, positions)

    return make(jax.random.key(2))


def _noise(shapes: Any, key: Key, *, classes: int) -> Any:
    """Arrays of the given shapes: normal floats, integers below ``classes``, booleans all True."""

    def one(leaf: jax.ShapeDtypeStruct, key: Key) -> jax.Array:
        if leaf.dtype == jnp.bool_:
            return jnp.ones(leaf.shape, bool)
        if jnp.issubdtype(leaf.dtype, jnp.integer):
            return jax.random.randint(key, leaf.shape, 0, classes, leaf.dtype)
        return jax.random.normal(key, leaf.shape, leaf.dtype)

    leaves, structure = jax.tree.flatten(shapes)
    return jax.tree.unflatten(structure, map(one, leaves, jax.random.split(key, len(leaves))))


def run_script(measure: Callable[..., dict[str, Any]], name: str, *, long: str = "") -> NoReturn:
    """Run a small script: call ``measure`` with its options, write and print the result.

    Its parameters are the options, ``*names`` positional arguments, and its docstring is the help.
    The result goes to ``results/NAME.json`` or to ``--out``; its entry ``long`` is not printed.
    """

    def run(arguments: list[str]) -> int:
        about = " ".join(measure.__doc__.split()).rstrip(".")
        parser = Parser(name, f"python -m benchmarks.{name}", about)
        path = Path(__file__).parents[1] / "results" / f"{name}.json"
        parser.add_argument("--out", type=Path, default=path, metavar="FILE.json")
        for option in inspect.signature(measure, eval_str=True).parameters.values():
            kind = (*get_args(option.annotation), option.annotation)[0]  # int of ``int | None``
            if option.kind is option.VAR_POSITIONAL:
                parser.add_argument(option.name, nargs="*", type=kind)
            else:
                parser.add_argument(f"--{option.name}", type=kind, default=option.default)
        given = vars(parser.parse_args(arguments))
        out = given.pop("out")
        check_writable(out)
        result = measure(*given.pop("names", ()), **given) | {"machine": machine_line()}
        write_json(out, result)
        print(json.dumps({k: v for k, v in result.items() if k != long}, indent=1))
        return 0

    sys.exit(guarded(run, sys.argv[1:]))


def start_small_run(run: Path, settings: dict[str, Any], **streams: Any) -> subprocess.Popen:
    """Train the smallest possible agent, the ``tiny`` preset cut down, in a process of its own.

    ``settings`` are more options of ``emerald-jax train``, ``streams`` its stdout and stderr.
    """
    ones = ("model.blocks", "model.head-layers", "behavior.horizon", "behavior.decode-steps")
    settings = {"logdir": run, "steps": 10**9, **dict.fromkeys(ones, 1), **settings}
    pairs = [text for name, value in settings.items() for text in (f"--{name}", str(value))]
    command = [sys.executable, "-m", "emerald_jax", "train", "tiny", *pairs]
    return subprocess.Popen(command, **streams)
