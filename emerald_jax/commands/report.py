"""``emerald-jax report RUN [RUN …] [--out DIR] [--random N]``."""

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
    parser.add_argument(
        "--random",
        type=int,
        default=0,
        metavar="N",
        help="where nothing is published, play N random episodes to compare with; 0 takes the "
        "runs' own before their first update (%(default)s)",
    )
    options = parser.parse_args(words)
    if options.random < 0:
        raise ConfigError(f"--random is {options.random}: it must not be negative")
    out = Path(options.out)
    if out.exists() and not out.is_dir():
        raise ConfigError(f"--out {out} is a file: give a directory")
    from emerald_jax.reports.write import write_report

    text = write_report(options.runs, out, random_episodes=options.random)
    return tell(f"{text}\nwritten to {out / 'report.md'}\n")
