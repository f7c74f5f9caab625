"""Updates that were not finite: noticed one update late, so that nothing ever waits for a check."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from emerald_jax.training.rundir import write_atomic
from emerald_jax.training.state import TrainState
from emerald_jax.types import Batch

FAULTS_DIR = "faults"


class RunError(RuntimeError):
    """A run that must not go on; the message says which term failed, when, and what to do."""


def check_updates(
    updates: list[dict[str, Any]], state: TrainState, logdir: Path, limit: int
) -> Iterator[str]:
    """Report skipped updates; end the run when too many came in a row.

    Args:
        updates: metrics of finished updates, each with its number ``update`` and its host
        ``batch``.
        state: the newest state, which counts skipped updates in a row.
        logdir: the facts of an offending batch are saved in its ``faults`` folder.
        limit: skipped updates in a row that end the run.

    Yields:
        One line per skipped update.

    Raises:
        RunError: naming term and update.
    """
    for entry in updates:
        metrics = {k: v for k, v in entry.items() if k not in ("update", "batch")}
        if jax.device_get(metrics["finite"]) == 1:
            continue
        values = {name: float(value) for name, value in jax.device_get(metrics).items()}
        terms = [name for name, value in values.items() if not math.isfinite(value)]
        number = entry["update"]
        facts = {"update": number, "not_finite": terms, **describe_batch(entry["batch"])}
        write_atomic(
            logdir / FAULTS_DIR / f"update_{number:09d}.json", json.dumps(facts, indent=2).encode()
        )
        first = terms[0] if terms else "a gradient"
        if int(jax.device_get(state.bad_streak)) >= limit:
            raise RunError(
                f"{first} was not finite {limit} updates in a row, last at update {number}: the "
                f"parameters and the last checkpoint in {logdir} are sound; lower the learning "
                "rates, or raise --log.max-bad-updates"
            )
        yield f"update {number} skipped: {first} is not finite ({len(terms)} terms)"


def describe_batch(batch: Batch) -> dict[str, Any]:
    """Facts about a batch that help to find out why its update failed."""
    return {
        "reward": [float(np.min(batch.reward)), float(np.max(batch.reward))],
        "image": [int(np.min(batch.image)), int(np.max(batch.image))],
        "actions": np.unique(batch.action).tolist(),
        "resets": int(np.sum(batch.reset)),
        "terminals": int(np.sum(batch.is_terminal)),
    }
