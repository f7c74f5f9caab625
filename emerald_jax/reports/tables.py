"""Tables as Markdown, and numbers as they are written in them."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from emerald_jax.ops.scores import Interval

#: What stands where there is no number.
NONE = "–"


@dataclass(frozen=True, kw_only=True)
class Table:
    """A table and what must be read with it.

    Attributes:
        columns: their headings.
        rows: one text per column.
        notes: lines below it.
    """

    columns: tuple[str, ...]
    rows: list[tuple[str, ...]]
    notes: tuple[str, ...] = ()

    def markdown(self) -> str:
        """The table and its notes."""
        lines = [self.columns, tuple("---" for _ in self.columns), *self.rows]
        text = "".join(f"| {' | '.join(map(_cell, line))} |\n" for line in lines)
        return text + "".join(f"\n{note}\n" for note in self.notes)


def spread(values: Sequence[float], digits: int = 1) -> str:
    """Mean ± standard deviation over seeds; a single one stands alone."""
    mean = f"{statistics.fmean(values):.{digits}f}"
    return mean if len(values) == 1 else f"{mean} ± {statistics.stdev(values):.{digits}f}"


def interval(found: Interval, digits: int = 3) -> str:
    """A number and its 95 % interval."""
    text = f"{found.value:.{digits}f}"
    if found.low != found.low:  # NaN: a single run has no interval
        return text
    return f"{text} [{found.low:.{digits}f}, {found.high:.{digits}f}]"


def number(value: float | None, digits: int = 1) -> str:
    """A number, or the sign that there is none."""
    return NONE if value is None else f"{value:.{digits}f}"


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")
