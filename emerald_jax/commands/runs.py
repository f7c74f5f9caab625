"""Commands on a run: eval, checkpoints, export and report; dream, inspect and play."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import dataclasses
import signal
import statistics
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from emerald_jax.commands import (
    Parser,
    aligned,
    envs_from,
    given_envs,
    number,
    write_error,
    write_out,
)
from emerald_jax.config import Config, ConfigError, EnvsConfig
from emerald_jax.run.directory import read_config, write_json

if TYPE_CHECKING:
    from emerald_jax.run import Point
    from emerald_jax.run.evaluations import EvalReport

#: As in ``look.film``, which is too heavy to import before the arguments have been checked.
_ENDINGS = (".mp4", ".gif", ".png")


def run_eval(arguments: list[str]) -> int:
    """Play episodes with the agents of runs, or at random, and report the return."""
    parser = Parser("eval")
    parser.add_run(checkpoint=True, seed="the play", nargs="*")
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
    return _play_runs(options)


def _play_runs(options: argparse.Namespace) -> int:
    """Play with every run, such as the seeds of a group; several get a line for their mean."""
    if given_envs(options):
        raise ConfigError("a run keeps the settings of its environment: they go with --random")
    if options.json and len(options.run) > 1:
        raise ConfigError("--json holds one result: give one run")
    for run in options.run:
        read_config(run)
        if options.video and _is_export(run):
            raise ConfigError(f"{run} is an export, which keeps no evaluations: no --video")
    scores = [_play_a_run(run, options) for run in options.run]
    if len(scores) > 1:
        mean, error = statistics.fmean(scores), statistics.stdev(scores) / len(scores) ** 0.5
        write_out(f"{len(scores)} runs: return {mean:.3f} ± {error:.3f} (standard error of runs)\n")
    return 0


def _is_export(run: str) -> bool:
    return (Path(run) / "export.json").is_file()


def _play_a_run(run: str, options: argparse.Namespace) -> float:
    """Play with one run, store the result in its directory, print it, and return the score."""
    config = read_config(run)
    from emerald_jax.run.evaluations import save_evaluation
    from emerald_jax.training.evaluate import evaluate_run

    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        video, watch = None, None
        if options.video:
            from emerald_jax.look.film import EpisodeFilm

            video = Path(folder) / "episode.mp4"
            watch = stack.enter_context(EpisodeFilm(video))
        report = evaluate_run(
            Path(run),
            options.episodes or default_episodes(config.env),
            mode=options.mode,
            seed=options.seed,
            checkpoint=options.checkpoint,
            watch=watch,
            max_steps=options.max_steps,
        )
        stack.close()
        saved = None if _is_export(run) else save_evaluation(run, report, video)
    _finish(report, options, f"written to {saved}\n" if saved else "")
    return report.score


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
    from emerald_jax.run import Run

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
    return aligned(rows)


def run_export(arguments: list[str]) -> int:
    """Write only the weights of a run, or a program that acts."""
    parser = Parser("export")
    parser.add_run(checkpoint=True)
    add = parser.add_argument
    add("--to", required=True, metavar="PATH", help="directory or, of a program, file to create")
    about = "weights, or the acting step as a program that needs JAX alone (%(default)s)"
    add("--as", dest="kind", choices=("weights", "program"), default="weights", help=about)
    about = "type of the weights; bfloat16 halves the size (float32)"
    add("--dtype", choices=("float32", "bfloat16"), help=about)
    add("--batch", type=number(1), metavar="B", help="environments that a program acts in (1)")
    options = parser.parse_args(arguments)
    config = read_config(options.run)
    if Path(options.to).exists():
        raise ConfigError(f"{options.to} exists: choose another --to")
    if options.kind == "program":
        if options.dtype:
            raise ConfigError("a program computes in float32: --dtype is for --as weights")
        return _export_program(options)
    if options.batch:
        raise ConfigError("weights have no batch: --batch is for --as program")
    from emerald_jax.run.weights import export_weights

    chosen = {"dtype": options.dtype or "float32", "checkpoint": options.checkpoint}
    content = export_weights(options.run, options.to, **chosen)
    size = sum(path.stat().st_size for path in Path(options.to).rglob("*") if path.is_file())
    return write_out(
        f"{len(content['leaves'])} arrays of checkpoint {content['step']:,} as "
        f"{content['dtype']}, {size / 1e6:,.1f} MB, in {options.to}\n"
        f"try next: emerald-jax train {config.preset} --init-from {options.to}\n"
    )


def _export_program(options: argparse.Namespace) -> int:
    from emerald_jax.agent.program import PLATFORMS, export_program
    from emerald_jax.run.directory import write_atomic, writing_in
    from emerald_jax.run.weights import load

    target, batch = Path(options.to).absolute(), options.batch or 1
    agent = load(options.run, options.checkpoint)
    program = export_program(agent, batch=batch)
    with writing_in(target.parent):
        target.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(target, program)
    return write_out(
        f"the acting step of {batch} environment(s) after {agent.updates:,} updates for "
        f"{', '.join(PLATFORMS)}, {len(program) / 1e6:,.1f} MB, in {options.to}\n"
        "how to use it without this package: docs/library.md\n"
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


def run_dream(arguments: list[str]) -> int:
    """Film the agent's dream next to reality."""
    options = _parse(arguments)
    read_config(options.run)
    from emerald_jax.look.film import FilmPlan, film_run, read_actions, save_film
    from emerald_jax.run.weights import load

    agent = load(options.run, options.checkpoint)
    actions = options.actions or ("recorded" if options.source == "real" else "policy")
    if actions not in ("policy", "random", "recorded"):
        actions = read_actions(actions, agent.spec)[: options.horizon]
    if options.steps is not None and options.steps > agent.config.tokens:
        raise ConfigError(f"--steps is {options.steps}: a latent has {agent.config.tokens} tokens")
    given = {field.name: getattr(options, field.name) for field in dataclasses.fields(FilmPlan)}
    film = film_run(agent, options.run, FilmPlan(**given | {"actions": actions}))
    with _writing(options.out):
        path = save_film(film, options.out, fps=options.fps, tinted=not options.no_tint)
    dreamt = len(film.real) - film.context
    return write_out(f"{path}: {film.context} real frames, then {dreamt} dreamt frames\n")


def _parse(arguments: list[str]) -> argparse.Namespace:
    parser = Parser("dream")
    parser.add_run(checkpoint=True, seed="the dream")
    add = parser.add_argument
    add("--out", required=True, metavar="FILE", help="file to write: .mp4, .gif or .png")
    about = "start from recorded frames of the run (default), or from a new episode"
    add("--from", dest="source", choices=("real", "reset"), help=about)
    about = (
        "actions of the dream: the agent's, random, the recorded ones (only --from real), or from "
        "a file with one per line or a JSON list (default: recorded, or policy from a reset)"
    )
    add("--actions", metavar="policy|random|recorded|FILE", help=about)
    length = number(1, 10_000)
    add("--horizon", type=length, default=50, help="imagined steps (%(default)s)")
    add("--context", type=length, default=4, help="real frames before the dream (%(default)s)")
    add("--steps", type=number(0), help="decoding steps S; by default the run's own")
    add("--temperature", type=float, default=1.0, help="of the tokens (%(default)s)")
    add("--fps", type=float, default=8.0, help="steps per second in a film (%(default)s)")
    add("--no-tint", action="store_true", help="do not tint uncertain positions")
    options = parser.parse_args(arguments)
    options.source = options.source or ("reset" if _is_export(options.run) else "real")
    if not str(options.out).lower().endswith(_ENDINGS):
        raise ConfigError(f"--out {options.out} must end in {', '.join(_ENDINGS)}")
    if not options.temperature > 0 or not 0 < options.fps <= 100:
        raise ConfigError("--temperature must be above 0, --fps above 0 and at most 100")
    if options.actions == "recorded" and options.source == "reset":
        raise ConfigError("--actions recorded needs --from real: a new episode has no recording")
    known, actions = (None, "policy", "random", "recorded"), options.actions
    if actions not in known and not Path(actions).is_file():
        raise ConfigError(f"--actions takes policy, random, recorded or a file, got {actions!r}")
    return options


@contextlib.contextmanager
def _writing(path: str | Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ConfigError(f"{path} cannot be written: {error.strerror or error}") from error


def run_inspect(arguments: list[str]) -> int:
    """Write the report of a run."""
    parser = Parser("inspect")
    parser.add_run(checkpoint=True, seed="the samples shown")
    about = "file to write (RUN/report.html; of an export, report.html)"
    parser.add_argument("--out", metavar="FILE.html", help=about)
    options = parser.parse_args(arguments)
    folder = Path() if _is_export(options.run) else Path(options.run)
    out = Path(options.out or folder / "report.html")
    if out.suffix.lower() not in (".html", ".htm"):
        raise ConfigError(f"--out {out} must end in .html")
    read_config(options.run)
    from emerald_jax.look.inspect import inspect_run

    with _writing(out):
        inspect_run(options.run, out, checkpoint=options.checkpoint, seed=options.seed)
    return write_out(f"{out} ({out.stat().st_size / 1e6:.1f} MB) opens in a browser\n")


def run_play(arguments: list[str]) -> int:
    """Serve the page until Ctrl-C."""
    parser = Parser("play")
    parser.add_run(checkpoint=True, seed="the dream")
    add = parser.add_argument
    port = number(0, 65535)
    add("--port", type=port, default=8050, help="on 127.0.0.1; 0 uses a free one (%(default)s)")
    add("--env-beside", action="store_true", help="also step the real environment")
    fps = number(1, 60, float)
    add("--fps", type=fps, default=10.0, help="initial frames per second (%(default)s)")
    options = parser.parse_args(arguments)
    read_config(options.run)
    from emerald_jax.look.play_server import take_port

    with take_port(options.port) as listening:
        from emerald_jax.look.play_server import PlayServer
        from emerald_jax.look.play_session import DreamSession
        from emerald_jax.run.recordings import Recordings
        from emerald_jax.run.weights import load

        agent = load(options.run, options.checkpoint)
        session = DreamSession(agent, Recordings(options.run), seed=options.seed)
        title = "/".join(Path(options.run).parts[-2:])  # a whole path is wider than a telephone
        shown = {"title": title, "beside": options.env_beside, "fps": options.fps}
        asyncio.run(_serve(PlayServer(session, listening=listening, say=write_error, **shown)))
    return write_out("stopped\n")


async def _serve(server: Any) -> None:
    """Serve until SIGINT or SIGTERM."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    async with server:
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, stop.set)
        write_out(f"http://127.0.0.1:{server.port} is the dream; Ctrl-C stops it\n")
        sys.stdout.flush()
        await stop.wait()
