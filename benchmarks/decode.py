"""Decoding alone: z_t from h_t with the three priors, on the same sizes and device, in one run.

MaskGIT in S rounds against the ``autoregressive`` prior, which predicts one position after another,
and against the ``linear`` head (S = 0). This measures the paper's claim about MaskGIT's speed.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from itertools import product
from statistics import median
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

import emerald_jax as ej
from benchmarks.suite import harness
from benchmarks.suite.flops import trace_flops
from benchmarks.suite.harness import Options, on_cpu
from benchmarks.suite.report import Row
from benchmarks.train import starts_per_sequence
from emerald_jax.models.world_model import no_before

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


def points(options: Options, config: ej.Config) -> list[Point]:
    """The points to measure on this machine: every prior at every batch size and type."""
    per_update = config.replay.batch * starts_per_sequence(config)
    if on_cpu() or options.quick:
        batches, dtypes = (per_update,), ("float32" if on_cpu() else "bfloat16",)
    else:
        batches, dtypes = (per_update, 4 * per_update, 16 * per_update), ("float32", "bfloat16")
    rounds = options.decode_steps or ((3,) if options.quick else (1, 3, 8))
    kinds = [("linear", 0), *(("maskgit", s) for s in rounds if s > 0)]
    kinds.append(("autoregressive", config.model.grid**2))
    every = product(options.starts or batches, options.dtype or dtypes, kinds)
    return [Point(*kind, batch, dtype) for batch, dtype, kind in every if kind[1] <= config.tokens]


def measure_point(config: ej.Config, point: Point, options: Options) -> tuple[list[float], Row]:
    """Compile and time one point; returns the seconds of its repeats, and the row."""
    config = harness.with_changes(config, model={"prior": point.prior, "dtype": point.dtype})
    learner = ej.build_learner(config, harness.NUM_ACTIONS)
    h = jax.random.normal(jax.random.key(0), (point.batch, config.model.width))
    params = harness.random_state(learner).params["world_model"]
    before = no_before(learner.model, point.batch)
    arguments = (params, h.astype(jnp.dtype(point.dtype)), jax.random.key(1), before)

    def draw(params: Any, h: Any, key: Any, before: Any) -> Any:
        return ej.decode(params, h, key, model=learner.model, steps=point.steps, before=before)

    program, facts = harness.compile_for(jax.jit(lambda *inputs: draw(*inputs).z), *arguments)
    work, call = trace_flops(draw, *arguments)[0], partial(program, *arguments)
    names = {"benchmark": NAME, "case": _case(config, point), "unit": "latents/s"}
    return harness.program_row(options.budget(), call, point.batch, work, facts, **names)


def claim(config: ej.Config, point: Point, seconds: list[float], rival: list[float]) -> Row:
    """How many times faster MaskGIT is than one position after another, repeat by repeat."""
    case = _case(config, point)
    case["prior"] = f"maskgit S={case.pop('S')} against autoregressive"
    ratios = [slow / quick for slow, quick in zip(rival, seconds, strict=False)]
    facts = {"seconds": median(seconds), "autoregressive_seconds": median(rival)}
    return Row.of(ratios, benchmark=NAME, case=case, unit="times as fast", facts=facts)


def _case(config: ej.Config, point: Point) -> dict[str, Any]:
    names = ("preset", "prior", "S", "batch", "dtype")
    return dict(zip(names, (config.preset, *point), strict=True))
