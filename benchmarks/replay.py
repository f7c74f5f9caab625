"""The replay: records sampled and appended per second, and bytes copied, at full size.

The store is filled with noise by hand, episodes of some hundred steps, so that every page is mapped
as in a long run. The rate is held against that of a plain copy of the same bytes.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from benchmarks.suite.harness import Budget, Options
from benchmarks.suite.report import Row, Spread
from emerald_jax.config import Config
from emerald_jax.envs.base import VectorStep
from emerald_jax.replay import Replay, make_sampler
from emerald_jax.replay.store import available_bytes

NAME = "replay"

#: Share of the memory that is free now which the store may take: others live here too.
_MEMORY_SHARE = 0.75
#: Calls behind one repeat; a single one is too short to time.
_CALLS = 20
_EPISODE = 200


def measure(options: Options) -> Iterator[Row | str]:
    """Rows of both samplers and of appending."""
    config = options.config()
    size = config.envs.image_size
    shape = (size, size, 3)
    wanted = options.records or (20_000 if options.quick else config.replay.capacity)
    records = min(wanted, affordable(config, shape))
    if records < wanted:
        yield (
            f"replay of {wanted:,} records: it needs "
            f"{Replay.nbytes_needed(wanted, config.envs.count, shape) / 2**30:.1f} GiB; measured "
            f"with {records:,}, three quarters of the memory that is free"
        )
    replay = filled_replay(records, config.envs.count, shape)
    case = {
        "preset": config.preset,
        "records": len(replay),
        "environments": config.envs.count,
        "image": size,
    }
    copy_rate = plain_copy_rate(config, shape, options.budget())
    for kind in ("streams", "windows"):
        sampler = make_sampler(kind, replay, config.replay.batch, config.replay.length, 0)
        batch = sampler.sample()
        bytes_each = sum(x.nbytes for x in batch if x is not None)
        each = batch.action.size
        rates = rates_of(sampler.sample, each, options.budget())
        yield Row(
            benchmark=NAME,
            case={**case, "what": kind, "batch": f"{config.replay.batch}x{config.replay.length}"},
            unit="records/s",
            value=Spread.of(rates),
            facts=copy_facts(rates, bytes_each / each, copy_rate),
        )
    step = noise_step(config.envs.count, shape)
    rates = rates_of(lambda: replay.append(step), config.envs.count, options.budget())
    yield Row(
        benchmark=NAME,
        case={**case, "what": "append"},
        unit="records/s",
        value=Spread.of(rates),
        facts=copy_facts(rates, step.image.nbytes / config.envs.count, copy_rate),
    )


def copy_facts(rates: list[float], bytes_each: float, copy_rate: float) -> dict[str, Any]:
    """Bytes a second, and what share of a plain copy's they are."""
    moved = Spread.of(rates).median * bytes_each
    return {
        "bytes_per_record": bytes_each,
        "bytes_per_s": moved,
        "plain_copy_bytes_per_s": copy_rate,
        "share_of_plain_copy": moved / copy_rate,
    }


def affordable(config: Config, shape: tuple[int, int, int]) -> int:
    """Records that fit into three quarters of the memory that is free, at least a few sequences."""
    each = Replay.nbytes_needed(config.envs.count, config.envs.count, shape) / config.envs.count
    least = 4 * config.replay.length * config.envs.count
    return max(least, int(_MEMORY_SHARE * available_bytes() / each))


def filled_replay(records: int, num_envs: int, shape: tuple[int, int, int]) -> Replay:
    """A full store of noise: every page is mapped, every environment has its own episode ends."""
    replay = Replay(records, num_envs, shape)
    rng = np.random.default_rng(0)
    columns, block = replay.columns, rng.integers(0, 256, (64, num_envs, *shape), dtype=np.uint8)
    for row in range(0, replay.rows, len(block)):
        rows = columns["image"][row : row + len(block)]
        rows[:] = block[: len(rows)]
    columns["action"][:] = rng.integers(0, 4, columns["action"].shape, dtype=np.int32)
    first = rng.random(columns["is_first"].shape) < 1 / _EPISODE
    columns["is_first"][:] = first
    columns["is_last"][:-1] = columns["is_terminal"][:-1] = first[1:]
    replay.restore(written=replay.rows, oldest=0, holes=())
    return replay


def noise_step(num_envs: int, shape: tuple[int, int, int]) -> VectorStep:
    """One row to append, in the middle of everybody's episode."""
    flag = np.zeros(num_envs, bool)
    rng = np.random.default_rng(0)
    return VectorStep(
        image=rng.integers(0, 256, (num_envs, *shape), dtype=np.uint8),
        action=np.zeros(num_envs, np.int32),
        reward=np.zeros(num_envs, np.float32),
        is_first=flag,
        is_last=flag,
        is_terminal=flag,
    )


def plain_copy_rate(config: Config, shape: tuple[int, int, int], budget: Budget) -> float:
    """Bytes a second of copying a batch's images from memory that no cache holds.

    Into freshly allocated arrays, as batches are; the source is walked through like the store.
    """
    batch = (config.replay.batch * config.replay.length, *shape)
    source = np.ones((8, *batch), np.uint8)
    turn = 0

    def copy() -> None:
        nonlocal turn
        np.empty(batch, np.uint8)[:] = source[turn % len(source)]
        turn += 1

    size = source[0].nbytes
    return Spread.of(rates_of(copy, size, Budget(min(2.0, budget.seconds)))).median


def rates_of(call: Callable[[], Any], each: int, budget: Budget) -> list[float]:
    """Things a second of every repeat, ``each`` of them per call; the first repeat is warm-up."""
    rates: list[float] = []
    began = time.perf_counter()
    while True:
        start = time.perf_counter()
        for _ in range(_CALLS):
            call()
        now = time.perf_counter()
        rates.append(_CALLS * each / (now - start))
        if len(rates) > budget.least and (now - began > budget.seconds or len(rates) > budget.most):
            return rates[1:]
