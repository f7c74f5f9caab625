"""``emerald-jax eval RUN [--episodes N] [--checkpoint STEP] [--mode sample|mode] [--video] …``.

``emerald-jax checkpoints RUN``.

``emerald-jax export RUN --to DIR [--dtype float32|bfloat16] [--checkpoint STEP]``.

``emerald-jax report RUN [RUN …] [--out DIR] [--random N]``.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from emerald_jax.commands.tools import add_env_words, envs_of, given_env_words
from emerald_jax.commands.words import Parser, tell
from emerald_jax.config import Config, ConfigError, EnvsConfig

if TYPE_CHECKING:
    from emerald_jax.run.snapshots import PointInfo


#: Episodes that the benchmarks' protocols ask for, by family of environments, and of others.
EPISODES, OTHERS = {"crafter": 256, "atari": 100}, 16


def run_eval(words: list[str]) -> int:
    """Reload a run, or play at random, and tell how it went."""
    parser = _parser()
    options = parser.parse_args(words)
    if options.episodes is not None and options.episodes < 1:
        raise ConfigError(f"--episodes is {options.episodes}: it must be at least 1")
    if options.max_steps is not None and options.max_steps < 1:
        raise ConfigError(f"--max-steps is {options.max_steps}: it must be at least 1")
    if options.random:
        if options.run or options.checkpoint is not None or options.video:
            raise ConfigError("--random ENV plays without a run: leave the run's options away")
        return _play_at_random(options)
    if not options.run:
        parser.error("the following arguments are required: RUN")
    return _play_a_run(options)


def _parser() -> Parser:
    parser = Parser("eval")
    parser.add_argument("run", metavar="RUN", nargs="?", help="run directory")
    parser.add_argument(
        "--episodes",
        type=int,
        help="episodes to play (256 in Crafter, 100 in an Atari game, else 16)",
    )
    parser.add_argument("--checkpoint", type=int, metavar="STEP", help="its number (the newest)")
    parser.add_argument(
        "--mode",
        choices=("sample", "mode"),
        default="sample",
        help="sample actions from the policy, as the paper does, or take the likeliest one "
        "(%(default)s)",
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the play (%(default)s)")
    parser.add_argument(
        "--max-steps",
        type=int,
        metavar="N",
        help="cut an episode after N steps, and count it (30,000, or more where the environment's "
        "own time limit is longer)",
    )
    parser.add_argument("--video", action="store_true", help="film the first episode")
    parser.add_argument("--json", metavar="FILE", help="also write the result here")
    parser.add_argument(
        "--random", metavar="ENV", help="play ENV with uniformly random actions, without a run"
    )
    add_env_words(parser, "with --random: ")
    return parser


def _play_a_run(options: argparse.Namespace) -> int:
    if given_env_words(options):
        raise ConfigError("a run keeps the settings of its environment: they go with --random")
    from emerald_jax.run.directory import read_config

    config = read_config(options.run)
    exported = (Path(options.run) / "export.json").is_file()
    if exported and options.video:
        raise ConfigError(f"{options.run} is an export, which keeps no evaluations: no --video")
    from emerald_jax.run.evaluations import result_of, save_evaluation
    from emerald_jax.training.evaluate import evaluate_run

    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        video, watch = None, None
        if options.video:
            from emerald_jax.look.film import EpisodeFilm

            video = Path(folder) / "episode.mp4"
            watch = stack.enter_context(EpisodeFilm(video))
        report = evaluate_run(
            Path(options.run),
            options.episodes or default_episodes(config.env),
            mode=options.mode,
            seed=options.seed,
            checkpoint=options.checkpoint,
            watch=watch,
            **_limit(options),
        )
        stack.close()
        saved = None if exported else save_evaluation(options.run, report, video)
    _write_json(options.json, result_of(report))
    return tell(f"{report}\n" + (f"written to {saved}\n" if saved else ""))


def _play_at_random(options: argparse.Namespace) -> int:
    config = Config(env=options.random, envs=envs_of(options, EnvsConfig()))
    from emerald_jax.run.evaluations import result_of
    from emerald_jax.training.evaluate import evaluate_random

    episodes = options.episodes or default_episodes(config.env)
    report = evaluate_random(config, episodes, seed=options.seed, **_limit(options))
    _write_json(options.json, result_of(report))
    return tell(f"{report}\n")


def _limit(options: argparse.Namespace) -> dict[str, int]:
    return {} if options.max_steps is None else {"max_steps": options.max_steps}


def default_episodes(env: str) -> int:
    """Episodes of the protocol that ``env`` is scored by."""
    return EPISODES.get(env.partition(":")[0], OTHERS)


def _write_json(path: str | None, result: dict) -> None:
    if path:
        from emerald_jax.run.files import write_atomic

        write_atomic(Path(path), (json.dumps(result, indent=2) + "\n").encode())


def run_checkpoints(words: list[str]) -> int:
    """List a run's checkpoints, each read whole; returns 1 if anything is damaged."""
    parser = Parser("checkpoints")
    parser.add_argument("run", metavar="RUN", help="run directory; it is only read")
    options = parser.parse_args(words)
    from emerald_jax.run.directory import read_config

    read_config(options.run)
    from emerald_jax.run.snapshots import inspect_run

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


def run_export(words: list[str]) -> int:
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
    from emerald_jax.run.directory import read_config

    read_config(options.run)
    if Path(options.to).exists():
        raise ConfigError(f"{options.to} exists: choose another --to")
    from emerald_jax.run.weights import export_weights

    content = export_weights(
        options.run, options.to, dtype=options.dtype, checkpoint=options.checkpoint
    )
    size = sum(path.stat().st_size for path in Path(options.to).rglob("*") if path.is_file())
    return tell(
        f"{len(content['leaves'])} arrays of checkpoint {content['step']:,} as "
        f"{content['dtype']}, {size / 1e6:,.1f} MB, in {options.to}\n"
        f"try next: emerald-jax train {read_config(options.run).preset} --init-from {options.to}\n"
    )


def run_report(words: list[str]) -> int:
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
