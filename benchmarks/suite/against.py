"""The same benchmarks in two checkouts, in alternating subprocesses: ratios round by round.

Checkouts older than ``python -m benchmarks`` are measured by their ``python -m emerald_jax bench``.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median

from benchmarks.suite.report import Row, describe, number, read_report, render
from emerald_jax.config import ConfigError

HERE = Path(__file__).resolve().parents[2]

#: This checkout's newest row of a measurement, and this / other of each round.
Pair = tuple[Row, list[float]]


def module_of(checkout: Path) -> list[str]:
    """The arguments after ``python -m`` that measure a checkout; ConfigError if it cannot."""
    if (checkout / "benchmarks/__main__.py").is_file():
        return ["benchmarks"]
    if (checkout / "emerald_jax/bench").is_dir():
        return ["emerald_jax", "bench"]
    raise ConfigError(f"--against {checkout}: there are no benchmarks in that folder")


def run_once(
    checkout: Path,
    arguments: Sequence[str],
    out: Path,
    minutes: float,
    log: Callable[[str], None],
    title: str,
) -> dict[str, Row]:
    """Measure one checkout in a process of its own; returns its rows by their identity.

    ``log`` gets its progress, below ``title``. ConfigError with the cause when it fails or needs
    more than ``minutes``.
    """
    log(f"{title}: {checkout}")
    path = os.pathsep.join(filter(None, [str(checkout), os.environ.get("PYTHONPATH")]))
    process = subprocess.Popen(
        [sys.executable, "-m", *module_of(checkout), *arguments, "--out", str(out)],
        cwd=checkout,
        env={**os.environ, "PYTHONPATH": path},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        start_new_session=True,  # a group of its own: its workers are killed with it
    )

    def kill() -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)

    timer, began, last = threading.Timer(60 * minutes, kill), time.monotonic(), "no message"
    timer.start()
    try:
        for line in filter(None, map(str.strip, process.stderr)):
            log(f"{title}: {(last := line)}")
        code = process.wait()
    finally:
        timer.cancel()
        kill()
        process.communicate()
    if code:
        late = time.monotonic() - began >= 60 * minutes
        cause = f"not done after {minutes:g} minutes (--limit)" if late else last
        raise ConfigError(f"the benchmarks of {checkout} failed: {cause}")
    return {row.identity: row for row in read_report(out).rows}


def run_against(
    other: Path, arguments: Sequence[str], rounds: int, minutes: float, log: Callable[[str], None]
) -> list[Pair]:
    """Measure this checkout and ``other`` in turn, each for at most ``minutes`` per round.

    The order alternates. ``log`` gets the progress, and after each round both values side by side.
    If a later round fails, the complete ones are returned; ConfigError if the first one does.
    """
    sides, pairs = {"other": other.resolve(), "this": HERE}, {}
    with tempfile.TemporaryDirectory(prefix="emerald-jax-bench-") as folder:
        for turn in range(rounds):
            name, found = f"round {turn + 1} of {rounds}", {}
            try:
                for side in sorted(sides, reverse=turn % 2 == 1):
                    out, title = Path(folder) / f"{turn}-{side}.json", f"{name}, {side}"
                    found[side] = run_once(sides[side], arguments, out, minutes, log, title)
            except ConfigError as error:
                if not pairs:
                    raise
                log(f"{name}: stopped: {error}")
                break
            for key, row in found["this"].items():
                if before := found["other"].get(key):
                    ours, theirs = row.value.median, before.value.median
                    pairs[key] = (row, [*pairs.get(key, (row, []))[1], ours / theirs])
                    both = f"this {number(ours)}, other {number(theirs)} {row.unit}"
                    log(f"{name}: {key}: {both}, ratio {ours / theirs:.3f}")
            if not pairs:
                raise ConfigError(f"--against {other}: the checkouts have no measurement in common")
    return list(pairs.values())


def against_table(pairs: Sequence[Pair], *, markdown: bool) -> str:
    """Lowest, median and highest ratio of every row; above 1 this checkout is faster."""
    head = ["benchmark", "case", "this", "unit", "lowest", "median", "highest", "rounds"]
    body = []
    for row, ratios in pairs:
        three = [f"{f(ratios):.3f}" for f in (min, median, max)]
        name = [row.benchmark, describe(row.case), number(row.value.median), row.unit]
        body.append([*name, *three, str(len(ratios))])
    return render("this checkout / the other", head, body, markdown=markdown)
