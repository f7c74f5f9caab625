"""Reports as tables: on a terminal, or as Markdown for a page."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from emerald_jax.bench.compare import Comparison
from emerald_jax.bench.report import Report, Row, describe

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
