"""The evaluations of a run: RUN/evals/STEP-SEED/, one directory each.

``result.json`` holds what came out and how it was played, ``stats.jsonl`` the episodes in the
format of Crafter's own recorder (see ``logs/recorder.py``), ``episode.mp4`` the first one, if it
was filmed. STEP is the checkpoint's number, SEED that of the play. The same evaluation again
replaces its directory; another one of that checkpoint and seed gets a number of its own.
"""

from __future__ import annotations

import json
import shutil
import statistics
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from emerald_jax.logs.recorder import STATS_FILE, stats_rows
from emerald_jax.ops.scores import crafter_score
from emerald_jax.saving.files import write_atomic
from emerald_jax.saving.rundir import JsonLines

if TYPE_CHECKING:
    # Reading results needs no JAX.
    from emerald_jax.training.evaluate import EvalReport

EVALS_DIR = "evals"
RESULT_FILE = "result.json"
VIDEO_FILE = "episode.mp4"


def result_of(report: EvalReport) -> dict[str, Any]:
    """What came out and how it was played, as JSON values."""
    scores = [episode.score for episode in report.episodes]
    result: dict[str, Any] = {
        "env": report.env,
        "updates": report.updates,
        "mode": report.mode,
        **report.facts,
        "episodes": len(scores),
        "left_out": report.left_out,
        "return": report.score,
        "standard_error": report.error,
        "lowest": min(scores),
        "highest": max(scores),
        "length": statistics.fmean(episode.length for episode in report.episodes),
    }
    if report.human_normalised is not None:
        result["human_normalised"] = report.human_normalised
    if rates := report.rates:
        result |= {"score": crafter_score(rates), "rates": rates}
    return result


def save_evaluation(run: str | Path, report: EvalReport, video: Path | None = None) -> Path:
    """Write a report into the run it is of.

    Args:
        run: run directory.
        report: of one of its checkpoints.
        video: a film of it, which is moved; None when there is none.

    Returns:
        The evaluation's directory.
    """
    result = result_of(report)
    folder = _folder(Path(run) / EVALS_DIR, result)
    JsonLines(folder / STATS_FILE).replace(stats_rows(map(asdict, report.episodes)))
    if video is not None:
        shutil.move(video, folder / VIDEO_FILE)
    # Last, because it is what makes the directory an evaluation.
    write_atomic(folder / RESULT_FILE, (json.dumps(result, indent=2) + "\n").encode())
    return folder


def read_evaluations(run: str | Path) -> list[dict[str, Any]]:
    """Results of a run's evaluations, of the oldest weights first; each knows its ``folder``."""
    found = []
    for path in sorted(Path(run).glob(f"{EVALS_DIR}/*/{RESULT_FILE}")):
        result = _read(path)
        if result is not None:
            found.append({**result, "folder": path.parent})
    return sorted(found, key=lambda result: (result["updates"], result["seed"]))


def _folder(evals: Path, result: dict[str, Any]) -> Path:
    """Where a result goes: its own directory of before, or one that is free."""
    name, number = f"{result['updates']}-{result['seed']}", 1
    while True:
        folder = evals / (name if number == 1 else f"{name}-{number}")
        before = _read(folder / RESULT_FILE) if (folder / RESULT_FILE).exists() else None
        if before is None or all(before.get(k) == result[k] for k in ("mode", "episodes")):
            return folder
        number += 1


def _read(path: Path) -> dict[str, Any] | None:
    """A result, or None when the file is none."""
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    wanted = {"env", "updates", "seed", "mode", "episodes", "return"}
    return result if isinstance(result, dict) and wanted <= set(result) else None
