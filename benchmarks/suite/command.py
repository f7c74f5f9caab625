"""The benchmarks by name, and the one way to run them: rows are kept as they come.

``python -m benchmarks [NAME ...] [--quick] [--out FILE.json] [--compare OLD.json]``.
"""

from __future__ import annotations

import importlib
import shlex
import sys
from argparse import Namespace
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.suite.harness import Options, device_counts
from benchmarks.suite.report import Report, Row, write_report
from emerald_jax.cli import guarded
from emerald_jax.commands.shared import Parser, write_out
from emerald_jax.config import ConfigError

if TYPE_CHECKING:
    from benchmarks.suite.report import Report


#: Name -> module and what it measures, in the order of a whole run: later ones use the train rate.
BENCHMARKS = {
    "imagination": ("imagination", "imagined states per second over S, H, starts, types, devices"),
    "decode": ("decode", "MaskGIT against the autoregressive and linear priors"),
    "train": ("train", "updates per second, and where an update's time goes"),
    "envs": ("envs", "environment steps per second of each adapter"),
    "replay": ("replay", "records sampled and appended per second, bytes copied"),
    "end-to-end": ("end_to_end", "the real training loop against the bare update"),
}


def run_benchmarks(
    names: Sequence[str],
    options: Options,
    *,
    command: str,
    out: Path | None = None,
    tell: Callable[[str], None] = lambda line: None,
) -> Report:
    """Measure.

    Args:
        names: of :data:`BENCHMARKS`.
        options: how much.
        command: for the report.
        out: where the report is written after every row, so that an interrupted one keeps what it
            has; None writes nothing.
        tell: narrates, line by line.

    Returns:
        The complete :class:`Report`.

    Raises:
        ConfigError, EnvError, ReplayError: what cannot be measured at all.
    """
    options.check()
    device_counts(options)
    report = Report.begin(command)
    for name in names:
        tell(f"{name}: {BENCHMARKS[name][1]}")
        module = importlib.import_module(f"benchmarks.{BENCHMARKS[name][0]}")
        for found in module.measure(options):
            if isinstance(found, Row):
                report.rows.append(found)
                tell(f"  {found.identity}: {found.value.median:,.4g} {found.unit}")
            else:
                report.left_out.append(found)
                tell(f"  left out: {found}")
            if out is not None:
                write_report(out, report)
    report.complete = True
    if out is not None:
        write_report(out, report)
    return report


_EPILOG = (
    "Exit code 1: --compare found something slower beyond the measured noise. docs/speed.md says "
    "how to read the numbers."
)


def main() -> int:
    """``python -m benchmarks``: the words of the process; returns the exit code."""
    return guarded(run_bench, sys.argv[1:])


def run_bench(words: list[str]) -> int:
    """Measure, or read results back; print tables."""
    options = _parse(words)
    out, folder = options.out, options.figures
    if folder is not None and not folder.is_dir():
        raise ConfigError(f"--figures {folder}: there is no such folder")
    from benchmarks.suite.report import check_writable, read_report

    old = read_report(options.compare) if options.compare else None
    if options.show:
        reports = [read_report(path) for path in options.show]
    else:
        if out is not None:
            check_writable(out)
        reports = [_measure(options, words)]
    from benchmarks.suite.report import comparison_table, report_tables

    write_out(report_tables(reports, markdown=options.markdown))
    if folder is not None:
        from benchmarks.suite.figures import draw_figures

        for path in draw_figures(reports, folder):
            write_out(f"{path}\n")
    if old is None:
        return 0
    from benchmarks.suite.report import compare_reports

    comparison = compare_reports(reports[0], old)
    write_out("\n" + comparison_table(comparison, markdown=options.markdown))
    return 1 if comparison.regressions else 0


def _parse(words: list[str]) -> Namespace:
    parser = Parser("bench", "python -m benchmarks", "measure speed on this machine")
    parser.epilog = _EPILOG
    add = parser.add_argument
    add("names", nargs="*", metavar="NAME", help=f"{', '.join(BENCHMARKS)}; none means all")
    add("--quick", action="store_true", help="a handful of points, a second each")
    add("--full", action="store_true", help="the whole grid, also where it takes hours")
    add("--out", type=Path, metavar="FILE.json", help="keep the result, row by row")
    add("--compare", type=Path, metavar="OLD.json", help="ratios to an older result")
    add("--show", type=Path, nargs="+", metavar="FILE.json", help="read results, measure nothing")
    add("--figures", type=Path, metavar="FOLDER", help="draw PNG files there")
    add("--markdown", action="store_true", help="tables for a page")
    add(
        "--preset",
        default="",
        help="whose sizes to measure (crafter; end-to-end on a CPU: crafter-small)",
    )
    add("--seconds", type=float, default=0.0, help="for each number (10; quick: 1)")
    add("--minutes", type=float, default=0.0, help="of the end-to-end run (2; quick: 0.25)")
    add("--decode-steps", type=int, nargs="+", default=[], metavar="S", help="MaskGIT steps")
    add("--horizon", type=int, nargs="+", default=[], metavar="H", help="imagined steps")
    add("--starts", type=int, nargs="+", default=[], metavar="N", help="rollouts at once")
    types, switch = ("float32", "bfloat16"), ("on", "off")
    add("--dtype", nargs="+", default=[], choices=types, help="compute types")
    add("--devices", type=int, nargs="+", default=[], metavar="N", help="numbers of devices")
    add("--remat", nargs="+", default=[], choices=switch, help="rematerialisation, in train")
    add("--envs", nargs="+", default=[], metavar="ENV", help="environments, in envs")
    add("--counts", type=int, nargs="+", default=[], metavar="N", help="how many, in envs")
    add("--records", type=int, default=0, metavar="N", help="in replay (the preset's capacity)")
    options = parser.parse_args(words)
    for name in options.names:
        if name not in BENCHMARKS:
            parser.error(f"unknown benchmark {name!r}; choose from {', '.join(BENCHMARKS)}")
    if options.show and (options.names or options.out):
        parser.error("--show measures nothing: leave out the benchmarks and --out")
    if options.compare and options.show and len(options.show) > 1:
        parser.error("--compare takes one result: --show one file")
    return options


def _measure(options: Namespace, words: list[str]) -> Report:
    from benchmarks.suite.harness import Options

    chosen = Options(
        preset=options.preset,
        quick=options.quick,
        full=options.full,
        seconds=options.seconds,
        decode_steps=tuple(options.decode_steps),
        horizons=tuple(options.horizon),
        starts=tuple(options.starts),
        dtypes=tuple(options.dtype),
        devices=tuple(options.devices),
        remat=tuple(word == "on" for word in options.remat),
        minutes=options.minutes,
        envs=tuple(options.envs),
        counts=tuple(options.counts),
        records=options.records,
    )
    chosen.check()
    from emerald_jax.run.machine import prepare_jax

    prepare_jax()
    return run_benchmarks(
        options.names or tuple(BENCHMARKS),
        chosen,
        command=shlex.join(["python", "-m", "benchmarks", *_without_files(words)]),
        out=options.out,
        tell=_narrate,
    )


def _without_files(words: list[str]) -> list[str]:
    """The words that decide what is measured: a result says nothing of its owner's folders."""
    kept: list[str] = []
    rest = iter(words)
    for word in rest:
        name, equals, _ = word.partition("=")
        if name not in ("--out", "--compare", "--figures"):
            kept.append(word)
        elif not equals:
            next(rest, None)
    return kept


def _narrate(line: str) -> None:
    sys.stderr.write(f"{line}\n")
    sys.stderr.flush()
