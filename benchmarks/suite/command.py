"""``python -m benchmarks``: run benchmarks by name, keep their rows, print tables."""

from __future__ import annotations

import argparse
import importlib
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks.suite.against import against_table, run_against
from benchmarks.suite.harness import Options, device_counts
from benchmarks.suite.report import (
    Report,
    Row,
    check_writable,
    compare_reports,
    comparison_table,
    read_report,
    report_tables,
    write_report,
)
from emerald_jax.cli import guarded
from emerald_jax.commands import Parser, number
from emerald_jax.config import ConfigError
from emerald_jax.run.machine import prepare_jax

#: Benchmarks in the order of a complete run: later ones use the rate of ``train``.
BENCHMARKS = {
    "imagination": "imagined states per second over S, H, starts, types, devices",
    "decode": "MaskGIT against the autoregressive and linear priors",
    "train": "updates per second, and how an update's time is divided",
    "envs": "environment steps per second of each adapter",
    "replay": "records sampled and appended per second, bytes copied",
    "end-to-end": "the real training loop against the bare update",
}
#: Options that do not change what is measured, each with one value.
_FILES = ("--out", "--compare", "--figures", "--against", "--rounds", "--limit")
_EPILOG = (
    "Exit code 1: --compare found something slower beyond the measured noise. docs/development.md "
    "explains the numbers. One command for an accelerator: python -m benchmarks accelerator --help."
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run ``python -m benchmarks``; returns the exit code."""
    return guarded(_run, list(sys.argv[1:] if arguments is None else arguments))


def _run(arguments: list[str]) -> int:
    """Measure, or read results back, and print tables; the exit code is 1 after a regression."""
    if arguments[:1] == ["accelerator"]:
        from benchmarks.accelerator import run_accelerator

        return run_accelerator(arguments[1:])
    options = _parse(arguments)
    if options.figures and not options.figures.is_dir():
        raise ConfigError(f"--figures {options.figures}: there is no such folder")
    old = read_report(options.compare) if options.compare else None
    if options.out:
        check_writable(options.out)
    if options.against:
        Options.of(options)
        rest = [word for word in _without_files(arguments) if word != "--markdown"]
        pairs = run_against(options.against, rest, options.rounds, options.limit, _log)
        sys.stdout.write(against_table(pairs, markdown=options.markdown))
        return 0
    reports = [read_report(path) for path in options.show or ()]
    if not reports:
        chosen = Options.of(options)
        prepare_jax()
        command = shlex.join(["python", "-m", "benchmarks", *_without_files(arguments)])
        names = options.names or tuple(BENCHMARKS)
        reports = [run_benchmarks(names, chosen, command=command, out=options.out, log=_log)]
    sys.stdout.write(report_tables(reports, markdown=options.markdown))
    if options.figures:
        from benchmarks.suite.figures import draw_figures

        sys.stdout.writelines(f"{path}\n" for path in draw_figures(reports, options.figures))
    if old is None:
        return 0
    comparison = compare_reports(reports[0], old)
    sys.stdout.write("\n" + comparison_table(comparison, markdown=options.markdown))
    return 1 if comparison.regressions else 0


def _parse(arguments: list[str]) -> argparse.Namespace:
    parser = Parser("bench", "python -m benchmarks", "measure speed on this machine")
    parser.epilog = _EPILOG
    add = parser.add_argument
    add("names", nargs="*", metavar="NAME", help=f"{', '.join(BENCHMARKS)}; default: all")
    add("--out", type=Path, metavar="FILE.json", help="keep the result, row by row")
    add("--compare", type=Path, metavar="OLD.json", help="ratios to an older result")
    add("--show", type=Path, nargs="+", metavar="FILE.json", help="read results, measure nothing")
    add("--figures", type=Path, metavar="FOLDER", help="draw PNG files there")
    add("--markdown", action="store_true", help="tables in Markdown")
    add("--against", type=Path, metavar="CHECKOUT", help="ratios to another checkout, run in turn")
    add("--rounds", type=number(1), default=5, help="of --against (5)")
    about = "of --against, for one checkout in one round (60)"
    add("--limit", type=number(0, kind=float), default=60.0, metavar="MINUTES", help=about)
    Options.add_to(parser)
    options = parser.parse_args(arguments)
    for name in options.names:
        if name not in BENCHMARKS:
            parser.error(f"unknown benchmark {name!r}; choose from {', '.join(BENCHMARKS)}")
    if options.show and (options.names or options.out):
        parser.error("--show measures nothing: leave out the benchmarks and --out")
    if options.compare and options.show and len(options.show) > 1:
        parser.error("--compare takes one result: --show one file")
    if options.against and (options.show or options.compare or options.figures or options.out):
        parser.error("--against prints ratios only: leave out --show, --compare, --figures, --out")
    return options


def run_benchmarks(
    names: Sequence[str],
    options: Options,
    *,
    command: str,
    out: Path | None = None,
    log: Callable[[str], None] = lambda line: None,
) -> Report:
    """Measure the named benchmarks; ``command`` is kept in the report, ``log`` gets the progress.

    ``out`` is rewritten after every row, so that an interruption loses nothing.
    """
    device_counts(options)
    report = Report.begin(command)

    def save() -> None:
        if out is not None:
            write_report(out, report)

    for name in names:
        log(f"{name}: {BENCHMARKS[name]}")
        module = importlib.import_module(f"benchmarks.{name.replace('-', '_')}")
        for found in module.measure(options):
            if isinstance(found, Row):
                report.rows.append(found)
                log(f"  {found.identity}: {found.value.median:,.4g} {found.unit}")
            else:
                report.left_out.append(found)
                log(f"  left out: {found}")
            save()
    report.complete = True
    save()
    return report


def _without_files(arguments: Sequence[str]) -> list[str]:
    """The arguments that decide the measurements: a result must not name the user's folders."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    for name in _FILES:
        parser.add_argument(name)
    return parser.parse_known_args(arguments)[1]


def _log(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
