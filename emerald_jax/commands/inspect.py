"""``emerald-jax inspect RUN [--out report.html]``."""

from __future__ import annotations

from pathlib import Path

from emerald_jax.commands.words import Parser, tell
from emerald_jax.config import ConfigError


def run(words: list[str]) -> int:
    """Write the report of a run."""
    parser = Parser("inspect")
    add = parser.add_argument
    add("run", metavar="RUN", help="run directory")
    add("--out", metavar="FILE.html", help="what to write (RUN/report.html)")
    add("--checkpoint", type=int, metavar="STEP", help="which checkpoint; the newest sound one")
    add("--seed", type=int, default=0, help="seed of what is looked at (%(default)s)")
    options = parser.parse_args(words)
    out = Path(options.out or Path(options.run) / "report.html")
    if out.suffix.lower() not in (".html", ".htm"):
        raise ConfigError(f"--out {out} must end in .html")
    if options.seed < 0:
        raise ConfigError(f"--seed is {options.seed}: it must be 0 or more")
    from emerald_jax.saving.rundir import read_config

    read_config(options.run)
    from emerald_jax.trained.inspection import inspect_run

    try:
        inspect_run(options.run, out, checkpoint=options.checkpoint, seed=options.seed)
    except OSError as error:
        raise ConfigError(f"{out} cannot be written: {error.strerror or error}") from error
    return tell(f"{out} ({out.stat().st_size / 1e6:.1f} MB) opens in a browser\n")
