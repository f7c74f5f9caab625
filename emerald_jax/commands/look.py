"""Commands that show a trained agent: ``dream``, ``inspect``, ``play``."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import dataclasses
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from emerald_jax.commands.shared import Parser, number, write_error, write_out
from emerald_jax.config import ConfigError
from emerald_jax.run.directory import read_config

#: As in ``look.film``, which is too heavy to import before the arguments have been checked.
_ENDINGS = (".mp4", ".gif", ".png")


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
    about = "start from recorded frames of the run, or from a new episode (%(default)s)"
    add("--from", dest="source", choices=("real", "reset"), default="real", help=about)
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
    parser.add_argument("--out", metavar="FILE.html", help="file to write (RUN/report.html)")
    options = parser.parse_args(arguments)
    out = Path(options.out or Path(options.run) / "report.html")
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
        shown = {"title": options.run, "beside": options.env_beside, "fps": options.fps}
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
