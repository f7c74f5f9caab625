"""The same benchmarks in two checkouts, in alternating subprocesses: ratios round by round.

Checkouts older than ``python -m benchmarks`` are measured by their ``python -m emerald_jax bench``.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median

from benchmarks.suite.report import Report, Row, describe, number, read_report, render
from emerald_jax.config import ConfigError

HERE = Path(__file__).resolve().parents[2]


def run_once(checkout: Path, arguments: Sequence[str], out: Path) -> Report:
    """Measure one checkout in a process of its own; ConfigError with the cause when it fails."""
    if (checkout / "benchmarks/__main__.py").is_file():
        command = ["benchmarks"]
    elif (checkout / "emerald_jax/bench").is_dir():
        command = ["emerald_jax", "bench"]
    else:
        raise ConfigError(f"--against {checkout}: there are no benchmarks in that folder")
    path = os.pathsep.join(filter(None, [str(checkout), os.environ.get("PYTHONPATH")]))
    done = subprocess.run(
        [sys.executable, "-m", *command, *arguments, "--out", str(out)],
        cwd=checkout,
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
    )
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise ConfigError(f"the benchmarks of {checkout} failed: {last}")
    return read_report(out)


def run_against(
    other: Path, arguments: Sequence[str], rounds: int, log: Callable[[str], None]
) -> list[tuple[Row, list[float]]]:
    """Measure this checkout and ``other`` in turn; the order alternates.

    Returns this checkout's newest row of every measurement in both, and this / other of each round.
    """
    other, pairs = other.resolve(), {}
    with tempfile.TemporaryDirectory(prefix="emerald-jax-bench-") as folder:
        for turn in range(rounds):
            found = {}
            for checkout in (other, HERE) if turn % 2 == 0 else (HERE, other):
                log(f"round {turn + 1} of {rounds}: {checkout}")
                report = run_once(checkout, arguments, Path(folder) / "result.json")
                found[checkout] = {row.identity: row for row in report.rows}
            for name, row in found[HERE].items():
                if name in found[other]:
                    ratio = row.value.median / found[other][name].value.median
                    pairs[name] = (row, [*pairs.get(name, (row, []))[1], ratio])
    if not pairs:
        raise ConfigError(f"--against {other}: the two checkouts have no measurement in common")
    return list(pairs.values())


def against_table(pairs: Sequence[tuple[Row, list[float]]], *, markdown: bool) -> str:
    """Lowest, median and highest ratio of every row; above 1 this checkout is faster."""
    head = ["benchmark", "case", "this", "unit", "lowest", "median", "highest", "rounds"]
    body = []
    for row, ratios in pairs:
        three = [f"{f(ratios):.3f}" for f in (min, median, max)]
        name = [row.benchmark, describe(row.case), number(row.value.median), row.unit]
        body.append([*name, *three, str(len(ratios))])
    return render("this checkout / the other", head, body, markdown=markdown)
