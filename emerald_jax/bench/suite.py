"""The benchmarks by name, and the one way to run them: rows are kept as they come."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from pathlib import Path

from emerald_jax.bench.options import Options, device_counts
from emerald_jax.bench.report import Report, Row, write_report

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
        module = importlib.import_module(f"emerald_jax.bench.{BENCHMARKS[name][0]}")
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
