"""Commands that show a trained agent: ``dream``, ``inspect``, ``play``."""

from __future__ import annotations

import argparse
import asyncio
import signal
import sys
from pathlib import Path
from typing import Any

from emerald_jax.commands.shared import Parser, number, write_error, write_out
from emerald_jax.config import ConfigError

#: As in ``look.film``, which is too heavy to import before the arguments have been checked.
_ENDINGS = (".mp4", ".gif", ".png")
_MAX_HORIZON = 10_000


def run_dream(arguments: list[str]) -> int:
    """Film the agent's dream next to reality."""
    options = _parse(arguments)
    from emerald_jax.run.directory import read_config

    read_config(options.run)
    from emerald_jax.look.film import FilmPlan, film_run, read_actions
    from emerald_jax.run.weights import load

    agent = load(options.run, options.checkpoint)
    actions = options.actions or ("recorded" if options.source == "real" else "policy")
    if actions not in ("policy", "random", "recorded"):
        actions = read_actions(actions, agent.spec)[: options.horizon]
    if options.steps is not None and options.steps > agent.config.tokens:
        raise ConfigError(f"--steps is {options.steps}: a latent has {agent.config.tokens} tokens")
    plan = FilmPlan(
        source=options.source,
        actions=actions,
        horizon=options.horizon,
        context=options.context,
        seed=options.seed,
        steps=options.steps,
        temperature=options.temperature,
    )
    film = film_run(agent, options.run, plan)
    from emerald_jax.look.film import save_film

    try:
        path = save_film(film, options.out, fps=options.fps, tinted=not options.no_tint)
    except OSError as error:
        raise ConfigError(f"{options.out} cannot be written: {error.strerror or error}") from error
    dreamt = len(film.real) - film.context
    return write_out(f"{path}: {film.context} real frames, then {dreamt} dreamt frames\n")


def _parse(arguments: list[str]) -> argparse.Namespace:
    parser = Parser("dream")
    parser.add_run()
    add = parser.add_argument
    add("--out", required=True, metavar="FILE", help="file to write: .mp4, .gif or .png")
    add(
        "--from",
        dest="source",
        choices=("real", "reset"),
        default="real",
        help="start from recorded frames of the run, or from a new episode (%(default)s)",
    )
    add(
        "--actions",
        metavar="policy|random|recorded|FILE",
        help="actions of the dream: the agent's, random, the recorded ones (only --from real), or "
        "from a file with one action per line or a JSON list (default: recorded from real frames, "
        "policy from a reset)",
    )
    add("--horizon", type=int, default=50, help="imagined steps (%(default)s)")
    add("--context", type=int, default=4, help="real frames before the dream (%(default)s)")
    parser.add_seed("the dream")
    add("--steps", type=number(0), help="decoding steps S; by default the run's own")
    add("--temperature", type=float, default=1.0, help="of the tokens (%(default)s)")
    add("--fps", type=float, default=8.0, help="steps per second in a film (%(default)s)")
    add("--no-tint", action="store_true", help="do not tint uncertain positions")
    parser.add_checkpoint()
    options = parser.parse_args(arguments)
    if not str(options.out).lower().endswith(_ENDINGS):
        raise ConfigError(f"--out {options.out} must end in {', '.join(_ENDINGS)}")
    if not 1 <= options.horizon <= _MAX_HORIZON or not 1 <= options.context <= _MAX_HORIZON:
        raise ConfigError(f"--horizon and --context must lie in 1 … {_MAX_HORIZON}")
    if not options.temperature > 0 or not 0 < options.fps <= 100:
        raise ConfigError("--temperature must be above 0, --fps above 0 and at most 100")
    if options.actions == "recorded" and options.source == "reset":
        raise ConfigError("--actions recorded needs --from real: a new episode has no recording")
    known = (None, "policy", "random", "recorded")
    if options.actions not in known and not Path(options.actions).is_file():
        raise ConfigError(
            f"--actions takes policy, random, recorded or a file; there is no {options.actions!r}"
        )
    return options


def run_inspect(arguments: list[str]) -> int:
    """Write the report of a run."""
    parser = Parser("inspect")
    parser.add_run()
    parser.add_argument("--out", metavar="FILE.html", help="file to write (RUN/report.html)")
    parser.add_checkpoint()
    parser.add_seed("the samples shown")
    options = parser.parse_args(arguments)
    out = Path(options.out or Path(options.run) / "report.html")
    if out.suffix.lower() not in (".html", ".htm"):
        raise ConfigError(f"--out {out} must end in .html")
    from emerald_jax.run.directory import read_config

    read_config(options.run)
    from emerald_jax.look.inspect import inspect_run

    try:
        inspect_run(options.run, out, checkpoint=options.checkpoint, seed=options.seed)
    except OSError as error:
        raise ConfigError(f"{out} cannot be written: {error.strerror or error}") from error
    return write_out(f"{out} ({out.stat().st_size / 1e6:.1f} MB) opens in a browser\n")


def run_play(arguments: list[str]) -> int:
    """Serve the page until Ctrl-C."""
    parser = Parser("play")
    parser.add_run()
    add = parser.add_argument
    port = number(0, 65535)
    add("--port", type=port, default=8050, help="on 127.0.0.1; 0 uses a free one (%(default)s)")
    add("--env-beside", action="store_true", help="also step the real environment")
    add("--fps", type=float, default=10.0, help="initial frames per second (%(default)s)")
    parser.add_seed("the dream")
    parser.add_checkpoint()
    options = parser.parse_args(arguments)
    if not 1 <= options.fps <= 60:
        raise ConfigError("--fps must lie in 1 … 60")
    from emerald_jax.run.directory import read_config

    read_config(options.run)
    from emerald_jax.look.play_server import take_port

    with take_port(options.port) as listening:
        from emerald_jax.look.play_server import PlayServer
        from emerald_jax.look.play_session import DreamSession
        from emerald_jax.run.recordings import Recordings
        from emerald_jax.run.weights import load

        agent = load(options.run, options.checkpoint)
        session = DreamSession(agent, Recordings(options.run), seed=options.seed)
        server = PlayServer(
            session,
            listening=listening,
            title=options.run,
            beside=options.env_beside,
            fps=options.fps,
            say=write_error,
        )
        asyncio.run(_serve(server))
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
