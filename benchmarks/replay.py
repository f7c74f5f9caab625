"""The replay: records sampled and appended per second, and bytes copied, at full size.

The store is filled with noise directly, in episodes of about 200 steps, so that every page is in
memory as in a long run. The rate is compared with that of a plain copy of the same bytes.

With an Atari game (``--preset atari100k``) more rows compare plain and compressed stores of its
frames: ``bytes_per_record`` is then the memory of a record's image.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import cycle
from statistics import median
from typing import Any

import numpy as np

from benchmarks.suite.harness import Budget, Options, repeat
from benchmarks.suite.report import Row
from emerald_jax.config import Config
from emerald_jax.envs.base import VectorStep
from emerald_jax.replay import Replay, make_sampler
from emerald_jax.replay.store import available_bytes
from emerald_jax.training.evaluate import record

NAME = "replay"

#: Share of the free memory that the store may use, but for a few sequences.
_MEMORY_SHARE = 0.75
#: Calls per repeat; a single call is too short to time.
_CALLS = 20
_EPISODE = 200
#: Records of random play that fill a store of frames again and again, and its size.
_PLAYED, _FRAMES = 4096, 65_536


def measure(options: Options) -> Iterator[Row | str]:
    """Rows of both samplers and of appending."""
    config = options.config()
    size, count = config.envs.image_size, config.envs.count
    shape = (size, size, 3)
    wanted = options.records or (20_000 if options.quick else config.replay.capacity)
    fitting = int(_MEMORY_SHARE * available_bytes() / Replay.nbytes_needed(count, count, shape))
    records = min(wanted, count * max(fitting, 4 * config.replay.length))
    if records < wanted:
        need = f"it needs {Replay.nbytes_needed(wanted, count, shape) / 2**30:.1f} GiB"
        yield f"replay of {wanted:,} records: {need}; measured with {records:,}, which fit"
    replay, budget = filled_replay(records, count, shape), options.budget()
    sizes = {"preset": config.preset, "records": len(replay), "environments": count, "image": size}
    copy_rate = plain_copy_rate(config, shape, budget)

    def row(what: str, rates: list[float], bytes_each: float, **case: str) -> Row:
        case, copied = {**sizes, "what": what, **case}, median(rates) * bytes_each
        facts = {"bytes_per_record": bytes_each, "bytes_per_s": copied}
        facts |= {"plain_copy_bytes_per_s": copy_rate, "share_of_plain_copy": copied / copy_rate}
        return Row.of(rates, benchmark=NAME, case=case, unit="records/s", facts=facts)

    for kind in ("streams", "windows"):
        sampler = make_sampler(kind, replay, config.replay.batch, config.replay.length, 0)
        batch = sampler.sample()
        each, total = batch.action.size, sum(x.nbytes for x in batch if x is not None)
        rates = rates_of(sampler.sample, each, budget)
        yield row(kind, rates, total / each, batch=f"{config.replay.batch}x{config.replay.length}")
    step = noise_step(count, shape)
    rates = rates_of(lambda: replay.append(step), count, budget)
    yield row("append", rates, step.image.nbytes / count)
    if config.env.startswith("atari:"):
        for compress in (False, True):
            yield from _of_frames(config, min(records, _FRAMES), compress, budget)


def _of_frames(config: Config, records: int, compress: bool, budget: Budget) -> Iterator[Row]:
    """Rows of a store of real frames."""
    played, count = record(config, _PLAYED, seed=0), config.envs.count
    replay = Replay(records, count, played.image_shape, compress=compress)
    for row in range(0, replay.rows, 64):
        rows = np.arange(row, min(row + 64, replay.rows))
        for name, column in played.columns.items():
            replay.columns[name][rows] = column[rows % played.written]
    replay.restore(written=replay.rows, oldest=0, holes=())
    facts = {"bytes_per_record": replay.columns["image"].nbytes / len(replay)}
    case = {"records": len(replay), "env": config.env, "compress": compress}
    sampler = make_sampler("streams", replay, config.replay.batch, config.replay.length, 0)
    newest = played.columns["image"][-1:].repeat(count, axis=1)[0]
    step = noise_step(count, played.image_shape)._replace(image=newest)
    calls = {"streams": (sampler.sample, config.replay.batch * config.replay.length)}
    calls["append"] = (lambda: replay.append(step), count)
    for what, (call, each) in calls.items():
        rates = rates_of(call, each, budget)
        yield Row.of(
            rates, benchmark=NAME, case=case | {"what": what}, unit="records/s", facts=facts
        )


def filled_replay(records: int, num_envs: int, shape: tuple[int, int, int]) -> Replay:
    """A full store of noise; every environment has its own episode ends."""
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
    """One row to append, in the middle of every environment's episode."""
    image = np.random.default_rng(0).integers(0, 256, (num_envs, *shape), dtype=np.uint8)
    action, reward, flag = (np.zeros(num_envs, kind) for kind in (np.int32, np.float32, bool))
    return VectorStep(image, action, reward, is_first=flag, is_last=flag, is_terminal=flag)


def plain_copy_rate(config: Config, shape: tuple[int, int, int], budget: Budget) -> float:
    """Bytes per second of copying a batch's images from uncached memory into new arrays."""
    batch = (config.replay.batch * config.replay.length, *shape)
    source = np.ones((8, *batch), np.uint8)
    turns = cycle(source)

    def copy() -> None:
        np.empty(batch, np.uint8)[:] = next(turns)

    return median(rates_of(copy, source[0].nbytes, Budget(min(2.0, budget.seconds))))


def rates_of(call: Callable[[], Any], each: int, budget: Budget) -> list[float]:
    """Units per second of every repeat, ``each`` per call."""

    def several() -> None:
        for _ in range(_CALLS):
            call()

    return [_CALLS * each / seconds for seconds in repeat(several, budget)]
