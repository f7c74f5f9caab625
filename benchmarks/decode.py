"""Decoding alone: z_t from h_t, and the paper's claim side by side.

MaskGIT in S rounds against the ``autoregressive`` prior, which predicts one position after another,
and against the ``linear`` head (S = 0): same sizes, same device, one run.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from itertools import product
from typing import NamedTuple

import jax
import jax.numpy as jnp

from benchmarks.suite.flops import autoregressive_flops, decode_flops
from benchmarks.suite.harness import (
    NUM_ACTIONS,
    Options,
    compile_for,
    memory_peaks,
    on_cpu,
    random_state,
    repeat_beside_ceiling,
    share_facts,
    with_changes,
)
from benchmarks.suite.report import Row, Spread
from emerald_jax.agent.state import build_learner
from emerald_jax.config import Config
from emerald_jax.imagination import decode
from emerald_jax.models.world_model import WorldModel
from emerald_jax.types import Array, Key, Params

NAME = "decode"


class Point(NamedTuple):
    """One way of decoding: which prior, in how many steps, latents at once, compute type."""

    prior: str
    steps: int
    batch: int
    dtype: str


def measure(options: Options) -> Iterator[Row | str]:
    """Rows of every prior, then what the claim comes to."""
    config = options.config()
    rounds = config.behavior.decode_steps or 3
    measured: dict[Point, list[float]] = {}
    for point in points(options, config):
        measured[point], row = measure_point(config, point, options)
        yield row
    for point, seconds in measured.items():
        rival = measured.get(point._replace(prior="autoregressive", steps=config.model.grid**2))
        if point.prior == "maskgit" and point.steps == rounds and rival:
            yield claim(config, point, seconds, rival)


def points(options: Options, config: Config) -> list[Point]:
    """What to measure here: every prior at every batch size and type."""
    per_update = config.replay.batch * (config.replay.length // config.behavior.start_stride)
    if on_cpu() or options.quick:
        batches, dtypes = (per_update,), ("float32" if on_cpu() else "bfloat16",)
    else:
        batches, dtypes = (per_update, 4 * per_update, 16 * per_update), ("float32", "bfloat16")
    rounds = options.decode_steps or ((3,) if options.quick else (1, 3, 8))
    kinds = [
        ("linear", 0),
        *(("maskgit", s) for s in rounds if s > 0),
        ("autoregressive", config.model.grid**2),
    ]
    return [
        Point(prior, steps, batch, dtype)
        for batch, dtype, (prior, steps) in product(
            options.starts or batches, options.dtypes or dtypes, kinds
        )
        if steps <= config.tokens
    ]


def measure_point(config: Config, point: Point, options: Options) -> tuple[list[float], Row]:
    """Compile and time one point; also its seconds."""
    config = with_changes(config, model={"prior": point.prior, "dtype": point.dtype})
    learner = build_learner(config, NUM_ACTIONS)
    params = random_state(learner).params["world_model"]
    h = jax.random.normal(jax.random.key(0), (point.batch, config.model.width))
    h, key = h.astype(jnp.dtype(point.dtype)), jax.random.key(1)
    draw = jax.jit(partial(_draw, model=learner.model, steps=point.steps))
    program = compile_for(draw, params, h, key)
    seconds, ceiling = repeat_beside_ceiling(
        lambda: program.call(params, h, key), options.budget(), point.dtype
    )
    if point.prior == "autoregressive":
        work = autoregressive_flops(config.model)
    else:
        work = decode_flops(config.model, point.steps)
    median = Spread.of(seconds).median
    shares = share_facts(point.batch * work, median, ceiling, model=config.model, devices=1)
    return seconds, Row(
        benchmark=NAME,
        case={"preset": config.preset, **_case(point)},
        unit="latents/s",
        value=Spread.of([point.batch / s for s in seconds]),
        facts={**shares, **program.facts(), **memory_peaks()},
    )


def claim(config: Config, point: Point, seconds: list[float], rival: list[float]) -> Row:
    """How many times faster MaskGIT is than one position after another, repeat by repeat."""
    case = {**_case(point), "prior": f"maskgit S={point.steps} against autoregressive"}
    times = [slow / quick for slow, quick in zip(rival, seconds, strict=False)]
    facts = {
        "seconds": Spread.of(seconds).median,
        "autoregressive_seconds": Spread.of(rival).median,
    }
    del case["S"]
    return Row(
        benchmark=NAME,
        case={"preset": config.preset, **case},
        unit="times as fast",
        value=Spread.of(times),
        facts=facts,
    )


def _draw(params: Params, h: Array, key: Key, *, model: WorldModel, steps: int) -> Array:
    return decode(params, h, key, model=model, steps=steps).z


def _case(point: Point) -> dict[str, str | int]:
    return {
        "prior": point.prior,
        "S": point.steps,
        "batch": point.batch,
        "dtype": point.dtype,
    }
