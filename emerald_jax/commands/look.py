"""``emerald-jax dream RUN [--from real|reset] [--actions policy|random|recorded|FILE] --out F``.

``emerald-jax inspect RUN [--out report.html]``.

``emerald-jax play RUN [--port N] [--env-beside]``.
"""

from __future__ import annotations

import argparse
import asyncio
import signal
import sys
from pathlib import Path
from typing import Any

from emerald_jax.commands.words import Parser, complain, tell
from emerald_jax.config import ConfigError

#: As ``viz.dream.ENDINGS``, which is too heavy to import before the words were read.
_ENDINGS = (".mp4", ".gif", ".png")
_MAX_HORIZON = 10_000


def run_dream(words: list[str]) -> int:
    """Film the agent's dream beside reality."""
    options = _parse(words)
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
    return tell(f"{path}: {film.context} real frames, then {dreamt} dreamt ones\n")


def _parse(words: list[str]) -> argparse.Namespace:
    parser = Parser("dream")
    add = parser.add_argument
    add("run", metavar="RUN", help="run directory")
    add("--out", required=True, metavar="FILE", help="what to write: .mp4, .gif or .png")
    add(
        "--from",
        dest="source",
        choices=("real", "reset"),
        default="real",
        help="begin with recorded frames of the run, or with a fresh episode (%(default)s)",
    )
    add(
        "--actions",
        metavar="policy|random|recorded|FILE",
        help="who steers: the agent, chance, the recording (--from real only), or a file with one "
        "action a line or a JSON list (recorded from real frames, policy from a reset)",
    )
    add("--horizon", type=int, default=50, help="imagined steps (%(default)s)")
    add("--context", type=int, default=4, help="real frames seen before the dream (%(default)s)")
    add("--seed", type=int, default=0, help="seed of the dream (%(default)s)")
    add("--steps", type=int, help="decoding steps S; the run's own when not given")
    add("--temperature", type=float, default=1.0, help="of the tokens (%(default)s)")
    add("--fps", type=float, default=8.0, help="steps a second in a film (%(default)s)")
    add("--no-tint", action="store_true", help="do not tint uncertain places")
    add("--checkpoint", type=int, metavar="STEP", help="which checkpoint; the newest sound one")
    options = parser.parse_args(words)
    if not str(options.out).lower().endswith(_ENDINGS):
        raise ConfigError(f"--out {options.out} must end in {', '.join(_ENDINGS)}")
    if not 1 <= options.horizon <= _MAX_HORIZON or not 1 <= options.context <= _MAX_HORIZON:
        raise ConfigError(f"--horizon and --context must lie in 1 … {_MAX_HORIZON}")
    if not options.temperature > 0 or not 0 < options.fps <= 100:
        raise ConfigError("--temperature must be above 0, --fps above 0 and at most 100")
    if options.seed < 0 or (options.steps is not None and options.steps < 0):
        raise ConfigError("--seed and --steps must be 0 or more")
    if options.actions == "recorded" and options.source == "reset":
        raise ConfigError("--actions recorded needs --from real: a fresh episode has no recording")
    known = (None, "policy", "random", "recorded")
    if options.actions not in known and not Path(options.actions).is_file():
        raise ConfigError(
            f"--actions takes policy, random, recorded or a file; {options.actions!r} is none"
        )
    return options


def run_inspect(words: list[str]) -> int:
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
    from emerald_jax.run.directory import read_config

    read_config(options.run)
    from emerald_jax.look.inspect import inspect_run

    try:
        inspect_run(options.run, out, checkpoint=options.checkpoint, seed=options.seed)
    except OSError as error:
        raise ConfigError(f"{out} cannot be written: {error.strerror or error}") from error
    return tell(f"{out} ({out.stat().st_size / 1e6:.1f} MB) opens in a browser\n")


def run_play(words: list[str]) -> int:
    """Serve the page until Ctrl-C."""
    parser = Parser("play")
    add = parser.add_argument
    add("run", metavar="RUN", help="run directory")
    add("--port", type=int, default=8050, help="on 127.0.0.1; 0 takes a free one (%(default)s)")
    add("--env-beside", action="store_true", help="step the real environment beside the dream")
    add("--fps", type=float, default=10.0, help="frames a second to begin with (%(default)s)")
    add("--seed", type=int, default=0, help="seed of the dream (%(default)s)")
    add("--checkpoint", type=int, metavar="STEP", help="which checkpoint; the newest sound one")
    options = parser.parse_args(words)
    if not 0 <= options.port <= 65535:
        raise ConfigError(f"--port is {options.port}: it must lie in 0 … 65535")
    if not 1 <= options.fps <= 60 or options.seed < 0:
        raise ConfigError("--fps must lie in 1 … 60, --seed be 0 or more")
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
            say=complain,
        )
        asyncio.run(_serve(server))
    return tell("stopped\n")


async def _serve(server: Any) -> None:
    """Until SIGINT or SIGTERM."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    async with server:
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, stop.set)
        tell(f"http://127.0.0.1:{server.port} is the dream; Ctrl-C stops it\n")
        sys.stdout.flush()
        await stop.wait()
