"""Imagination alone: states per second over S, H, starts, compute type and devices.

Every start has a full real context: C valid past keys, shared by the starts of its sequence.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from itertools import product
from typing import Any, NamedTuple

import jax

import emerald_jax as ej
from benchmarks.suite import harness
from benchmarks.suite.flops import trace_flops
from benchmarks.suite.harness import Options, on_cpu
from benchmarks.suite.report import Row, describe
from benchmarks.train import dream, starts_per_sequence
from emerald_jax.config import ConfigError
from emerald_jax.training import devices as parallel

NAME = "imagination"


class Point(NamedTuple):
    """One point of the grid: S, H, rollouts, compute type, devices."""

    steps: int
    horizon: int
    starts: int
    dtype: str
    devices: int

    @property
    def case(self) -> dict[str, Any]:
        """The point as a row's case."""
        return dict(zip(("S", "H", "starts", "dtype", "devices"), self, strict=True))


def measure(options: Options) -> Iterator[Row | str]:
    """Rows, and a line for every point that is left out."""
    config = options.config()
    for point in points(options, config):
        what = f"imagination {describe(point.case)}"
        if reason := obstacle(config, point):
            yield f"{what}: {reason}"
        else:
            yield harness.unless_memory_lacks(what, partial(measure_point, config, point, options))


def points(options: Options, config: ej.Config) -> list[Point]:
    """The points to measure on this machine.

    Named axes are crossed. Otherwise a GPU measures the complete grid; a slow CPU changes one axis
    at a time. ``quick`` takes the preset's own S and the linear head.
    """
    devices, unit = harness.device_counts(options), starts_per_sequence(config)
    steps, horizon = config.behavior.decode_steps, config.behavior.horizon
    dtype = "float32" if on_cpu() else "bfloat16"
    here = Point(steps, horizon, config.replay.batch * unit, dtype, devices[0])
    named = (options.decode_steps, options.horizon, options.starts, options.dtype)
    if any(named) or options.devices:
        axes = [axis or (own,) for axis, own in zip(named, here[:4], strict=True)]
        return [Point(*values) for values in product(*axes, devices)]
    if options.quick:
        return [here, here._replace(steps=0 if here.steps else 1)]
    starts = [unit * 4**i for i in range(1, 5)]
    grid = Point((0, 1, 3, 8), (5, 15, 30), starts, ("float32", "bfloat16"), devices)
    if options.full or not on_cpu():
        return [Point(*values) for values in product(*grid)]
    grid = grid._replace(starts=[n for n in starts if n <= 4 * here.starts])
    changed = [here._replace(**{k: v}) for k, values in grid._asdict().items() for v in values]
    return list(dict.fromkeys([here, *changed]))


def with_point(config: ej.Config, point: Point) -> ej.Config:
    """The configuration with a point's S, H and compute type."""
    behavior = {"decode_steps": point.steps, "horizon": point.horizon}
    return harness.with_changes(config, behavior=behavior, model={"dtype": point.dtype})


def obstacle(config: ej.Config, point: Point) -> str:
    """Why a point cannot be measured; empty when it can."""
    unit = starts_per_sequence(config)
    if point.starts % unit:
        return f"{unit} starts share one real past: choose a multiple of {unit}"
    if point.starts // unit % point.devices:
        return f"{point.starts // unit} sequences do not divide over {point.devices} devices"
    try:
        with_point(config, point).validate()
    except ConfigError as error:
        return str(error)
    return ""


def measure_point(config: ej.Config, point: Point, options: Options) -> Row:
    """Compile and time one point."""
    config = with_point(config, point)
    learner = ej.build_learner(config, harness.NUM_ACTIONS)
    devices = parallel.local_devices(point.devices)
    params = harness.random_state(learner).params
    sequences = point.starts // starts_per_sequence(config)
    starts = harness.full_context_starts(learner, sequences)
    keys = jax.random.split(jax.random.key(0), sequences)
    work, _ = trace_flops(partial(dream, learner=learner), params, starts, keys)
    params = parallel.place_state(params, devices)
    starts, keys = parallel.place_shares(parallel.split((starts, keys), len(devices)), devices)
    imagine = parallel.compile_imagination(learner, devices)
    program, facts = harness.compile_for(imagine, params, starts, keys)
    case = {"preset": config.preset, **point.case}
    names = {"benchmark": NAME, "case": case, "unit": "imagined states/s"}
    call, amount = partial(program, params, starts, keys), point.starts * point.horizon
    return harness.program_row(options.budget(), call, amount, work, facts, **names)[1]
