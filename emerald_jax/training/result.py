"""How a run ends: what it is worth, its exit code, and what it tells its owner."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

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
