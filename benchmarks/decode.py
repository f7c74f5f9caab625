"""Decoding alone: z_t from h_t with the three priors, on the same sizes and device, in one run.

MaskGIT in S rounds against the ``autoregressive`` prior, which predicts one position after another,
and against the ``linear`` head (S = 0). This measures the paper's claim about MaskGIT's speed.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from itertools import product
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from benchmarks.suite.flops import trace_flops
from benchmarks.suite.harness import (
    NUM_ACTIONS,
    Options,
    compile_for,
    on_cpu,
    program_row,
    random_state,
    with_changes,
)
from benchmarks.suite.report import Repeats, Row
from benchmarks.train import starts_per_sequence
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
    """Rows of every prior, then the ratios of the claim."""
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
    """The points to measure on this machine: every prior at every batch size and type."""
    per_update = config.replay.batch * starts_per_sequence(config)
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
            options.starts or batches, options.dtype or dtypes, kinds
        )
        if steps <= config.tokens
    ]


def measure_point(config: Config, point: Point, options: Options) -> tuple[list[float], Row]:
    """Compile and time one point; returns the seconds of its repeats, and the row."""
    config = with_changes(config, model={"prior": point.prior, "dtype": point.dtype})
    learner = build_learner(config, NUM_ACTIONS)
    h = jax.random.normal(jax.random.key(0), (point.batch, config.model.width))
    params = random_state(learner).params["world_model"]
    arguments = (params, h.astype(jnp.dtype(point.dtype)), jax.random.key(1))
    draw = partial(_draw, model=learner.model, steps=point.steps)
    program, facts = compile_for(jax.jit(draw), *arguments)
    return program_row(
        lambda: program(*arguments),
        trace_flops(draw, *arguments)[0],
        facts,
        amount=point.batch,
        budget=options.budget(),
        benchmark=NAME,
        case=_case(config, point),
        unit="latents/s",
    )


def claim(config: Config, point: Point, seconds: list[float], rival: list[float]) -> Row:
    """How many times faster MaskGIT is than one position after another, repeat by repeat."""
    case = _case(config, point)
    case["prior"] = f"maskgit S={case.pop('S')} against autoregressive"
    times = [slow / quick for slow, quick in zip(rival, seconds, strict=False)]
    return Row(
        benchmark=NAME,
        case=case,
        unit="times as fast",
        value=Repeats.of(times),
        facts={
            "seconds": Repeats.of(seconds).median,
            "autoregressive_seconds": Repeats.of(rival).median,
        },
    )


def _draw(params: Params, h: Array, key: Key, *, model: WorldModel, steps: int) -> Array:
    return decode(params, h, key, model=model, steps=steps).z


def _case(config: Config, point: Point) -> dict[str, Any]:
    names = ("preset", "prior", "S", "batch", "dtype")
    return dict(zip(names, (config.preset, *point), strict=True))
