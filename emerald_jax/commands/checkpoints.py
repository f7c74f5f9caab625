"""``emerald-jax checkpoints RUN``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from emerald_jax.commands.words import Parser, tell

if TYPE_CHECKING:
    from emerald_jax.saving.snapshots import PointInfo


def run(words: list[str]) -> int:
    """List a run's checkpoints, each read whole; returns 1 if anything is damaged."""
    parser = Parser("checkpoints")
    parser.add_argument("run", metavar="RUN", help="run directory; it is only read")
    options = parser.parse_args(words)
    from emerald_jax.saving.rundir import read_config

    read_config(options.run)
    from emerald_jax.saving.snapshots import inspect_run

    points = inspect_run(options.run)
    if not points:
        return tell(f"{options.run} holds no checkpoint yet\n")
    tell(_table(points))
    return int(any(point.checkpoint.problem or point.lost for point in points))


def _table(points: list[PointInfo]) -> str:
    """One aligned row per checkpoint."""
    rows = [("updates", "env steps", "size", "digest", "replay", "health")]
    for point in points:
        info = point.checkpoint
        known = point.env_steps is not None
        health = f"damaged: {info.problem}" if info.problem else "sound"
        if point.lost:
            health += f", replay chunks lost: {', '.join(point.lost)}"
        rows.append(
            (
                f"{info.step:,}",
                f"{point.env_steps:,}" if known else "?",
                f"{info.nbytes / 1e6:,.1f} MB",
                info.digest[:12] or "?",
                f"{point.rows:,} rows in {point.chunks} chunks" if known else "?",
                health,
            )
        )
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]) - 1)]
    lines = []
    for *cells, health in rows:
        padded = [cell.rjust(width) for cell, width in zip(cells, widths, strict=True)]
        lines.append("  ".join([*padded, health]) + "\n")
    return "".join(lines)
