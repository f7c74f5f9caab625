"""``emerald-jax export RUN --to DIR [--dtype float32|bfloat16] [--checkpoint STEP]``."""

from __future__ import annotations

from pathlib import Path

from emerald_jax.commands.words import Parser, tell
from emerald_jax.config import ConfigError


def run(words: list[str]) -> int:
    """Write a run's weights alone."""
    parser = Parser("export")
    parser.add_argument("run", metavar="RUN", help="run directory; it is only read")
    parser.add_argument("--to", required=True, metavar="DIR", help="directory to make")
    parser.add_argument(
        "--dtype",
        choices=("float32", "bfloat16"),
        default="float32",
        help="type of the weights; bfloat16 halves the size (%(default)s)",
    )
    parser.add_argument(
        "--checkpoint", type=int, metavar="STEP", help="its number of updates (the newest sound)"
    )
    options = parser.parse_args(words)
    from emerald_jax.saving.rundir import read_config

    read_config(options.run)
    if Path(options.to).exists():
        raise ConfigError(f"{options.to} exists: choose another --to")
    from emerald_jax.training.weights import export_weights

    content = export_weights(
        options.run, options.to, dtype=options.dtype, checkpoint=options.checkpoint
    )
    size = sum(path.stat().st_size for path in Path(options.to).rglob("*") if path.is_file())
    return tell(
        f"{len(content['leaves'])} arrays of checkpoint {content['step']:,} as "
        f"{content['dtype']}, {size / 1e6:,.1f} MB, in {options.to}\n"
        f"try next: emerald-jax train {read_config(options.run).preset} --init-from {options.to}\n"
    )
