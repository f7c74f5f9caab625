"""Imagination alone: states per second over S, H, starts, compute type and devices.

Every start has a full real context: C valid past keys, shared by the starts of its sequence.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from itertools import product
from typing import Any, NamedTuple

import jax

from benchmarks.suite.flops import imagine_flops
from benchmarks.suite.harness import (
    NUM_ACTIONS,
    Options,
    compile_for,
    device_counts,
    full_context_starts,
    memory_peaks,
    on_cpu,
    random_state,
    repeat_beside_ceiling,
    share_facts,
    unless_memory_lacks,
    with_changes,
)
from benchmarks.suite.report import Row, Spread
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


def measure(options: Options) -> Iterator[Row | str]:
    """Rows, and a line for every point that is left out."""
    config = options.config()
    for point in points(options, config):
        what, reason = f"imagination {describe_point(point)}", obstacle(config, point)
        if reason:
            yield f"{what}: {reason}"
        else:
            yield unless_memory_lacks(what, partial(measure_point, config, point, options))


def points(options: Options, config: Config) -> list[Point]:
    """What to measure here.

    Named axes are crossed. Else a GPU measures the whole grid; a CPU, where a single point of the
    paper's sizes takes ten seconds and more, changes one thing at a time; ``quick`` takes the
    preset's own S and the linear head.
    """
    devices, behavior = device_counts(options), config.behavior
    here = Point(
        steps=behavior.decode_steps,
        horizon=behavior.horizon,
        starts=config.replay.batch * starts_per_sequence(config),
        dtype="float32" if on_cpu() else "bfloat16",
        devices=devices[0],
    )
    named = (options.decode_steps, options.horizons, options.starts, options.dtypes)
    if any(named) or options.devices:
        axes = [axis or (own,) for axis, own in zip(named, here[:4], strict=True)]
        return [Point(*values) for values in product(*axes, devices)]
    if options.quick:
        return [here, here._replace(steps=0 if here.steps else 1)]
    unit = starts_per_sequence(config)
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


def measure_point(config: Config, point: Point, options: Options) -> Row:
    """Compile and time one point."""
    config = with_changes(
        config,
        behavior={"decode_steps": point.steps, "horizon": point.horizon},
        model={"dtype": point.dtype},
    )
    config.validate()
    learner, devices = build_learner(config, NUM_ACTIONS), local_devices(point.devices)
    params = place_state(random_state(learner).params, devices)
    sequences = point.starts // starts_per_sequence(config)
    starts = place_shares(split(full_context_starts(learner, sequences), len(devices)), devices)
    keys = jax.random.split(jax.random.key(0), sequences)
    keys = place_shares(split(keys, len(devices)), devices)
    program = compile_for(compile_imagination(learner, devices), params, starts, keys)
    seconds, ceiling = repeat_beside_ceiling(
        lambda: program.call(params, starts, keys), options.budget(), point.dtype
    )
    states = point.starts * point.horizon
    work = imagine_flops(config, NUM_ACTIONS, point.starts)
    return Row(
        benchmark=NAME,
        case={"preset": config.preset, **point_case(point)},
        unit="imagined states/s",
        value=Spread.of([states / s for s in seconds]),
        facts={
            **share_facts(
                work,
                Spread.of(seconds).median,
                ceiling,
                model=config.model,
                devices=point.devices,
            ),
            **program.facts(),
            **memory_peaks(),
        },
    )


def obstacle(config: Config, point: Point) -> str:
    """Why a point cannot be measured; empty when it can."""
    unit = starts_per_sequence(config)
    if point.starts % unit:
        return f"{unit} starts share one real past: choose a multiple of {unit}"
    if point.starts // unit % point.devices:
        return f"{point.starts // unit} sequences do not divide over {point.devices} devices"
    changed = with_changes(config, behavior={"decode_steps": point.steps, "horizon": point.horizon})
    try:
        changed.validate()
    except ConfigError as error:
        return str(error)
    return ""


def starts_per_sequence(config: Config) -> int:
    """Rollouts that share one real past, n."""
    return config.replay.length // config.behavior.start_stride


def point_case(point: Point) -> dict[str, Any]:
    """A point as a row's case."""
    return {
        "S": point.steps,
        "H": point.horizon,
        "starts": point.starts,
        "dtype": point.dtype,
        "devices": point.devices,
    }


def describe_point(point: Point) -> str:
    """A point as words."""
    return " ".join(f"{name}={value}" for name, value in point_case(point).items())
