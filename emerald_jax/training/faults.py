"""Updates that were not finite: noticed one update late, so that nothing ever waits for a check.

How a run ends: what it is worth, its exit code, and what it tells its owner.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np

from emerald_jax.agent.state import TrainState
from emerald_jax.config import Config
from emerald_jax.run.files import write_atomic
from emerald_jax.types import Batch

FAULTS_DIR = "faults"


class RunError(RuntimeError):
    """A run that must not go on; the message says which term failed, when, and what to do."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a device had no room for an array or a program."""
    return isinstance(error, jax.errors.JaxRuntimeError) and "RESOURCE_EXHAUSTED" in str(error)


def out_of_memory(config: Config, device: jax.Device, memory: int | None) -> RunError:
    """What to do about a device without room.

    Args:
        config: the run's settings.
        device: one that it trains on.
        memory: bytes an update needs by the compiler's account; None before it was compiled.
    """
    need = f"an update needs about {memory / 2**30:.1f} GiB" if memory else "no update was compiled"
    limit = (device.memory_stats() or {}).get("bytes_limit")
    have = f" and {device.device_kind} has {limit / 2**30:.1f} GiB" if limit else ""
    # A CPU's compiler undoes rematerialisation: docs/speed.md.
    remat = "" if config.model.remat or device.platform == "cpu" else "set --model.remat, "
    parts = "" if config.optim.micro_batch == 1 else "set --optim.micro-batch 1, "
    return RunError(
        f"out of memory on {device}: {need}{have}; {remat}{parts}lower --replay.batch "
        f"({config.replay.batch}) in a new run, or raise --behavior.start-stride "
        f"({config.behavior.start_stride}); the newest checkpoint is untouched"
    )


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
        path = logdir / FAULTS_DIR / f"update_{number:09d}.json"
        try:
            write_atomic(path, json.dumps(facts, indent=2).encode())
        except OSError as error:  # a full disk must not hide what happened
            yield f"{path} cannot be written ({error.strerror})"
        first = terms[0] if terms else "a gradient"
        if int(jax.device_get(state.bad_streak)) >= limit:
            raise RunError(
                f"{first} was not finite {limit} updates in a row, last at update {number}: the "
                f"last checkpoint in {logdir}, if it got to one, is sound; {FAULTS_DIR}/ in it "
                "holds the batches' facts; lower the learning rates, or raise "
                "--log.max-bad-updates"
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


#: Exit code of a run that a signal ended: saved, and the same command goes on.
INTERRUPTED = 75


@dataclass(frozen=True)
class Evaluation:
    """Episodes played with the final weights, actions sampled from the policy.

    Attributes:
        score: mean return.
        error: its standard error; 0 for a single episode.
        length: mean length in agent steps.
        episodes: how many.
    """

    score: float
    error: float
    length: float
    episodes: int

    def __str__(self) -> str:
        return f"return {self.score:.2f} ± {self.error:.2f} over {self.episodes} episodes"


@dataclass(frozen=True)
class RunResult:
    """How a run ended.

    Attributes:
        logdir: the run directory.
        score: mean return of the last 100 training episodes; NaN when none ended.
        env_steps: environment steps, over all sittings.
        updates: gradient updates, over all sittings.
        seconds: wall time of this sitting.
        stopped: ``steps``, ``minutes`` or the name of the signal.
        evaluation: the last evaluation; None when there was none.
    """

    logdir: Path
    score: float
    env_steps: int
    updates: int
    seconds: float
    stopped: str
    evaluation: Evaluation | None = None

    @property
    def exit_code(self) -> int:
        """0 when the run came to its end, :data:`INTERRUPTED` when a signal cut it short."""
        return 0 if self.stopped in ("steps", "minutes") else INTERRUPTED


def closing_words(result: RunResult) -> str:
    """What a finished run tells its owner: the return, where it lies, what to try next."""
    score = "no episode ended" if math.isnan(result.score) else f"return {result.score:.2f}"
    head = (
        f"{score} (mean of the last 100 training episodes) after {result.env_steps:,} steps and "
        f"{result.updates:,} updates in {result.seconds:.0f} s"
    )
    if result.evaluation is not None:
        head += f"\nevaluation with the final weights: {result.evaluation}"
    if result.exit_code:
        return f"{head}\nstopped by {result.stopped}; the same command goes on from here"
    return f"{head}\nthe run lies in {result.logdir}\ntry next: emerald-jax eval {result.logdir}"
