"""``emerald-jax compile PRESET --for DEVICE``: compile a run for hardware that is not there.

The compilers of TPUs and CUDA devices run on a machine without any. Nothing is executed: times are
the compilers' estimates, or bounds from FLOPs, bytes and launches.
"""

from __future__ import annotations

import importlib.util
import json
import os
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from emerald_jax.commands import Parser, number, write_out
from emerald_jax.commands.train import parse_train
from emerald_jax.config import Config, ConfigError

#: Operations that are slow on TPUs; the compiler does not estimate their cycles.
_SLOW = ("gather", "sort")
#: Seconds that the start of a GPU kernel takes, at least.
LAUNCH = 3e-6
PROGRAMS = ("act", "decode", "imagination", "train")


class Device(NamedTuple):
    """Hardware that programs can be compiled for; figures of one device, from its data sheet.

    Attributes:
        platform: ``cpu``, ``tpu`` or ``gpu``.
        about: its full name.
        topology: JAX's name for ``count`` of them.
        count: number of devices that share a batch.
        memory: bytes.
        bandwidth: bytes/s of that memory.
        bfloat16: FLOP/s of bfloat16 products; 0 without units for them.
        float32: FLOP/s of float32 products at JAX's default precision.
        clock: cycles/s for the compiler's estimates; 0 if unknown.
        chip: the other facts that a CUDA compiler needs; see :data:`_CHIP`.
    """

    platform: str
    about: str
    topology: str = ""
    count: int = 1
    memory: float = 0
    bandwidth: float = 0
    bfloat16: float = 0
    float32: float = 0
    clock: float = 0
    chip: dict[str, Any] | None = None


_T4 = {"capability": (7, 5), "cores": 40, "fpus": 64, "threads": 1024, "ghz": 1.41}
_T4 |= {"shared": 65536, "most_shared": 65536, "l2": 4194304}
_A100 = {"capability": (8, 0), "cores": 108, "fpus": 64, "threads": 2048, "ghz": 1.41}
_A100 |= {"shared": 167936, "most_shared": 166912, "l2": 41943040}
_H100 = {"capability": (9, 0), "cores": 132, "fpus": 128, "threads": 2048, "ghz": 1.98}
_H100 |= {"shared": 233472, "most_shared": 232448, "l2": 52428800}

#: Name on the command line -> :class:`Device`.
DEVICES = {
    name: Device(*facts)
    for name, *facts in (
        ("cpu", "cpu", "this machine's CPU"),
        ("v5e-1", "tpu", "TPU v5e", "v5e:1x1", 1, 17.2e9, 0.82e12, 197e12, 197e12, 1.5e9),
        ("v5e-4", "tpu", "TPU v5e", "v5e:2x2", 4, 17.2e9, 0.82e12, 197e12, 197e12, 1.5e9),
        ("v6e-4", "tpu", "TPU v6e", "v6e:2x2", 4, 34.4e9, 1.64e12, 918e12, 918e12),
        ("v4-4", "tpu", "TPU v4", "v4:2x2x1", 4, 34.4e9, 1.23e12, 275e12, 275e12, 1.05e9),
        ("t4", "gpu", "NVIDIA T4", "1x1x1", 1, 15.8e9, 0.32e12, 0, 8.1e12, 0, _T4),
        ("a100", "gpu", "NVIDIA A100", "1x1x1", 1, 85.1e9, 2.04e12, 312e12, 156e12, 0, _A100),
        ("h100", "gpu", "NVIDIA H100", "1x1x1", 1, 84.9e9, 3.35e12, 989e12, 495e12, 0, _H100),
    )
}

#: Platform -> the modules of which one must be installed, and the extra that has it.
_COMPILERS = {
    "tpu": (("libtpu",), "aot-tpu"),
    "gpu": (("jax_cuda13_plugin", "jax_cuda12_plugin"), "aot-cuda"),
}

#: A GpuTargetConfigProto, the description of a CUDA device for XLA.
_CHIP = """
gpu_device_info {{
  name: "{about}"
  cuda_compute_capability {{ major: {capability[0]} minor: {capability[1]} }}
  core_count: {cores} fpus_per_core: {fpus} clock_rate_ghz: {ghz}
  memory_bandwidth: {bandwidth:.0f} device_memory_size: {memory:.0f} l2_cache_size: {l2}
  shared_memory_per_block: 49152 shared_memory_per_block_optin: {most_shared}
  shared_memory_per_core: {shared}
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
  threads_per_warp: 32 threads_per_block_limit: 1024 threads_per_core_limit: {threads}
  thread_dim_limit_x: 1024 thread_dim_limit_y: 1024 thread_dim_limit_z: 64
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  driver_version: "13.0.0" runtime_version: "12.8.0" compile_time_toolkit_version: "12.8.0"
  dnn_version: "9.10.0"
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 10 }}
device_description_str: "{about}"
"""


def run_compile(arguments: list[str]) -> int:
    """Compile a preset's programs for a device; returns 1 if one of them does not compile."""
    parser = Parser("compile")
    parser.usage = "%(prog)s PRESET --for DEVICE [options] [settings of emerald-jax train]"
    about = "the device: %(choices)s; a number after a hyphen is that of the devices"
    parser.add_argument("--for", dest="device", choices=DEVICES, required=True, help=about)
    about = "one of %(choices)s; several times for several; by default all"
    parser.add_argument("--program", choices=PROGRAMS, action="append", help=about)
    about = "also list the N source lines with the most operations"
    parser.add_argument("--lines", type=number(0), default=0, metavar="N", help=about)
    parser.add_argument("--out", default="", metavar="FILE.json", help="also write the report here")
    options, rest = parser.parse_known_args(arguments)
    config, device = parse_train(rest), DEVICES[options.device]
    config.validate(device.count)
    folder = Path(options.out).parent
    try:
        folder.mkdir(parents=True, exist_ok=True)  # before minutes of work
    except (FileExistsError, NotADirectoryError) as error:
        raise ConfigError(f"--out: {error.filename} is a file, not a directory") from error
    refuse_missing(options.device)
    report = compile_for(config, options.device, options.program or PROGRAMS, options.lines)
    if options.out:
        Path(options.out).write_text(json.dumps(report, indent=1) + "\n")
    write_out(describe(report))
    return int(any("error" in one for one in report["programs"].values()))


def refuse_missing(name: str) -> None:
    """ConfigError with the command that installs the compiler of a device, unless it is there."""
    modules, extra = _COMPILERS.get(DEVICES[name].platform, ((), ""))
    if extra and not any(importlib.util.find_spec(module) for module in modules):
        what = f"the compiler for {DEVICES[name].about} is not installed"
        raise ConfigError(f'{what}: pip install -e ".[{extra}]"')


def compile_for(
    config: Config, name: str, programs: tuple[str, ...] = PROGRAMS, lines: int = 0
) -> dict[str, Any]:
    """Compile programs of a run for a device of :data:`DEVICES`; returns the report, JSON values.

    Call it before JAX has computed anything. ``lines`` is the number of source lines to list.
    """
    # Neither a GPU nor a TPU of this machine is needed, so none is occupied.
    os.environ["JAX_PLATFORMS"] = "cpu"
    os.environ |= {"TPU_SKIP_MDS_QUERY": "1", "TPU_WORKER_HOSTNAMES": "localhost"}
    os.environ["ALLOW_MULTIPLE_LIBTPU_LOAD"] = "1"
    import jax

    from emerald_jax import __version__
    from emerald_jax.models.layers import compute_dtype
    from emerald_jax.run.machine import prepare_jax
    from emerald_jax.target import Target, tracing_for

    prepare_jax()
    jax.config.update("jax_enable_compilation_cache", False)
    device = DEVICES[name]
    devices = _abstract_devices(device)
    with tracing_for(Target(device.platform, bfloat16=device.bfloat16 > 0)):
        dtype = str(compute_dtype(config.model.dtype))
        traced = _programs(config, devices)
        # The device of programs that are compiled for one.
        with jax.default_device(devices[0]):
            found = {one: _report(traced[one], device, dtype, lines) for one in programs}
    facts = device._asdict()
    del facts["chip"], facts["topology"]
    return {
        "preset": config.preset,
        "device": name,
        "facts": facts,
        "dtype": dtype,
        "optimization_level": str(jax.config.jax_optimization_level),
        "batch_per_device": config.replay.batch // device.count,
        "versions": {"emerald-jax": __version__, "jax": jax.__version__},
        "programs": found,
    }


def _abstract_devices(device: Device) -> list[Any]:
    """JAX devices for which programs can be compiled but not run; of a CPU, the real one."""
    import jax
    from jax.experimental.topologies import get_topology_desc

    if device.platform == "cpu":
        return jax.local_devices()[:1]
    if device.platform == "tpu":
        bounds = {"chips_per_host_bounds": (1, 1, 1)} if device.count == 1 else {}
        topology = get_topology_desc(device.topology, "tpu", **bounds)
    else:
        chip = _CHIP.format(**device._asdict(), **device.chip).replace("\n", " ")
        topology = get_topology_desc("", "cuda", target_config=chip, topology=device.topology)
    return list(topology.devices)[: device.count]


def _programs(config: Config, devices: list[Any]) -> dict[str, Callable[[], Any]]:
    """Functions that trace and lower the programs of a run, by name."""
    import jax

    from emerald_jax.envs.registry import spec_of
    from emerald_jax.imagination import decode, starts_from
    from emerald_jax.models.world_model import no_before
    from emerald_jax.run.data import open_data
    from emerald_jax.training.devices import (
        TrainingAgent,
        abstract_batch,
        compile_imagination,
        split,
    )
    from emerald_jax.training.update import start_positions

    spec = open_data(config).spec if config.data else spec_of(config.env, config.envs)
    agent = TrainingAgent(config, spec, devices)
    learner, params, replay = agent.learner, agent.shapes().params, config.replay
    positions = start_positions(replay.length, config.behavior.start_stride)
    key = jax.eval_shape(partial(jax.random.key, 0))
    batch = abstract_batch(learner, agent.spec, replay.batch, replay.length)

    def starts(params: Any, batch: Any, key: Any) -> tuple[Any, Any]:
        keys = jax.random.split(key, replay.batch)
        passed = learner.model.apply({"params": params}, batch, keys)
        return split((starts_from(passed, positions), keys), len(devices))

    def draw(params: Any, h: Any, key: Any, before: Any) -> Any:
        options = {"steps": config.behavior.decode_steps, **config.behavior.decoding}
        options["before"] = before
        return decode(params, h, key, model=learner.model, **options).z

    def imagination() -> Any:
        ready = jax.eval_shape(starts, params["world_model"], batch, key)
        return compile_imagination(learner, devices).lower(params, *ready)

    rows = replay.batch // len(devices) * len(positions)
    h = jax.ShapeDtypeStruct((rows, config.model.width), learner.model.dtype)
    before = jax.eval_shape(lambda: no_before(learner.model, rows))
    run = agent.programs()
    return {
        "act": run["act"],
        "decode": partial(jax.jit(draw).lower, params["world_model"], h, key, before),
        "imagination": imagination,
        "train": run["train"],
    }


def _report(lower: Callable[[], Any], device: Device, dtype: str, lines: int) -> dict[str, Any]:
    """Trace and compile one program; its figures, or the compiler's error."""
    import jax

    from emerald_jax.run.hlo import Program
    from emerald_jax.training.devices import memory_needed

    if lines:
        jax.clear_caches()  # a traced function keeps the source lines of its first caller
    begin = time.perf_counter()
    lowered = lower()
    found = {"trace_seconds": round(time.perf_counter() - begin, 1)}
    begin = time.perf_counter()
    try:
        compiled, found["note"] = _compile(lowered, device)
    except jax.errors.JaxRuntimeError as error:
        return {**found, "error": str(error).strip().partition("\n")[0][:300]}
    found["compile_seconds"] = round(time.perf_counter() - begin, 1)
    plain = Program(lowered.as_text(dialect="hlo"))
    flops = sum(times * plain.flops(one) for one, times in plain.executed())
    found |= {"memory": memory_needed(compiled)[1], "flops": flops}
    found |= _figures(Program(compiled.as_text()), device, lines)
    if device.platform != "cpu":
        rate = device.bfloat16 if dtype == "bfloat16" else 0
        found["flop_bound"] = flops / (rate or device.float32)
        found["traffic_bound"] = found["traffic"] / device.bandwidth
    return found


def _compile(lowered: Any, device: Device) -> tuple[Any, str]:
    """Compile a lowered program; also a note on how, if not as usual."""
    import jax

    from emerald_jax.run.machine import compile_program

    try:
        return compile_program(lowered), ""
    except jax.errors.JaxRuntimeError as error:
        if device.platform != "gpu" or "tile sizes" not in str(error):
            raise
    # On the device a search finds tiles for Triton; the defaults do not suit the smallest products.
    options = {"xla_gpu_enable_triton_gemm": False}
    return lowered.compile(compiler_options=options), "matrix products are calls of cuBLAS"


def _figures(program: Any, device: Device, lines: int) -> dict[str, Any]:
    """Counts, bytes, cycles and the launch bound of what one call executes."""
    counts, sources, launches = Counter(), Counter(), 0.0
    for one, times in program.executed():
        traffic, sent = program.traffic(one), program.collective(one)
        cycles = one.number("estimated_cycles")
        counts += Counter(
            operations=times,
            copies=times * (one.opcode in ("copy", "copy-start")),
            traffic=times * traffic,
            collectives=times * bool(sent),
            collective_bytes=times * sent,
            cycles=times * (cycles or 0),
            without_cycles=times * (cycles is None),
        )
        for part in program.parts(one):
            counts[f"{part.opcode}s"] += times * (part.opcode in _SLOW)
        sources[program.source(one)] += times
        launches += times * max(LAUNCH, traffic / (device.bandwidth or 1))
    names = ["operations", "copies", "traffic", "gathers", "sorts", "collectives"]
    found = {name: counts[name] for name in [*names, "collective_bytes"]}
    if device.platform == "gpu":
        found |= {"launch_bound": launches}
    if device.platform == "tpu":
        found |= {name: counts[name] for name in ("cycles", "without_cycles")}
        found |= {"estimate": counts["cycles"] / device.clock} if device.clock else {}
    if lines:
        found["sources"] = dict(sources.most_common(lines))
    return found


#: Entry of a program's report -> its row in the table, and what a unit of it is.
_ROWS = {
    "trace_seconds": ("tracing, s", 1),
    "compile_seconds": ("compiling, s", 1),
    "memory": ("memory per device, MB", 1e6),
    "flops": ("work, GFLOP", 1e9),
    "traffic": ("traffic, MB", 1e6),
    "operations": ("operations", 1),
    "copies": ("of these, copies", 1),
    "gathers": ("gathers", 1),
    "sorts": ("sorts", 1),
    "collectives": ("collectives", 1),
    "collective_bytes": ("bytes sent in them, MB", 1e6),
    "cycles": ("estimated cycles, million", 1e6),
    "without_cycles": ("operations without estimate", 1),
    "flop_bound": ("FLOP bound, ms", 1e-3),
    "traffic_bound": ("bandwidth bound, ms", 1e-3),
    "launch_bound": ("launch bound, ms", 1e-3),
    "estimate": ("estimated time, ms", 1e-3),
}


def describe(report: dict[str, Any]) -> str:
    """The report as text: one column per program, then errors and source lines."""
    facts, programs = report["facts"], report["programs"]
    head = f"{report['preset']} in {report['dtype']} on {facts['count']} x {facts['about']}"
    if facts["memory"]:
        head += f" with {facts['memory'] / 1e6:,.0f} MB each"
    text = f"{head}; all figures are per device\n\n"
    text += " " * 28 + "".join(f"{name:>13}" for name in programs) + "\n"
    for entry, (name, unit) in _ROWS.items():
        if any(entry in one for one in programs.values()):
            cells = (_cell(one.get(entry), unit) for one in programs.values())
            text += f"{name:<28}" + "".join(f"{cell:>13}" for cell in cells) + "\n"
    for name, one in programs.items():
        if "error" in one:
            text += f"\n{name} does not compile: {one['error']}\n"
        if one.get("note"):
            text += f"\n{name}: {one['note']}\n"
        if "sources" in one:
            text += f"\n{name}, operations by source line\n"
            text += "".join(f"{times:>9,}  {line}\n" for line, times in one["sources"].items())
    return text


def _cell(value: float | None, unit: float) -> str:
    """A figure with at least three digits; empty if there is none."""
    if value is None:
        return ""
    value /= unit
    return f"{value:,.0f}" if value >= 100 or value == int(value) else f"{value:.3g}"
