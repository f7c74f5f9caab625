"""``emerald-jax play RUN [--port N] [--env-beside]``."""

from __future__ import annotations

import asyncio
import signal
import sys
from typing import Any

from emerald_jax.commands.words import Parser, complain, tell
from emerald_jax.config import ConfigError


def run(words: list[str]) -> int:
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
    from emerald_jax.saving.rundir import read_config

    read_config(options.run)
    from emerald_jax.play.port import take_port

    with take_port(options.port) as listening:
        from emerald_jax.play.server import PlayServer
        from emerald_jax.play.session import DreamSession
        from emerald_jax.trained.loaded import load
        from emerald_jax.trained.recordings import Recordings

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
