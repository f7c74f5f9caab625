"""The real training loop against the bare update: the overhead of playing, replay and logging.

A real run trains for the given minutes without pictures. Its rate is compared with that of the bare
train step, measured just before and just after in the same process; its time waiting for
environments with the time that they need alone.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import math
import tempfile
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.envs import step_rates
from benchmarks.suite.harness import Budget, Options, on_cpu, repeat, with_changes
from benchmarks.suite.report import Row
from benchmarks.train import Update, frames
from emerald_jax.config import Config
from emerald_jax.models.layers import compute_dtype
from emerald_jax.run.directory import METRICS_FILE, read_rows
from emerald_jax.training.train import INTERRUPTED, train

NAME = "end-to-end"

#: Rows of metrics per run; the first includes the start and is left out.
_SECTIONS = 10


def measure(options: Options) -> Iterator[Row | str]:
    """One row: the preset's loop, on one device."""
    # An update at the paper's sizes takes a CPU half a minute.
    config = options.config("crafter-small" if on_cpu() else "crafter")
    dtype = str(compute_dtype(config.model.dtype))
    config = dataclasses.replace(with_changes(config, model={"dtype": dtype}), devices=1)
    minutes = options.minutes or (0.25 if options.quick else 2.0)
    update, budget = Update(config, 1), dataclasses.replace(options.budget(), least=5)
    before = repeat(update, budget)
    env_seconds = vector_step_seconds(config, budget)
    rows = run_for(config, minutes, 1 / median(before))
    # Before and after the run: the machine's speed may have changed.
    bare = 1 / median(before + repeat(update, budget))
    yield end_to_end_row(config, rows, bare, env_seconds, minutes)


def end_to_end_row(
    config: Config, rows: list[dict[str, Any]], bare: float, env_seconds: float, minutes: float
) -> Row:
    """Summarise the metrics of a run of ``minutes``.

    ``bare`` is the updates per second of the train step alone, ``env_seconds`` the time of one step
    of all environments alone.
    """
    rates, updates, shares = (
        [row[f"speed/{name}"] for row in rows]
        for name in ("env_steps_per_s", "updates_per_s", "env_wait_share")
    )
    updates, count = median(updates), config.envs.count
    waiting = median(shares) * count / median(rates)
    case = {"preset": config.preset, "env": config.env, "environments": count}
    case["dtype"] = config.model.dtype
    facts = {
        "updates_per_s": updates,
        "train_step_updates_per_s": bare,
        "share_of_train_step": updates / bare,
        "env_seconds_alone": env_seconds,
        "env_seconds_waited": waiting,
        "env_time_hidden": 1 - waiting / env_seconds,
        "can_environments_keep_up": env_seconds < config.updates_per_vector_step / bare,
        "minutes": minutes,
    }
    return Row.of(rates, benchmark=NAME, case=case, unit="env steps/s", facts=facts)


def run_for(config: Config, minutes: float, updates_per_s: float) -> list[dict[str, Any]]:
    """Train for about ``minutes``; returns the rows of metrics without the first."""
    updates = max(_SECTIONS, math.ceil(60 * minutes * updates_per_s))
    steps = config.replay.prefill + math.ceil(updates * frames(config)) + config.envs.count
    log = {"every": max(1, updates // _SECTIONS), "checkpoint_minutes": 1e9}
    log |= {"pictures": 0, "eval_episodes": 0, "quiet": True}
    with tempfile.TemporaryDirectory(prefix="emerald-jax-bench-") as folder:
        logdir = Path(folder) / "run"
        short = with_changes(dataclasses.replace(config, steps=steps, logdir=str(logdir)), log=log)
        # The run prints its own result, which would mix with ours.
        with contextlib.redirect_stdout(io.StringIO()):
            result = train(short)
        if result.exit_code == INTERRUPTED:
            raise KeyboardInterrupt
        rows = [row for row in read_rows(logdir / METRICS_FILE) if "speed/updates_per_s" in row]
    # The last row may cover only a few updates; the first includes the prefill.
    return rows[1:-1] if len(rows) > 3 else rows[1:]


def vector_step_seconds(config: Config, budget: Budget) -> float:
    """Seconds of one step of all environments when nothing else runs."""
    return config.envs.count / median(step_rates(config.env, config.envs, budget)[0])
