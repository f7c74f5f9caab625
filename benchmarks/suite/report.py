"""Results as JSON, as tables, and compared with older results."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import io
import json
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks.suite.machine import describe_machine, versions
from emerald_jax.config import ConfigError
from emerald_jax.reports.runs import Table as MarkdownTable
from emerald_jax.run.directory import write_atomic

FORMAT = "emerald-jax bench 1"

#: The parts of an update that ``train`` times; a row's facts are named after them.
PARTS = ("world_model", "imagination", "actor_critic", "optimizer")


@dataclass(frozen=True)
class Repeats:
    """Repeated measurements of one number in the row's unit, warm-up not counted."""

    median: float
    q1: float
    q3: float
    lowest: float
    highest: float
    repeats: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Repeats:
        """Summarise at least one value."""
        lowest, q1, median, q3, highest = np.quantile(values, (0, 0.25, 0.5, 0.75, 1)).tolist()
        return cls(median, q1, q3, lowest, highest, len(values))

    @property
    def noise(self) -> tuple[float, float]:
        """Where another measurement is expected: the quartiles; below 8 repeats the range."""
        return (self.lowest, self.highest) if self.repeats < 8 else (self.q1, self.q3)


@dataclass(frozen=True, kw_only=True)
class Row:
    """One measured number; comparisons pair rows by ``benchmark`` and ``case``."""

    benchmark: str  # name, such as ``imagination``
    case: dict[str, Any]  # the point that was measured: sizes, types, devices; scalars only
    unit: str  # of the value, such as ``imagined states/s``; higher is always better
    value: Repeats
    facts: dict[str, Any] = field(default_factory=dict)  # more numbers; units are in the names

    @classmethod
    def of(cls, values: Sequence[float], **fields: Any) -> Row:
        """The row of the given repeats."""
        return cls(value=Repeats.of(values), **fields)

    @property
    def identity(self) -> str:
        """The same for the same measurement in another report."""
        return f"{self.benchmark} {describe(self.case)}"


@dataclass(kw_only=True)
class Report:
    """Everything that one command measured: one JSON object, with :data:`FORMAT` as ``format``.

    ``command`` names no files, ``created`` is in UTC, lines of ``left_out`` are what was not
    measured and why; ``complete`` is False while measuring, and after an interruption.
    """

    command: str
    machine: dict[str, Any]
    versions: dict[str, str]
    created: str
    rows: list[Row] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    complete: bool = False

    @classmethod
    def begin(cls, command: str) -> Report:
        """An empty report of this machine, created now."""
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        return cls(command=command, machine=describe_machine(), versions=versions(), created=now)

    def to_json(self) -> str:
        """The text of the file."""
        return json.dumps({"format": FORMAT, **dataclasses.asdict(self)}, indent=1) + "\n"


def describe(case: dict[str, Any]) -> str:
    """A case in one line: ``preset=crafter S=3``."""
    return " ".join(f"{name}={value}" for name, value in case.items())


@contextlib.contextmanager
def refused(what: object, verb: str = "written") -> Iterator[None]:
    """Turn an OSError into a ConfigError of one line: ``what`` cannot be written, or read."""
    try:
        yield
    except OSError as error:
        raise ConfigError(f"{what} cannot be {verb}: {error.strerror}") from error


def write_report(path: Path, report: Report) -> None:
    """Write or replace a report atomically; ConfigError when it cannot be written."""
    with refused(path):
        write_atomic(path, report.to_json().encode())


def check_writable(path: Path) -> None:
    """Check before an hour of measuring that a result can be written; else ConfigError."""
    if not path.parent.is_dir():
        raise ConfigError(f"--out {path}: there is no folder {path.parent}")
    if path.is_dir():
        raise ConfigError(f"--out {path} is a folder: give the name of a file")
    with refused(f"--out {path}"), tempfile.TemporaryFile(dir=path.parent):
        pass


def read_report(path: Path) -> Report:
    """Read a report back; ConfigError when the file is no report."""
    try:
        with refused(path, "read"):
            values = json.loads(path.read_text())
    except ValueError as error:
        raise ConfigError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(values, dict) or values.pop("format", None) != FORMAT:
        raise ConfigError(f"{path} is not a result of the benchmarks")
    try:
        rows = [Row(**row | {"value": Repeats(**row["value"])}) for row in values.pop("rows")]
        return Report(**values, rows=rows)
    except (TypeError, KeyError, AttributeError) as error:
        raise ConfigError(f"{path} is not a complete result of the benchmarks: {error}") from error


#: Facts that have a column: its head and format.
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
    "kernels": ("kernels", lambda x: f"{x:,.0f}"),
    "kernel_seconds": ("in kernels", lambda x: f"{x:.3g} s"),
    "last_return": ("last return", lambda x: f"{x:.2f}"),
}

#: A report's row with the report's machine: what tables and figures are made of.
Measured = tuple[Report, Row]


def by_benchmark(reports: Sequence[Report]) -> dict[str, list[Measured]]:
    """All rows of all reports, by benchmark."""
    found: dict[str, list[Measured]] = {}
    for report in reports:
        for row in report.rows:
            found.setdefault(row.benchmark, []).append((report, row))
    return found


def report_tables(reports: Sequence[Report], *, markdown: bool = False) -> str:
    """One table per benchmark over all reports, with a machine column if there are several."""
    machines = list(dict.fromkeys(machine_name(report) for report in reports))
    parts = [f"{machine}\n" for machine in machines]
    for name, rows in by_benchmark(reports).items():
        head, body = benchmark_table(rows, several=len(machines) > 1)
        parts.append(render(name, head, body, markdown=markdown))
    parts += [f"left out: {line}\n" for report in reports for line in report.left_out]
    return "\n".join(parts)


def benchmark_table(
    rows: Sequence[Measured], *, several: bool
) -> tuple[list[str], list[list[str]]]:
    """Head and lines of one benchmark's table; empty columns are left out."""
    cases = list(dict.fromkeys(name for _, row in rows for name in row.case))
    facts = [name for name in _COLUMNS if any(name in row.facts for _, row in rows)]
    head = [*(["machine"] if several else []), *cases, "value", "noise (repeats)", "unit"]
    body = []
    for report, row in rows:
        low, high = map(number, row.value.noise)
        line = [machine_name(report)] if several else []
        line += [str(row.case.get(name, "")) for name in cases]
        line += [number(row.value.median), f"{low} - {high} ({row.value.repeats})", row.unit]
        line += [_COLUMNS[name][1](row.facts[name]) if name in row.facts else "" for name in facts]
        body.append(line)
    return head + [_COLUMNS[name][0] for name in facts], body


def render(
    title: str, head: Sequence[str], body: Sequence[Sequence[str]], *, markdown: bool
) -> str:
    """A table as text; on a terminal its lines are never wrapped."""
    if markdown:
        return f"### {title}\n\n{MarkdownTable(columns=tuple(head), rows=body).markdown()}"
    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    for name in head:
        table.add_column(name, no_wrap=True)
    for line in body:
        table.add_row(*line)
    console = Console(file=io.StringIO(), width=250, color_system=None)
    console.print(table, markup=False)
    return "".join(f"{line.rstrip()}\n" for line in console.file.getvalue().splitlines())


def machine_name(report: Report) -> str:
    """The machine of a report, in a few words."""
    m = report.machine
    device = "" if m.get("backend") == "cpu" else f", {m.get('devices')} x {m.get('device_kind')}"
    jax = report.versions.get("jax")
    return f"{m.get('cores')} cores of {m.get('processor')}{device}, jax {jax}"


def number(value: float) -> str:
    """Three to four digits, whatever the size."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


#: Relative difference below which two rows are the same: processes differ more than repeats show.
FLOOR = 0.03

#: Entries of ``machine`` that must agree for a ratio to describe the program.
_MACHINE = ("processor", "cores", "device_kind", "devices")


class Change(NamedTuple):
    """One row in both reports; a ratio of medians above 1 is faster.

    The verdict is ``faster`` or ``slower`` where the noise intervals (:attr:`Repeats.noise`) do not
    overlap and the medians differ by more than :data:`FLOOR`, otherwise ``same``.
    """

    new: Row
    old: Row
    ratio: float
    verdict: str


class Comparison(NamedTuple):
    """All rows of two reports: pairs, identities of rows without a partner, other machines.

    ``regressions`` are the pairs that became slower.
    """

    changes: list[Change]
    only_new: list[str]
    only_old: list[str]
    warnings: list[str]
    regressions: list[Change]


def compare_reports(new: Report, old: Report) -> Comparison:
    """Pair the rows of two reports by benchmark and case."""
    before, after = ({row.identity: row for row in report.rows} for report in (old, new))
    machines = [(name, new.machine.get(name), old.machine.get(name)) for name in _MACHINE]
    changes = [compare_rows(row, before[name]) for name, row in after.items() if name in before]
    return Comparison(
        changes,
        only_new=[name for name in after if name not in before],
        only_old=[name for name in before if name not in after],
        warnings=[f"another machine: {k} is {a}, was {b}" for k, a, b in machines if a != b],
        regressions=[change for change in changes if change.verdict == "slower"],
    )


def compare_rows(new: Row, old: Row) -> Change:
    """Compare a row with its older measurement; values are rates, so higher is faster."""
    ratio = new.value.median / old.value.median
    (new_low, new_high), (old_low, old_high) = new.value.noise, old.value.noise
    slower = ratio < 1 - FLOOR and new_high < old_low
    faster = ratio > 1 + FLOOR and new_low > old_high
    return Change(new, old, ratio, "slower" if slower else "faster" if faster else "same")


def comparison_table(comparison: Comparison, *, markdown: bool = False) -> str:
    """Every pair with its ratio and verdict, then the rows without a partner."""
    head = ["benchmark", "case", "old", "new", "unit", "ratio", ""]
    marks = {"slower": "SLOWER", "faster": "faster", "same": ""}
    body = []
    for new, old, ratio, verdict in comparison.changes:
        medians = [number(row.value.median) for row in (old, new)]
        line = [new.benchmark, describe(new.case), *medians, new.unit]
        body.append([*line, f"{ratio:.3f}", marks[verdict]])
    lines = [f"{line}\n" for line in comparison.warnings]
    lines.append(render("new against old", head, body, markdown=markdown))
    lines += [f"only new: {name}\n" for name in comparison.only_new]
    lines += [f"only old: {name}\n" for name in comparison.only_old]
    count = len(comparison.regressions)
    return "".join([*lines, f"{len(body)} compared, {count} slower beyond the noise\n"])
