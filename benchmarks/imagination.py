"""Imagination alone: states per second over S, H, starts, compute type and devices.

Every start has a full real context: C valid past keys, shared by the starts of its sequence.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from itertools import product
from typing import Any, NamedTuple

import jax

from benchmarks.suite.flops import trace_flops
from benchmarks.suite.harness import (
    NUM_ACTIONS,
    Options,
    compile_for,
    device_counts,
    full_context_starts,
    on_cpu,
    program_row,
    random_state,
    unless_memory_lacks,
    with_changes,
)
from benchmarks.suite.report import Row, describe
from benchmarks.train import dream, starts_per_sequence
from emerald_jax.agent.state import build_learner
from emerald_jax.config import Config, ConfigError
from emerald_jax.training.devices import (
    compile_imagination,
    local_devices,
    place_shares,
    place_state,
    split,
)

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
        what, reason = f"imagination {describe(point.case)}", obstacle(config, point)
        if reason:
            yield f"{what}: {reason}"
        else:
            yield unless_memory_lacks(what, partial(measure_point, config, point, options))


def points(options: Options, config: Config) -> list[Point]:
    """The points to measure on this machine.

    Named axes are crossed. Otherwise a GPU measures the complete grid. A CPU, where one point at
    the paper's sizes takes ten seconds and more, changes one axis at a time. ``quick`` takes the
    preset's own S and the linear head.
    """
    devices, behavior, unit = device_counts(options), config.behavior, starts_per_sequence(config)
    here = Point(
        steps=behavior.decode_steps,
        horizon=behavior.horizon,
        starts=config.replay.batch * unit,
        dtype="float32" if on_cpu() else "bfloat16",
        devices=devices[0],
    )
    named = (options.decode_steps, options.horizon, options.starts, options.dtype)
    if any(named) or options.devices:
        axes = [axis or (own,) for axis, own in zip(named, here[:4], strict=True)]
        return [Point(*values) for values in product(*axes, devices)]
    if options.quick:
        return [here, here._replace(steps=0 if here.steps else 1)]
    grid = {
        "steps": (0, 1, 3, 8),
        "horizon": (5, 15, 30),
        "starts": tuple(unit * 4**i for i in range(1, 5)),
        "dtype": ("float32", "bfloat16"),
        "devices": devices,
    }
    if options.full or not on_cpu():
        return [Point(*values) for values in product(*grid.values())]
    grid["starts"] = tuple(n for n in grid["starts"] if n <= 4 * here.starts)
    changed = [here._replace(**{axis: value}) for axis, values in grid.items() for value in values]
    return list(dict.fromkeys([here, *changed]))


def with_point(config: Config, point: Point) -> Config:
    """The configuration with a point's S, H and compute type."""
    behavior = {"decode_steps": point.steps, "horizon": point.horizon}
    return with_changes(config, behavior=behavior, model={"dtype": point.dtype})


def obstacle(config: Config, point: Point) -> str:
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


def measure_point(config: Config, point: Point, options: Options) -> Row:
    """Compile and time one point."""
    config = with_point(config, point)
    learner, devices = build_learner(config, NUM_ACTIONS), local_devices(point.devices)
    params = random_state(learner).params
    sequences = point.starts // starts_per_sequence(config)
    starts = full_context_starts(learner, sequences)
    keys = jax.random.split(jax.random.key(0), sequences)
    work, _ = trace_flops(partial(dream, learner=learner), params, starts, keys)
    params = place_state(params, devices)
    starts, keys = place_shares(split((starts, keys), len(devices)), devices)
    program, facts = compile_for(compile_imagination(learner, devices), params, starts, keys)
    return program_row(
        lambda: program(params, starts, keys),
        work,
        facts,
        amount=point.starts * point.horizon,
        budget=options.budget(),
        benchmark=NAME,
        case={"preset": config.preset, **point.case},
        unit="imagined states/s",
    )[1]
