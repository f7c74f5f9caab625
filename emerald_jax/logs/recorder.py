"""Episodes in the format of Crafter's own recorder: ``stats.jsonl``, one JSON object per line.

A line has ``length``, ``reward`` (the return, rounded to one decimal as Crafter does where there
are achievements) and ``achievement_NAME`` (times unlocked) of one whole episode, in the order in
which they ended; the benchmark's published analysis scripts read it as it is. An episode that a
fault cut short is no whole one and is left out.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

STATS_FILE = "stats.jsonl"


def is_whole_row(row: Mapping[str, Any]) -> bool:
    """Whether a row of episodes.jsonl is an episode that counts: no fault cut it."""
    return "fault" not in row and "fault" not in row.get("extra", {})


def achievements_of(row: Mapping[str, Any]) -> dict[str, int]:
    """Name -> times unlocked in an episode's row; empty where there are none."""
    return row.get("achievements") or row.get("extra", {}).get("achievements", {})


def stats_row(row: Mapping[str, Any]) -> dict[str, Any]:
    """A line of stats.jsonl.

    Args:
        row: an episode: ``score``, ``length`` and, at its top or inside ``extra``,
            ``achievements``.
    """
    unlocked = achievements_of(row)
    score = float(row["score"])
    return {
        "length": int(row["length"]),
        "reward": round(score, 1) if unlocked else score,
        **{f"achievement_{name}": int(times) for name, times in unlocked.items()},
    }


def stats_rows(rows: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Lines of stats.jsonl for those of ``rows`` that are whole episodes."""
    complete = (row for row in rows if "score" in row and "length" in row)
    return [stats_row(row) for row in complete if is_whole_row(row)]
