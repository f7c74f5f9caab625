"""``emerald-jax report RUN [RUN …] [--out DIR]``."""

from __future__ import annotations

from pathlib import Path

from emerald_jax.commands.words import Parser, tell
from emerald_jax.config import ConfigError


def run(words: list[str]) -> int:
    """Compare runs with the published numbers, one table and figure per benchmark."""
    parser = Parser("report")
    parser.add_argument("runs", metavar="RUN", nargs="+", help="run directories")
    parser.add_argument(
        "--out", default="report", metavar="DIR", help="where report.md goes (%(default)s)"
    )
    options = parser.parse_args(words)
    out = Path(options.out)
    if out.exists() and not out.is_dir():
        raise ConfigError(f"--out {out} is a file: give a directory")
    from emerald_jax.reports.write import write_report

    text = write_report(options.runs, out)
    return tell(f"{text}\nwritten to {out / 'report.md'}\n")
