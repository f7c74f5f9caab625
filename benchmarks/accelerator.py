"""All that some minutes with an accelerator can show: ``python -m benchmarks accelerator``.

The stages run in a second process, in the order of :data:`STAGES`. Each has a share of the minutes;
what it does not use is left to the last one, a real training run. A stage writes DIR/STAGE.json
after every row, in the format of ``python -m benchmarks --out``. If it fails, takes twice its share
or ends the process, the reason is left out there, and the next stage goes on.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import math
import os
import shutil
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, redirect_stdout, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import jax
import jax.numpy as jnp

from benchmarks import decode, imagination, train
from benchmarks.suite import harness, report
from benchmarks.suite.harness import Budget, Options, on_cpu
from benchmarks.suite.report import Repeats, Report, Row, write_report
from benchmarks.suite.trace import kernel_facts, trace_kernels
from emerald_jax import commands, presets
from emerald_jax.agent.state import Learner, TrainState
from emerald_jax.config import Config, ConfigError
from emerald_jax.envs import EnvError
from emerald_jax.models.layers import compute_dtype
from emerald_jax.presets import get_preset
from emerald_jax.run.directory import (
    METRICS_FILE,
    first_line,
    read_config,
    read_rows,
    saved_steps,
    write_atomic,
)
from emerald_jax.run.machine import prepare_jax

ROOT = Path(__file__).resolve().parents[1]
#: Seconds to start a process or a run, and to end it after SIGTERM.
START_S, END_S = 20.0, 30.0
#: Updates below which a training run at the paper's sizes shows nothing.
_LEAST_UPDATES = 300
#: With these flags a rehearsal's programs compile quickly.
_QUICK_FLAGS = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"


class Sizes(NamedTuple):
    """What is measured, in the order of importance; ``seconds`` is for each number."""

    paper: str = "crafter"
    small: tuple[str, ...] = ("minatar", "quickstart")
    latents: tuple[int, ...] = (256, 4096, 1, 1024, 16, 64, 4)
    rounds: tuple[int, ...] = (3, 1, 8)
    starts: tuple[int, ...] = (256, 4096, 1024, 64, 2048, 512, 128)
    steps: tuple[int, ...] = (3, 0, 1, 8)
    seeds: tuple[int, ...] = (8, 32)
    copied: int = 2**30
    seconds: float = 1.0


REHEARSAL = Sizes("tiny", (), (4,), (1,), (8,), (1,), (), 2**16, 0.02)


@dataclass(frozen=True)
class Plan:
    """One command: the folder of its results, its minutes, and their end (time since 1970)."""

    out: Path
    minutes: float
    until: float
    rehearse: bool = False

    @property
    def command(self) -> str:
        """The command in the reports, without folders."""
        return "python -m benchmarks accelerator" + (" --rehearse" if self.rehearse else "")

    @property
    def sizes(self) -> Sizes:
        """What is measured."""
        return REHEARSAL if self.rehearse else Sizes()

    @property
    def dtype(self) -> str:
        """The device's own compute type."""
        return str(compute_dtype("auto"))

    def seconds(self, stage: str) -> float:
        """The share of a stage; a rehearsal measures its few points, however long they take."""
        return 60 * self.minutes * (1 if self.rehearse else STAGES[stage][1])

    def left(self) -> float:
        """Seconds until the end."""
        return self.until - time.time()

    def read(self, stage: str) -> Report | None:
        """The report of a stage that has begun; ConfigError where it is another command's."""
        path = self.out / f"{stage}.json"
        found = report.read_report(path) if path.exists() else None
        if found and found.command != self.command:
            raise ConfigError(f"{self.out} has results of `{found.command}`: choose another --out")
        return found

    def write(self, stage: str, found: Report) -> None:
        """Write a stage's report."""
        write_report(self.out / f"{stage}.json", found)

    def next_stage(self) -> str | None:
        """The first stage that is not complete."""
        found = ((stage, self.read(stage)) for stage in STAGES)
        return next((stage for stage, one in found if one is None or not one.complete), None)

    def options(self, **points: Any) -> Options:
        """Options of a benchmark: one device, its own compute type, few repeats."""
        own = {"devices": (1,), "dtype": (self.dtype,), "preset": self.sizes.paper}
        return Options(quick=True, seconds=self.sizes.seconds, **own, **points)

    def rate(self, preset: str) -> float:
        """Updates per second of a preset as measured before; 0 where they are unknown."""
        found = filter(None, map(self.read, ("update", "small")))
        rows = [row for one in found for row in one.rows if row.case["preset"] == preset]
        return rows[0].value.median if rows else 0.0


def measure_device(plan: Plan) -> Iterator[Row | str]:
    """Rates of large matrix products by type, and of a copy in the device's memory."""
    device = jax.local_devices()[0]
    known = {"memory_bytes": (device.memory_stats() or {}).get("bytes_limit")}
    for name in ("compute_capability", "platform_version"):
        known[name] = getattr(device, name, None) or getattr(device.client, name, None)

    def row(product: str, size: int, rates: list[float], unit: str, **facts: Any) -> Row:
        case, facts = {"product": product, "size": size}, {**known, **facts}
        return Row(benchmark="device", case=case, unit=unit, value=Repeats.of(rates), facts=facts)

    for name in ("bfloat16", "tensorfloat32", "float32"):
        if name == "tensorfloat32" and on_cpu():
            yield f"device {name}: a CPU has no such units"
            continue
        sizes = harness.CPU_SIZES if on_cpu() else harness.ACCELERATOR_SIZES
        dtype = "bfloat16" if name == "bfloat16" else "float32"
        with jax.default_matmul_precision(name):
            rates = {size: harness._rate(size, dtype) / 1e12 for size in sizes}
        best = max(rates, key=rates.get)
        yield row(name, best, [rates[best]], "TFLOP/s", tflops_per_s_by_size=rates)
    add, x = jax.jit(lambda x: x + 1), jnp.zeros(plan.sizes.copied // 4, jnp.float32)
    seconds = harness.repeat(lambda: add(x), plan.options().budget())
    yield row("copy", x.nbytes, [2 * x.nbytes / s / 1e9 for s in seconds], "GB/s")


@contextmanager
def shared_states() -> Iterator[None]:
    """Make random parameters once per model: at the paper's sizes that takes seconds."""
    make, known = harness.random_state, {}

    def state(learner: Learner) -> TrainState:
        if learner.config.model not in known:
            known[learner.config.model] = make(learner)
        return known[learner.config.model]

    with mock.patch.object(harness, "random_state", state):
        yield


def measure_decode(plan: Plan) -> Iterator[Row | str]:
    """The three priors at each number of latents."""
    with shared_states():
        for n in plan.sizes.latents:
            yield from decode.measure(plan.options(starts=(n,), decode_steps=plan.sizes.rounds))


def measure_imagination(plan: Plan) -> Iterator[Row | str]:
    """Rollouts from all numbers of starts at the paper's S, then at the others."""
    points = {"starts": plan.sizes.starts, "decode_steps": plan.sizes.steps}
    with shared_states():
        yield from imagination.measure(plan.options(**points))


def measure_update(plan: Plan) -> Iterator[Row | str]:
    """The update at the paper's sizes, its split, and the update in float32."""
    return _updates(plan, [plan.sizes.paper], [] if on_cpu() else ["float32"])


def measure_small(plan: Plan) -> Iterator[Row | str]:
    """The updates of the small presets, and their split."""
    return _updates(plan, plan.sizes.small, [])


def measure_seeds(plan: Plan) -> Iterator[Row | str]:
    """Updates of the small presets with several seeds in one program."""
    for count, preset in itertools.product(plan.sizes.seeds, reversed(plan.sizes.small)):
        config = harness.with_changes(get_preset(preset), model={"dtype": plan.dtype})
        call = partial(train.measure_seeds, config, count, plan.options())
        yield harness.unless_memory_lacks(f"{count} seeds of {preset}", call)


def _updates(plan: Plan, names: Sequence[str], others: Sequence[str]) -> Iterator[Row | str]:
    """The updates alone, again with their parts (from the compilation cache), in other types."""
    passes = [(plan.dtype, parts) for parts in ((True,) if plan.rehearse else (False, True))]
    for dtype, parts in [*passes, *((dtype, False) for dtype in others)]:
        for preset in names:
            config = harness.with_changes(get_preset(preset), model={"dtype": dtype})
            call = partial(train.measure_update, config, 1, plan.options(), parts=parts)
            yield harness.unless_memory_lacks(f"train {preset} {dtype}", call)


def measure_kernels(plan: Plan) -> Iterator[Row | str]:
    """Kernels of one update, from the profiler's trace, which stays in DIR/trace."""
    preset, times = plan.sizes.paper, 1 if on_cpu() else 3
    if not plan.rate(preset):
        yield "kernels: the update could not be measured"
        return
    update = train.Update(harness.with_changes(get_preset(preset), model={"dtype": plan.dtype}), 1)
    jax.block_until_ready(update())
    kernels, seconds = trace_kernels(update, times, plan.out / "trace")
    if not kernels:
        yield "kernels: the profiler of this device gives no events"
        return
    value, facts = Repeats.of([times / seconds]), kernel_facts(kernels, times, seconds)
    case = {"preset": preset, "dtype": plan.dtype}
    yield Row(benchmark="kernels", case=case, unit="updates/s", value=value, facts=facts)


def train_run(plan: Plan) -> Iterator[Row | str]:
    """A real run until shortly before the end: DIR/run, its curve, and its weights alone."""
    from benchmarks.end_to_end import end_to_end_row
    from emerald_jax.look.figures import curve_figure, save
    from emerald_jax.run.weights import export_weights
    from emerald_jax.training import train as training

    run = plan.out / "run"
    config, alone, lines = choose_run(plan, run)
    yield from lines
    if config is None:
        raise EnvError(
            "none of these environments can be used; the simplest: pip install gymnax six"
        )
    # The end is for the last checkpoint and the curve.
    minutes = max(START_S, plan.left() - END_S) / 60
    config = dataclasses.replace(config, logdir=str(run), max_minutes=minutes)
    with redirect_stdout(sys.stderr):
        result = training.train(config)
    if result.exit_code == training.INTERRUPTED and plan.left() > 0:
        raise KeyboardInterrupt
    with suppress(ValueError):  # neither an episode nor a row yet
        save(curve_figure(run), plan.out / "curve.png")
    shutil.rmtree(plan.out / "weights", ignore_errors=True)
    export_weights(run, plan.out / "weights", dtype="bfloat16")
    rows = [row for row in read_rows(run / METRICS_FILE) if "speed/updates_per_s" in row]
    if len(rows) < 2:  # the first includes the prefill
        yield "training: too short for a rate"
        return
    bare = plan.rate(config.preset) or math.nan
    row = end_to_end_row(config, rows[1:], bare, alone, result.seconds / 60)
    facts = {**row.facts, "updates": result.updates, "env_steps": result.env_steps}
    facts["last_return"] = result.score
    known = {name: value for name, value in facts.items() if not math.isnan(value)}
    yield dataclasses.replace(row, facts=known)


def choose_run(plan: Plan, run: Path) -> tuple[Config | None, float, list[str]]:
    """The run that fits this machine, or the one to continue.

    Returns its settings, the seconds of a step of all its environments alone, and a line for every
    better run that does not fit.
    """
    from benchmarks.end_to_end import vector_step_seconds

    lines: list[str] = []
    candidates = [read_config(run)] if saved_steps(run) else possible_runs(plan)
    for place, config in enumerate(candidates):
        try:
            alone = vector_step_seconds(config, Budget(0.1 if plan.rehearse else 2.0, least=3))
        except EnvError as error:
            lines.append(f"training in {config.env}: {error}")
            continue
        pause = config.updates_per_vector_step / (plan.rate(config.preset) or math.inf)
        if alone < pause or place > 0 or len(candidates) == 1:
            return config, alone, lines
        text = f"a step takes {alone:.3g} s, its updates only {pause:.3g} s"
        lines.append(f"training in {config.env}: {text}")
    return None, 0.0, lines


def possible_runs(plan: Plan) -> list[Config]:
    """Runs in the order of preference; of several the first only if its environments keep up."""
    small = "tiny" if plan.rehearse else "quickstart" if on_cpu() else "minatar"
    found = [(small, get_preset(small).env)]
    if plan.rate("crafter") * plan.left() > _LEAST_UPDATES:
        own = ("crafter", "crafter")
        found = [own, ("crafter", "craftax:Craftax-Classic-Pixels-v1"), own, *found]
    configs = []
    for preset, env in found:
        every = 5 if plan.rehearse else max(1, round(2 * (plan.rate(preset) or 10)))
        log = {"every": every, "pictures": 0, "eval_episodes": 0, "checkpoint_minutes": 2.0}
        steps = 200 if plan.rehearse else 10**9
        config = dataclasses.replace(get_preset(preset), env=env, steps=steps, devices=1)
        configs.append(harness.with_changes(config, log=log))
    return configs


#: What a stage measures, and its share of the minutes.
STAGES: dict[str, tuple[Callable[[Plan], Iterator[Row | str]], float]] = {
    "device": (measure_device, 0.05),
    "decode": (measure_decode, 0.12),
    "imagination": (measure_imagination, 0.14),
    "update": (measure_update, 0.22),
    "kernels": (measure_kernels, 0.05),
    "small": (measure_small, 0.10),
    "seeds": (measure_seeds, 0.10),
    "training": (train_run, 1.0),
}


def run_stage(plan: Plan, stage: str) -> None:
    """Measure one stage until its share is used; its report is written after every row."""
    found, began = Report.begin(plan.command), time.time()
    deadline = min(began + plan.seconds(stage), plan.until)
    plan.write(stage, found)
    _log(f"{stage}: {max(0, deadline - began):.0f} s")
    try:
        for row in STAGES[stage][0](plan):
            _add(found, row, time.time() - began)
            plan.write(stage, found)
            if time.time() > deadline and stage != "training":
                found.left_out.append(f"{stage}: its time is over; later points are left out")
                break
    except Exception as error:  # the next stage goes on, whatever happened
        _add(found, f"{stage} failed: {type(error).__name__}: {first_line(error)}")
        text = traceback.format_exc()[-20_000:]
        write_atomic(plan.out / f"{stage}.error.txt", text.encode())
    found.complete = True
    plan.write(stage, found)


def _add(found: Report, row: Row | str, seconds: float = 0.0) -> None:
    """Add a row, in the place of an earlier one of the same point, or a line."""
    if isinstance(row, Row):
        row.facts["stage_seconds"] = round(seconds, 1)
        found.rows = [other for other in found.rows if other.identity != row.identity] + [row]
        _log(f"  {row.identity}: {row.value.median:,.4g} {row.unit}")
    elif row not in found.left_out:
        found.left_out.append(row)
        _log(f"  left out: {row}")


def work(plan: Plan) -> int:
    """Body of the second process: all stages that are left, while there is time."""
    if jax.config.jax_compilation_cache_dir is None:
        jax.config.update("jax_compilation_cache_dir", str(plan.out / "xla"))
    prepare_jax()
    # Stages share programs: each is compiled once, into a cache that is empty at first.
    changes: dict[str, Any] = {"no_compilation_cache": nullcontext, "_SECONDS": 0.1}
    known = {}
    if plan.rehearse:
        changes |= {"CPU_SIZES": (256,), "_SECONDS": 0.01}
        groups = {"model": {"grid": 5, "blocks": 1, "head_layers": 1}, "envs": {"image_size": 10}}
        groups["behavior"] = {"horizon": 2, "decode_steps": 1}
        known["tiny"] = ("for a rehearsal", harness.with_changes(get_preset("tiny"), **groups))
    with mock.patch.multiple(harness, **changes), mock.patch.dict(presets.PRESETS, known):
        while stage := plan.next_stage():
            if plan.left() < (START_S + END_S if stage == "training" else 0):
                break
            run_stage(plan, stage)
            write_summary(plan)
            jax.clear_caches()
    return 0


def supervise(plan: Plan, command: Sequence[str]) -> None:
    """Start ``command`` until every stage is complete or the time is over.

    ConfigError where it ends before it has begun a stage.
    """
    env = dict(os.environ)
    if plan.rehearse:
        flags = f"{env.get('XLA_FLAGS', '')} {_QUICK_FLAGS}".strip()
        env |= {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags}
    while plan.left() > 0 and (first := plan.next_stage()):
        process = subprocess.Popen(command, cwd=ROOT, env=env)
        try:
            reason = _watch(plan, process)
        finally:
            _stop(process)
        if not reason:  # complete, or too little time for the next stage
            break
        stage = plan.next_stage()
        if stage and (found := plan.read(stage)):
            _add(found, f"{stage} failed: {reason}")
            found.complete = True
            plan.write(stage, found)
        elif stage == first:
            raise ConfigError(f"nothing can be measured: {reason}; its own messages are above")


def _watch(plan: Plan, process: subprocess.Popen) -> str:
    """Wait for the process; returns why its stage failed, or an empty text.

    A stage that the end of all minutes cuts off has not failed: the same command repeats it.
    """
    stage, began = plan.next_stage(), time.time()
    while process.poll() is None:
        time.sleep(0.2)
        if (now := plan.next_stage()) != stage:
            stage, began = now, time.time()
        most = 2 * plan.seconds(stage) + START_S if stage else END_S
        if plan.left() < -END_S:
            return ""
        if time.time() > began + most:
            return f"its process was stopped after {time.time() - began:.0f} s"
    return f"its process ended with exit code {process.returncode}" if process.returncode else ""


def _stop(process: subprocess.Popen) -> None:
    process.terminate()
    try:
        process.wait(END_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def write_summary(plan: Plan) -> str:
    """Write DIR/summary.md: a line per stage, then all rows; returns the lines as text."""
    body, read = [], {stage: plan.read(stage) for stage in STAGES}
    for stage, found in read.items():
        state, first = "complete" if found and found.complete else "not complete", [""] * 5
        if _failed(stage, found):
            state = "failed"
        if found and found.rows:
            row, seconds = found.rows[0], found.rows[-1].facts["stage_seconds"]
            first = [str(len(found.rows)), f"{seconds:.0f}", report.describe(row.case)[:60]]
            first += [report.number(row.value.median), row.unit]
        body.append([stage, state, *first])
    head = ("stage", "state", "rows", "seconds", "first row", "value", "unit")
    render = partial(report.render, "Stages", head, body)
    known = list(filter(None, read.values()))
    tables = report.report_tables([found for found in known if found.rows], markdown=True)
    rowless = [f"- {line}\n" for found in known if not found.rows for line in found.left_out]
    text = f"## An accelerator\n\n`{plan.command}`\n\n{render(markdown=True)}\n{tables}\n"
    write_atomic(plan.out / "summary.md", (text + "".join(rowless)).encode())
    return render(markdown=False)


def _failed(stage: str, found: Report | None) -> bool:
    return found is not None and any(line.startswith(f"{stage} failed") for line in found.left_out)


def run_accelerator(arguments: list[str]) -> int:
    """Run ``python -m benchmarks accelerator``; the exit code is 1 if a stage failed or is left."""
    about = "measure this accelerator, then train on it, within some minutes"
    parser = commands.Parser("accelerator", "python -m benchmarks accelerator", about)
    add, minutes = parser.add_argument, commands.number(0.1, kind=float)
    add("--minutes", type=minutes, metavar="M", help="in all, about (12; a rehearsal: 30)")
    add("--out", type=Path, required=True, metavar="DIR", help="results, continued if any")
    add("--rehearse", action="store_true", help="all stages at tiny sizes on the CPU")
    add("--worker-until", type=float, help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    out, minutes = given.out.absolute(), given.minutes or (30.0 if given.rehearse else 12.0)
    plan = Plan(out, minutes, given.worker_until or time.time() + 60 * minutes, given.rehearse)
    if given.worker_until:
        return work(plan)
    with report.refused(f"--out {given.out}"):
        out.mkdir(parents=True, exist_ok=True)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    words = ["accelerator", *arguments, "--out", str(out), "--worker-until", str(plan.until)]
    supervise(plan, [sys.executable, "-m", "benchmarks", *words])
    sys.stdout.write(write_summary(plan) + f"{out / 'summary.md'}\n")
    failed = any(_failed(stage, plan.read(stage)) for stage in STAGES)
    return int(failed or plan.next_stage() is not None)


def _log(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
