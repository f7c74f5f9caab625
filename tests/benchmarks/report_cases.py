"""Invented reports for the tests of tables, figures and comparisons."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from benchmarks.suite.report import Repeats, Report, Row

MACHINE = {"processor": "abacus", "cores": 2, "backend": "cpu", "device_kind": "cpu", "devices": 1}


def make_row(values: Sequence[float], benchmark: str = "imagination", **case: Any) -> Row:
    """A row of the given repeats."""
    median = Repeats.of(values).median
    facts = {"seconds": 1 / median, "share_of_ceiling": 0.5, "useful_flops": 10**12}
    case = {"preset": "tiny", "S": 3, "H": 5, "starts": 8, **case}
    return Row(
        benchmark=benchmark, case=case, unit="things/s", value=Repeats.of(values), facts=facts
    )


def make_report(*rows: Row, **machine: Any) -> Report:
    """A complete report of an imaginary machine."""
    return Report(
        command="python -m benchmarks",
        machine={**MACHINE, **machine},
        versions={"jax": "0.10.2"},
        created="2026-01-01T00:00:00+00:00",
        rows=list(rows),
        complete=True,
    )
