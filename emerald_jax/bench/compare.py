"""Two reports side by side: ratios, and what is slower by more than the noise.

Two rows differ when their noise intervals (:attr:`Spread.noise`) do not overlap and the medians lie
more than :data:`FLOOR` apart: repeats in one process do not see what changes from one process to
the next, so tiny differences between tight repeats mean nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

from emerald_jax.bench.report import Report, Row

#: Relative difference below which nothing is called a change, whatever the repeats say.
FLOOR = 0.03

#: Entries of ``machine`` that must agree for a ratio to speak of the program.
_MACHINE = ("processor", "cores", "device_kind", "devices")


@dataclass(frozen=True)
class Change:
    """One row in both reports.

    Attributes:
        new, old: the rows.
        ratio: new median / old median; above 1 is faster.
        verdict: ``faster``, ``slower`` or ``same``, the last one within the noise.
    """

    new: Row
    old: Row
    ratio: float
    verdict: str


@dataclass(frozen=True)
class Comparison:
    """All rows in both reports.

    Attributes:
        changes: in the order of the new report.
        only_new, only_old: rows without a partner, by identity.
        warnings: lines: what makes the two hard to compare.
    """

    changes: list[Change]
    only_new: list[str]
    only_old: list[str]
    warnings: list[str]

    @property
    def regressions(self) -> list[Change]:
        """What became slower."""
        return [change for change in self.changes if change.verdict == "slower"]


def compare_reports(new: Report, old: Report) -> Comparison:
    """Pair the rows of two reports by benchmark and case."""
    before = {row.identity: row for row in old.rows}
    after = {row.identity: row for row in new.rows}
    return Comparison(
        changes=[compare_rows(row, before[name]) for name, row in after.items() if name in before],
        only_new=[name for name in after if name not in before],
        only_old=[name for name in before if name not in after],
        warnings=[
            f"another machine: {name} is {new.machine.get(name)}, was {old.machine.get(name)}"
            for name in _MACHINE
            if new.machine.get(name) != old.machine.get(name)
        ],
    )


def compare_rows(new: Row, old: Row) -> Change:
    """One row against its older self; values are rates, so higher is faster."""
    ratio = new.value.median / old.value.median
    (new_low, new_high), (old_low, old_high) = new.value.noise, old.value.noise
    verdict = "same"
    if ratio < 1 - FLOOR and new_high < old_low:
        verdict = "slower"
    elif ratio > 1 + FLOOR and new_low > old_high:
        verdict = "faster"
    return Change(new, old, ratio, verdict)
