"""Episodes as rows, and the evaluations of a run: RUN/evals/STEP-SEED/, one directory each.

``result.json`` holds the result and its settings, ``episode.mp4`` the first episode, if filmed.
STEP is the checkpoint's number, SEED that of the evaluation; the same evaluation again replaces its
directory, another one gets a suffix. ``stats.jsonl`` is the format of Crafter's own recorder, so
the benchmark's published scripts read it: one complete episode per line with ``length``, ``reward``
(the return) and ``achievement_NAME`` (times unlocked). Nothing here imports JAX.
"""

from __future__ import annotations

import itertools
import json
import shutil
import statistics
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from emerald_jax.envs.base import Episode, achievement_names, is_crafter_like
from emerald_jax.run.directory import STATS_FILE, JsonLines, write_json
from emerald_jax.scores import atari_game, crafter_score, human_normalised, success_rates

EVALS_DIR = "evals"
RESULT_FILE = "result.json"
VIDEO_FILE = "episode.mp4"


def is_whole_row(row: Mapping[str, Any]) -> bool:
    """Whether an episode's row counts: no fault cut it short."""
    return "fault" not in row and "fault" not in row.get("extra", {})


def achievements_of(row: Mapping[str, Any]) -> dict[str, int]:
    """Name -> times unlocked in an episode's row; empty where there are none."""
    return row.get("achievements") or row.get("extra", {}).get("achievements", {})


def stats_row(row: Mapping[str, Any]) -> dict[str, Any]:
    """A line of stats.jsonl; returns with achievements are rounded as Crafter's recorder does."""
    unlocked = achievements_of(row)
    score = float(row["score"])
    return {
        "length": int(row["length"]),
        "reward": round(score, 1) if unlocked else score,
        **{f"achievement_{name}": int(times) for name, times in unlocked.items()},
    }


def stats_rows(rows: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Lines of stats.jsonl for those of ``rows`` that count."""
    complete = (row for row in rows if "score" in row and "length" in row)
    return [stats_row(row) for row in complete if is_whole_row(row)]


def result_of(report: EvalReport) -> dict[str, Any]:
    """Scores and settings of an evaluation, as JSON values."""
    scores = [episode.score for episode in report.episodes]
    result = {"env": report.env, "updates": report.updates, "mode": report.mode}
    result |= {**report.settings, "episodes": len(scores), "left_out": report.left_out}
    result |= {"return": report.score, "standard_error": report.error}
    result |= {"lowest": min(scores), "highest": max(scores)}
    result["length"] = report.length
    more = {"human_normalised": report.human_normalised, "rates": report.rates or None}
    more["score"] = report.crafter_score
    return result | {name: value for name, value in more.items() if value is not None}


def save_evaluation(run: str | Path, report: EvalReport, video: Path | None = None) -> Path:
    """Write a report into its run, and move a film of it there; returns the new directory."""
    result = result_of(report)
    folder = _folder(Path(run) / EVALS_DIR, result)
    JsonLines(folder / STATS_FILE).replace(stats_rows(map(asdict, report.episodes)))
    if video is not None:
        shutil.move(video, folder / VIDEO_FILE)
    # Last: a directory without it is not an evaluation.
    write_json(folder / RESULT_FILE, result)
    return folder


def read_evaluations(run: str | Path) -> list[dict[str, Any]]:
    """Results of a run's evaluations, of the oldest weights first, each with its ``folder``."""
    paths = sorted(Path(run).glob(f"{EVALS_DIR}/*/{RESULT_FILE}"))
    found = [{**result, "folder": path.parent} for path in paths if (result := _read(path))]
    return sorted(found, key=lambda result: (result["updates"], result["seed"]))


def _folder(evals: Path, result: dict[str, Any]) -> Path:
    """The directory for a result: that of the same evaluation before, or a free one."""
    name = f"{result['updates']}-{result['seed']}"
    for suffix in itertools.chain([""], (f"-{n}" for n in itertools.count(2))):
        before = _read(evals / f"{name}{suffix}" / RESULT_FILE)
        if before is None or all(before.get(k) == result[k] for k in ("mode", "episodes")):
            return evals / f"{name}{suffix}"


def _read(path: Path) -> dict[str, Any] | None:
    """Parse a result file; None if it is not a valid result."""
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    wanted = {"env", "updates", "seed", "mode", "episodes", "return"}
    return result if isinstance(result, dict) and wanted <= set(result) else None


@dataclass(frozen=True)
class EvalReport:
    """Episodes played with the weights of one checkpoint; ``str()`` is readable text.

    Attributes:
        env: name of the environment.
        updates: number of gradient updates, and of the checkpoint.
        mode: how actions were chosen: ``sample``, ``mode`` or ``random``.
        episodes: all episodes that count.
        left_out: episodes that a fault cut short and that do not count.
        settings: JSON values: ``env_steps`` of the checkpoint, ``seed`` of the evaluation,
            ``train_seed``, ``time_limit``, ``image_size``, ``frame_skip``, ``preset``.
    """

    env: str
    updates: int
    mode: str
    episodes: tuple[Episode, ...]
    left_out: int = 0
    settings: dict[str, Any] = field(default_factory=dict)

    @property
    def score(self) -> float:
        """Mean return."""
        return statistics.fmean(e.score for e in self.episodes)

    @property
    def error(self) -> float:
        """Standard error of the mean return; 0 of a single episode."""
        scores = [e.score for e in self.episodes]
        return statistics.stdev(scores) / len(scores) ** 0.5 if len(scores) > 1 else 0.0

    @property
    def length(self) -> float:
        """Mean length in agent steps."""
        return statistics.fmean(e.length for e in self.episodes)

    @property
    def rates(self) -> dict[str, float]:
        """Success rates in per cent, by achievement; empty if an episode reports none."""
        names = achievement_names(self.episodes)
        return success_rates([e.achievements for e in self.episodes], names) if names else {}

    @property
    def crafter_score(self) -> float | None:
        """Crafter score in per cent; None for an environment that is not Crafter-like."""
        rates = self.rates
        return crafter_score(rates) if rates and is_crafter_like(self.env, rates) else None

    @property
    def human_normalised(self) -> float | None:
        """The return between random (0) and human (1) in one of the 26 games of Atari 100k."""
        game = atari_game(self.env)
        return human_normalised(self.score, game["random"], game["human"]) if game else None

    def __str__(self) -> str:
        scores = [e.score for e in self.episodes]
        how = f"actions by {self.mode}" if self.mode != "random" else "random actions"
        after = f" after {self.updates:,} updates" if self.mode != "random" else ""
        lines = [
            f"{self.env}{after}, {len(scores)} episodes, {how}",
            f"return {self.score:.3f} ± {self.error:.3f} (standard error), "
            f"from {min(scores):.2f} to {max(scores):.2f}, {self.length:.0f} steps long on average",
        ]
        capped = [e.extra["capped"] for e in self.episodes if "capped" in e.extra]
        if capped:
            lines.append(
                f"{len(capped)} of these episodes did not end within {max(capped):,} steps"
            )
        if self.left_out:
            lines.append(f"{self.left_out} more were cut short by a fault and do not count")
        if (normalised := self.human_normalised) is not None:
            lines.append(f"human-normalised score {normalised:.3f} (random 0, human 1)")
        lines += [f"  {name:<22}{rate:6.1f} %" for name, rate in self.rates.items()]
        if self.crafter_score is not None:
            lines.append(f"crafter score {self.crafter_score:.2f} % over these episodes")
        return "\n".join(lines)
