"""What a benchmark leaves behind: rows of JSON that name the machine, the versions and the shapes.

A report is one JSON object::

    format     "emerald-jax bench 1"
    created    UTC time, ISO 8601
    command    the words it was started with
    complete   false while measuring, and for ever when it was interrupted
    machine    processor, cores, memory, accelerator
    versions   of Python and of the packages that decide speed
    rows       what was measured
    left_out   lines: what was not measured, and why

A row is :class:`Row`. Its ``benchmark`` and ``case`` tell it from every other row; comparisons pair
rows by them.

Reports as tables: on a terminal, or as Markdown for a page.

Two reports side by side: ratios, and what is slower by more than the noise.

Two rows differ when their noise intervals (:attr:`Spread.noise`) do not overlap and the medians lie
more than :data:`FLOOR` apart: repeats in one process do not see what changes from one process to
the next, so tiny differences between tight repeats mean nothing.
"""

from __future__ import annotations

import dataclasses
import datetime
import io
import json
import os
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from emerald_jax.config import ConfigError
from emerald_jax.run.files import write_atomic
from emerald_jax.run.machine import describe_machine, versions

FORMAT = "emerald-jax bench 1"

#: The parts of an update that ``train`` times, in their order; a row's facts name them so.
PARTS = ("world_model", "imagination", "actor_critic", "optimizer")


@dataclass(frozen=True)
class Spread:
    """Repeated measurements of one number.

    Attributes:
        median, q1, q3, lowest, highest: of the repeats, in the row's unit.
        repeats: how many there were, warm-up not counted.
    """

    median: float
    q1: float
    q3: float
    lowest: float
    highest: float
    repeats: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """The spread of at least one value."""
        low, high = min(values), max(values)
        if len(values) > 1:
            q1, _, q3 = statistics.quantiles(values, n=4, method="inclusive")
        else:
            q1 = q3 = values[0]
        return cls(statistics.median(values), q1, q3, low, high, len(values))

    @property
    def noise(self) -> tuple[float, float]:
        """Where another measurement of the same thing is to be expected.

        Half of the repeats lie between the quartiles. Below eight repeats quartiles say little, and
        the lowest and highest stand in.
        """
        return (self.lowest, self.highest) if self.repeats < 8 else (self.q1, self.q3)


@dataclass(frozen=True, kw_only=True)
class Row:
    """One measured number and what belongs to it.

    Attributes:
        benchmark: name, such as ``imagination``.
        case: what was measured: sizes, types, devices. Scalars only.
        unit: of the value, such as ``imagined states/s``; a higher value is better, always.
        value: :class:`Spread` of the repeats.
        facts: everything else that was counted or measured, by name; units are in the names.
    """

    benchmark: str
    case: dict[str, Any]
    unit: str
    value: Spread
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def identity(self) -> str:
        """The same for the same measurement in another report."""
        return f"{self.benchmark} {describe(self.case)}"

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Row:
        """The inverse of :func:`dataclasses.asdict`."""
        return cls(**{**values, "value": Spread(**values["value"])})


@dataclass(kw_only=True)
class Report:
    """Everything one command measured; see the module docstring."""

    command: str
    machine: dict[str, Any]
    versions: dict[str, str]
    created: str
    rows: list[Row] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    complete: bool = False

    @classmethod
    def begin(cls, command: str) -> Report:
        """An empty report of this machine, at this moment."""
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        return cls(command=command, machine=describe_machine(), versions=versions(), created=now)

    def to_json(self) -> str:
        """The text of the file."""
        return json.dumps({"format": FORMAT, **dataclasses.asdict(self)}, indent=1) + "\n"


def describe(case: dict[str, Any]) -> str:
    """A case as words: ``preset=crafter S=3``."""
    return " ".join(f"{name}={value}" for name, value in case.items())


def write_report(path: Path, report: Report) -> None:
    """Write or replace a report; a reader sees the old one or the new one, whole.

    Raises:
        ConfigError: when it cannot be written.
    """
    try:
        write_atomic(path, report.to_json().encode())
    except OSError as error:
        raise ConfigError(f"{path} cannot be written: {error.strerror}") from error


def check_writable(path: Path) -> None:
    """Refuse now what :func:`write_report` would refuse after an hour of measuring.

    Raises:
        ConfigError: when there is no such folder, or no file can be made in it.
    """
    if not path.parent.is_dir():
        raise ConfigError(f"--out {path}: there is no folder {path.parent}")
    if path.is_dir():
        raise ConfigError(f"--out {path} is a folder: give the name of a file")
    probe = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise ConfigError(f"--out {path} cannot be written: {error.strerror}") from error


def read_report(path: Path) -> Report:
    """Read a report back.

    Raises:
        ConfigError: when it cannot be read or is none.
    """
    try:
        values = json.loads(path.read_text())
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise ConfigError(f"{path} is no JSON: {error}") from error
    if not isinstance(values, dict) or values.pop("format", None) != FORMAT:
        raise ConfigError(f"{path} is no result of emerald-jax bench")
    try:
        rows = [Row.from_dict(row) for row in values.pop("rows")]
        return Report(**values, rows=rows)
    except (TypeError, KeyError, AttributeError) as error:
        raise ConfigError(f"{path} is no whole result of emerald-jax bench: {error}") from error


#: Facts that earn a column, and how they are written.
_COLUMNS = {
    "share_of_ceiling": ("of ceiling", lambda x: f"{100 * x:.1f} %"),
    "temporaries_bytes": ("temporaries", lambda x: f"{x / 2**20:,.4g} MiB"),
    "kept_bytes": ("kept by autodiff", lambda x: f"{x / 2**20:,.4g} MiB"),
    "process_peak_bytes": ("process peak", lambda x: f"{x / 2**30:.1f} GiB"),
    "compile_seconds": ("compile", lambda x: f"{x:.0f} s"),
    "world_model_seconds": ("model", lambda x: f"{x:.3g} s"),
    "imagination_seconds": ("imagine", lambda x: f"{x:.3g} s"),
    "actor_critic_seconds": ("agent", lambda x: f"{x:.3g} s"),
    "optimizer_seconds": ("optimiser", lambda x: f"{x:.3g} s"),
    "share_of_train_step": ("of train step", lambda x: f"{100 * x:.1f} %"),
    "env_time_hidden": ("env time hidden", lambda x: f"{100 * x:.0f} %"),
    "bytes_per_s": ("copied", lambda x: f"{x / 1e9:.2f} GB/s"),
    "share_of_plain_copy": ("of plain copy", lambda x: f"{100 * x:.0f} %"),
    "start_seconds": ("start", lambda x: f"{x:.1f} s"),
}


def report_tables(reports: Sequence[Report], *, markdown: bool = False) -> str:
    """One table per benchmark over all reports; a column tells the machines apart if there are
    several.

    Args:
        reports: in the order they shall be shown.
        markdown: for a page instead of a terminal.
    """
    several = len({machine_words(report) for report in reports}) > 1
    by_name: dict[str, list[tuple[Report, Row]]] = {}
    for report in reports:
        for row in report.rows:
            by_name.setdefault(row.benchmark, []).append((report, row))
    parts = [
        f"{machine_words(report)}\n" for report in {machine_words(r): r for r in reports}.values()
    ]
    for name, rows in by_name.items():
        head, body = benchmark_table(rows, several=several)
        parts.append(render(name, head, body, markdown=markdown))
    parts += [f"left out: {line}\n" for report in reports for line in report.left_out]
    return "\n".join(parts)


def benchmark_table(
    rows: Sequence[tuple[Report, Row]], *, several: bool
) -> tuple[list[str], list[list[str]]]:
    """Head and lines of one benchmark's table; columns that nobody fills are left out."""
    cases = list(dict.fromkeys(name for _, row in rows for name in row.case))
    facts = [name for name in _COLUMNS if any(name in row.facts for _, row in rows)]
    head = [*(["machine"] if several else []), *cases, "value", "spread", "unit"]
    body = []
    for report, row in rows:
        line = [machine_words(report)] if several else []
        line += [str(row.case.get(name, "")) for name in cases]
        line += [number(row.value.median), spread_words(row), row.unit]
        line += [fact_words(name, row.facts.get(name)) for name in facts]
        body.append(line)
    return head + [_COLUMNS[name][0] for name in facts], body


def comparison_table(comparison: Comparison, *, markdown: bool = False) -> str:
    """Every paired row with its ratio and verdict, then what has no partner."""
    head = ["benchmark", "case", "old", "new", "unit", "ratio", ""]
    body = [
        [
            change.new.benchmark,
            describe(change.new.case),
            number(change.old.value.median),
            number(change.new.value.median),
            change.new.unit,
            f"{change.ratio:.3f}",
            {"slower": "SLOWER", "faster": "faster"}.get(change.verdict, ""),
        ]
        for change in comparison.changes
    ]
    lines = [f"{line}\n" for line in comparison.warnings]
    lines.append(render("new against old", head, body, markdown=markdown))
    lines += [f"only new: {name}\n" for name in comparison.only_new]
    lines += [f"only old: {name}\n" for name in comparison.only_old]
    count = len(comparison.regressions)
    lines.append(f"{len(comparison.changes)} compared, {count} slower beyond the noise\n")
    return "".join(lines)


def render(
    title: str, head: Sequence[str], body: Sequence[Sequence[str]], *, markdown: bool
) -> str:
    """A table as text; on a terminal long tables are as wide as they need to be."""
    if markdown:
        rule = ["---"] * len(head)
        lines = ["| " + " | ".join(cells) + " |" for cells in (head, rule, *body)]
        return f"### {title}\n\n" + "\n".join(lines) + "\n"
    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    for name in head:
        table.add_column(name, justify="left", no_wrap=True)
    for line in body:
        table.add_row(*line)
    console = Console(file=io.StringIO(), width=250, color_system=None)
    console.print(table, markup=False)
    text = console.file.getvalue()
    return "".join(line.rstrip() + "\n" for line in text.splitlines())


def machine_words(report: Report) -> str:
    """The machine in a few words."""
    m = report.machine
    device = "" if m.get("backend") == "cpu" else f", {m.get('devices')} x {m.get('device_kind')}"
    cores = f"{m.get('cores')} cores of {m.get('processor')}"
    return f"{cores}{device}, jax {report.versions.get('jax')}"


def number(value: float) -> str:
    """Three to four digits whatever the size."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def spread_words(row: Row) -> str:
    """The noise interval and the number of repeats."""
    low, high = row.value.noise
    return f"{number(low)} - {number(high)} ({row.value.repeats})"


def fact_words(name: str, value: Any) -> str:
    """A fact as its column writes it; empty where there is none."""
    return "" if value is None else _COLUMNS[name][1](value)


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
