"""``emerald-jax bench [NAME ...] [--quick] [--out FILE.json] [--compare OLD.json]``."""

from __future__ import annotations

import shlex
import sys
from argparse import Namespace
from pathlib import Path
from typing import TYPE_CHECKING

from emerald_jax.commands.words import Parser, tell
from emerald_jax.config import ConfigError

if TYPE_CHECKING:
    from emerald_jax.bench.report import Report

_EPILOG = (
    "Exit code 1: --compare found something slower beyond the measured noise. docs/speed.md says "
    "how to read the numbers."
)


def run(words: list[str]) -> int:
    """Measure, or read results back; print tables."""
    options = _parse(words)
    out, folder = options.out, options.figures
    if folder is not None and not folder.is_dir():
        raise ConfigError(f"--figures {folder}: there is no such folder")
    from emerald_jax.bench.report import check_writable, read_report

    old = read_report(options.compare) if options.compare else None
    if options.show:
        reports = [read_report(path) for path in options.show]
    else:
        if out is not None:
            check_writable(out)
        reports = [_measure(options, words)]
    from emerald_jax.bench.tables import comparison_table, report_tables

    tell(report_tables(reports, markdown=options.markdown))
    if folder is not None:
        from emerald_jax.bench.figures import draw_figures

        for path in draw_figures(reports, folder):
            tell(f"{path}\n")
    if old is None:
        return 0
    from emerald_jax.bench.compare import compare_reports

    comparison = compare_reports(reports[0], old)
    tell("\n" + comparison_table(comparison, markdown=options.markdown))
    return 1 if comparison.regressions else 0


def _parse(words: list[str]) -> Namespace:
    from emerald_jax.bench.suite import BENCHMARKS

    parser = Parser("bench")
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
    from emerald_jax.bench.options import Options

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
    from emerald_jax.training.program import prepare_jax

    prepare_jax()
    from emerald_jax.bench.suite import BENCHMARKS, run_benchmarks

    return run_benchmarks(
        options.names or tuple(BENCHMARKS),
        chosen,
        command=shlex.join(["emerald-jax", "bench", *_without_files(words)]),
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
