"""``emerald-jax eval RUN [--episodes N] [--mode sample|mode] [--seed S]``."""

from __future__ import annotations

from pathlib import Path

from emerald_jax.commands.words import Parser, tell
from emerald_jax.config import ConfigError


def run(words: list[str]) -> int:
    """Reload a run, play, and tell how it went."""
    parser = Parser("eval")
    parser.add_argument("run", metavar="RUN", help="run directory")
    parser.add_argument("--episodes", type=int, default=16, help="episodes to play (%(default)s)")
    parser.add_argument(
        "--mode",
        choices=("sample", "mode"),
        default="sample",
        help="sample actions from the policy, as the paper does, or take the likeliest one "
        "(%(default)s)",
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the play (%(default)s)")
    options = parser.parse_args(words)
    if options.episodes < 1:
        raise ConfigError(f"--episodes is {options.episodes}: it must be at least 1")
    from emerald_jax.training.rundir import read_config

    read_config(options.run)
    from emerald_jax.training.evaluate import evaluate_run

    report = evaluate_run(Path(options.run), options.episodes, mode=options.mode, seed=options.seed)
    return tell(f"{report}\n")
