"""Commands on a run's results and weights: ``eval``, ``checkpoints``, ``export``, ``report``."""

from __future__ import annotations

import argparse
import contextlib
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from emerald_jax.commands.shared import Parser, envs_from, given_envs, number, write_out
from emerald_jax.config import Config, ConfigError, EnvsConfig
from emerald_jax.run.directory import read_config
from emerald_jax.run.files import write_json

if TYPE_CHECKING:
    from emerald_jax.run.evaluations import EvalReport
    from emerald_jax.run.run import Point


def run_eval(arguments: list[str]) -> int:
    """Play episodes with a run's agent, or at random, and report the return."""
    parser = Parser("eval")
    parser.add_run(checkpoint=True, seed="the play", nargs="?")
    add = parser.add_argument
    add("--episodes", type=number(1), help="to play (256 in Crafter, 100 in Atari games, else 16)")
    about = "sample actions, as the paper does, or take the most probable ones (%(default)s)"
    add("--mode", choices=("sample", "mode"), default="sample", help=about)
    about = "cut and count an episode after N steps (30,000, or the environment's longer limit)"
    add("--max-steps", type=number(1), metavar="N", help=about)
    add("--video", action="store_true", help="film the first episode")
    add("--json", metavar="FILE", help="also write the result to this file")
    add("--random", metavar="ENV", help="play ENV with uniformly random actions, without a run")
    parser.add_envs("with --random: ")
    options = parser.parse_args(arguments)
    if options.random:
        if options.run or options.checkpoint is not None or options.video:
            raise ConfigError("--random ENV plays without a run: leave out the run and its options")
        return _play_at_random(options)
    if not options.run:
        parser.error("the following arguments are required: RUN")
    return _play_a_run(options)


def _play_a_run(options: argparse.Namespace) -> int:
    if given_envs(options):
        raise ConfigError("a run keeps the settings of its environment: they go with --random")
    config = read_config(options.run)
    exported = (Path(options.run) / "export.json").is_file()
    if exported and options.video:
        raise ConfigError(f"{options.run} is an export, which keeps no evaluations: no --video")
    from emerald_jax.run.evaluations import save_evaluation
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
            max_steps=options.max_steps,
        )
        stack.close()
        saved = None if exported else save_evaluation(options.run, report, video)
    return _finish(report, options, f"written to {saved}\n" if saved else "")


def _play_at_random(options: argparse.Namespace) -> int:
    config = Config(env=options.random, envs=envs_from(options, EnvsConfig()))
    from emerald_jax.training.evaluate import evaluate_random

    episodes = options.episodes or default_episodes(config.env)
    given = {"seed": options.seed, "max_steps": options.max_steps}
    return _finish(evaluate_random(config, episodes, **given), options)


def default_episodes(env: str) -> int:
    """Episodes of the protocol by which ``env`` is scored."""
    return {"crafter": 256, "atari": 100}.get(env.partition(":")[0], 16)


def _finish(report: EvalReport, options: argparse.Namespace, more: str = "") -> int:
    from emerald_jax.run.evaluations import result_of

    if options.json:
        write_json(Path(options.json), result_of(report))
    return write_out(f"{report}\n{more}")


def run_checkpoints(arguments: list[str]) -> int:
    """List a run's checkpoints, each read completely; returns 1 if anything is damaged."""
    parser = Parser("checkpoints")
    parser.add_run()
    options = parser.parse_args(arguments)
    read_config(options.run)
    from emerald_jax.run.run import Run

    points = Run(options.run).checkpoints
    if not points:
        return write_out(f"{options.run} holds no checkpoint yet\n")
    write_out(_table(points))
    return int(any(point.problem or point.lost for point in points))


def _table(points: list[Point]) -> str:
    """One aligned row per checkpoint."""
    rows = [("updates", "env steps", "size", "digest", "replay", "health")]
    for point in points:
        health = f"damaged: {point.problem}" if point.problem else "sound"
        if point.lost:
            health += f", replay chunks lost: {', '.join(point.lost)}"
        size, digest = f"{point.nbytes / 1e6:,.1f} MB", point.digest[:12] or "?"
        steps, replay = "?", "?"
        if point.env_steps is not None:
            steps, replay = f"{point.env_steps:,}", f"{point.rows:,} rows in {point.chunks} chunks"
        rows.append((f"{point.step:,}", steps, size, digest, replay, health))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)][:-1]
    lines = []
    for *cells, health in rows:
        padded = [cell.rjust(width) for cell, width in zip(cells, widths, strict=True)]
        lines.append("  ".join([*padded, health]) + "\n")
    return "".join(lines)


def run_export(arguments: list[str]) -> int:
    """Write only the weights of a run."""
    parser = Parser("export")
    parser.add_run(checkpoint=True)
    add = parser.add_argument
    add("--to", required=True, metavar="DIR", help="directory to create")
    about = "type of the weights; bfloat16 halves the size (%(default)s)"
    add("--dtype", choices=("float32", "bfloat16"), default="float32", help=about)
    options = parser.parse_args(arguments)
    config = read_config(options.run)
    if Path(options.to).exists():
        raise ConfigError(f"{options.to} exists: choose another --to")
    from emerald_jax.run.weights import export_weights

    chosen = {"dtype": options.dtype, "checkpoint": options.checkpoint}
    content = export_weights(options.run, options.to, **chosen)
    size = sum(path.stat().st_size for path in Path(options.to).rglob("*") if path.is_file())
    return write_out(
        f"{len(content['leaves'])} arrays of checkpoint {content['step']:,} as "
        f"{content['dtype']}, {size / 1e6:,.1f} MB, in {options.to}\n"
        f"try next: emerald-jax train {config.preset} --init-from {options.to}\n"
    )


def run_report(arguments: list[str]) -> int:
    """Compare runs with the published numbers, one table and figure per benchmark."""
    parser = Parser("report")
    add = parser.add_argument
    add("runs", metavar="RUN", nargs="+", help="run directories")
    add("--out", default="report", metavar="DIR", help="directory of report.md (%(default)s)")
    about = "without published numbers, compare with N random episodes; 0: those of the prefill"
    add("--random", type=number(0), default=0, metavar="N", help=about)
    options = parser.parse_args(arguments)
    out = Path(options.out)
    if out.exists() and not out.is_dir():
        raise ConfigError(f"--out {out} is a file: give a directory")
    from emerald_jax.reports.write import write_report

    text = write_report(options.runs, out, random_episodes=options.random)
    return write_out(f"{text}\nwritten to {out / 'report.md'}\n")
