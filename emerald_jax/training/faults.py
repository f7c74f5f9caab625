"""Faults of a run: updates that were not finite, and devices without enough memory.

Updates are checked one update late, so that the loop never waits for a check.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from emerald_jax.actions import absent
from emerald_jax.agent.state import RunError, TrainState
from emerald_jax.config import Config
from emerald_jax.run.directory import write_atomic
from emerald_jax.types import Batch

FAULTS_DIR = "faults"


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a device had no memory for an array or a program."""
    return isinstance(error, jax.errors.JaxRuntimeError) and "RESOURCE_EXHAUSTED" in str(error)


def out_of_memory(
    config: Config, device: jax.Device, memory: int, several: bool = False
) -> RunError:
    """The error for a device without enough memory; names the settings that help.

    ``memory`` is the bytes that an update needs according to the compiler, 0 if none was compiled;
    ``several`` says that it is an update of several seeds.
    """
    need = f"an update needs about {memory / 2**30:.1f} GiB" if memory else "no update was compiled"
    limit = (device.memory_stats() or {}).get("bytes_limit")
    have = f" and {device.device_kind} has {limit / 2**30:.1f} GiB" if limit else ""
    # The CPU compiler undoes rematerialisation.
    remat = "" if config.model.remat or device.platform == "cpu" else "set --model.remat, "
    seeds = "give fewer --seeds, " if several else ""
    parts = "" if config.optim.micro_batch == 1 else "set --optim.micro-batch 1, "
    return RunError(
        f"out of memory on {device}: {need}{have}; {seeds}{remat}{parts}lower --replay.batch "
        f"({config.replay.batch}) in a new run, or raise --behavior.start-stride "
        f"({config.behavior.start_stride}); the newest checkpoint is untouched"
    )


def check_updates(
    updates: list[dict[str, Any]], state: TrainState, logdir: Path, limit: int
) -> Iterator[str]:
    """Yield one line per skipped update; RunError after ``limit`` of them in a row.

    ``updates``: metrics of finished updates, each with its number ``update`` and host ``batch``,
    which is described in the ``faults`` folder of ``logdir``. ``state`` is the newest.
    """
    for entry in updates:
        metrics = {k: v for k, v in entry.items() if k not in ("update", "batch")}
        if jax.device_get(metrics["finite"]) == 1:
            continue
        values = {name: float(value) for name, value in jax.device_get(metrics).items()}
        terms = [name for name, value in values.items() if not math.isfinite(value)]
        number = entry["update"]
        fault = {"update": number, "not_finite": terms, **describe_batch(entry["batch"])}
        # Every host describes its own part of the batch.
        host = f"_host_{jax.process_index()}" if jax.process_count() > 1 else ""
        path = logdir / FAULTS_DIR / f"update_{number:09d}{host}.json"
        try:
            write_atomic(path, json.dumps(fault, indent=2).encode())
        except OSError as error:  # a full disk must not hide the fault
            yield f"{path} cannot be written ({error.strerror})"
        first = terms[0] if terms else "a gradient"
        if int(jax.device_get(state.bad_streak)) >= limit:
            raise RunError(
                f"{first} was not finite {limit} updates in a row, last at update {number}: the "
                f"last checkpoint in {logdir}, if there is one, is valid; {FAULTS_DIR}/ in it "
                "describes the batches; lower the learning rates, or raise "
                "--log.max-bad-updates"
            )
        yield f"update {number} skipped: {first} is not finite ({len(terms)} terms)"


def describe_batch(batch: Batch) -> dict[str, Any]:
    """Ranges and counts of a batch that help to find why its update failed."""
    return {
        "reward": [_number(np.min(batch.reward)), _number(np.max(batch.reward))],
        "image": [int(np.min(batch.image)), int(np.max(batch.image))],
        "actions": np.unique(batch.action[~absent(batch.action)], axis=0)[:100].tolist(),
        "resets": int(np.sum(batch.reset)),
        "terminals": int(np.sum(batch.is_terminal)),
    }


def _number(value: Any) -> float | str:
    """A JSON number, or its name where JSON has none: NaN and infinity."""
    return float(value) if math.isfinite(value) else str(value)
