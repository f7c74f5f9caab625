"""The page of ``emerald-jax play``: one page, one socket, one player, on the loopback only.

The page loads nothing from outside. Frames are sent as binary messages (a length, a JSON header,
raw RGB); the player's requests arrive as JSON. Requests that name another host, or that come from
the page of another site, are refused: otherwise any web page could talk to this port.
"""

from __future__ import annotations

import asyncio
import errno
import http
import json
import socket
import string
import struct
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack
from importlib import resources
from typing import Any

from websockets.asyncio.server import ServerConnection, serve
from websockets.datastructures import Headers
from websockets.exceptions import ConnectionClosed
from websockets.http11 import Request, Response

from emerald_jax.config import ConfigError
from emerald_jax.envs.base import EnvError, EnvSpec
from emerald_jax.look.film import action_name, entry_names
from emerald_jax.look.play_session import TEMPERATURES, DreamSession, Picture, check_action
from emerald_jax.replay import ReplayError

#: Names of the action that does nothing.
IDLE = ("noop", "nop", "no op", "stay", "idle")
#: Action names and their keys, named as in ``KeyboardEvent.key``.
_USUAL = {side: f"Arrow{side.title()}" for side in ("left", "right", "up", "down")}
_USUAL |= {"sleep": "z", **dict.fromkeys(("do", "fire", "interact", "toggle", "jump"), " ")}
#: Keys that the page uses itself.
_TAKEN = ("p", "r")
_DIGITS = "1234567890"


def idle_action(names: Sequence[str]) -> int | None:
    """The action that does nothing; None if no action has such a name."""
    plain = [_plain(name) for name in names]
    return next((plain.index(word) for word in IDLE if word in plain), None)


def key_bindings(names: Sequence[str], num_actions: int) -> list[str]:
    """A ``KeyboardEvent.key`` per action; empty for the idle action, and when keys run out.

    Arrows for directions, the space bar for the main action, then a letter of the name, then any
    letter. Actions without names get 1, 2, … 9, 0, then letters.
    """
    free = [c for c in string.ascii_lowercase if c not in _TAKEN]
    if not names:
        return [*_DIGITS, *free, *[""] * num_actions][:num_actions]
    keys, idle = [""] * num_actions, idle_action(names)
    short = {i: _plain(name).removeprefix("move ") for i, name in enumerate(names) if i != idle}
    for action, name in short.items():
        if _USUAL.get(name, "") not in keys:
            keys[action] = _USUAL.get(name, "")
    for action, name in short.items():
        if not keys[action]:
            # Initials of the last word first: "place table" gets t.
            initials = [part[0] for part in reversed(name.split())]
            wanted = (c for c in (*initials, *name, *free, *_DIGITS) if c in (*free, *_DIGITS))
            keys[action] = next((c for c in wanted if c not in keys), "")
    return keys


def entry_controls(spec: EnvSpec) -> list[dict[str, Any]]:
    """Name, classes (0: a number) and keys of every entry of a vector; for discrete actions none.

    Up to two numbers have keys for their least and greatest values: arrows to the left and right,
    then down and up.
    """
    if spec.actions.discrete:
        return []
    arrows = [["ArrowLeft", "ArrowRight"], ["ArrowDown", "ArrowUp"]]
    few = spec.action_sizes.count(0) <= len(arrows)
    return [
        {"name": name, "size": size, "keys": arrows.pop(0) if few and not size else []}
        for name, size in zip(entry_names(spec), spec.action_sizes, strict=True)
    ]


def _plain(name: str) -> str:
    return name.lower().replace("_", " ").replace("-", " ").strip()


#: The loopback: no other machine can reach the page.
HOST = "127.0.0.1"


def take_port(port: int) -> socket.socket:
    """A socket that listens on the loopback; early browsers wait until the server is ready.

    Port 0 chooses a free one. ConfigError when the port is in use or not permitted.
    """
    taken = socket.socket()
    # Without this the port of a server that has just stopped is refused for a minute.
    taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        taken.bind((HOST, port))
        taken.listen()
    except OSError as error:
        taken.close()
        if error.errno in (errno.EADDRINUSE, errno.EACCES):
            why = "in use" if error.errno == errno.EADDRINUSE else "not permitted"
            raise ConfigError(f"port {port} is {why}: choose another --port") from error
        raise
    return taken


#: Frames per second: the initial rate, and the permitted range.
FPS, FPS_RANGE = 10.0, (1.0, 60.0)
#: Frames over which a rate is measured, and the share of the requested rate that is too slow.
_RATE_FRAMES, _ENOUGH = 20, 0.9
_MAX_MESSAGE = 4096
#: Instead of an action (None lets the policy choose): wait for a key, as no action does nothing.
_WAIT = -1
_REFUSALS = (ConfigError, EnvError, ReplayError)
#: The page runs only its own script and connects only to this server.
_HEADERS = {
    "Connection": "close",
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; script-src 'unsafe-inline'; "
    "style-src 'unsafe-inline'; connect-src 'self'; img-src data:; frame-ancestors 'none'; "
    "base-uri 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}


class PlayServer:
    """Serves one :class:`DreamSession`; ``async with`` starts and stops it."""

    def __init__(
        self,
        session: DreamSession,
        *,
        listening: socket.socket,
        title: str,
        beside: bool = False,
        fps: float = FPS,
        say: Callable[[str], None] = lambda line: None,
    ) -> None:
        """Prepare to serve on ``listening``, of :func:`take_port`, which is closed at the end.

        ``beside`` begins with the real environment next to the dream; ``say`` receives a line when
        this machine is too slow for ``fps`` frames per second.
        """
        self.session, self._title, self._beside, self._say = session, title, beside, say
        self._listening, self.port = listening, listening.getsockname()[1]
        self._player: ServerConnection | None = None
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="dream")
        self._open = AsyncExitStack()
        self._page = resources.files("emerald_jax.look").joinpath("play.html").read_bytes()
        self._fps, self._paused, self._autopilot = fps, False, False
        self._held: int | list[float] | None = None
        self._tapped: int | list[float] | None = None
        self._reported: tuple | None = None
        self._times: deque[float] = deque(maxlen=_RATE_FRAMES)
        spec = session.agent.spec
        discrete = spec.actions.discrete
        self._idle = idle_action(spec.action_names) if discrete else spec.actions.idle().tolist()

    async def __aenter__(self) -> PlayServer:
        options = dict(max_size=_MAX_MESSAGE, compression=None, close_timeout=1)
        server = serve(self._play, sock=self._listening, process_request=self._answer, **options)
        await self._open.enter_async_context(server)
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        # This also closes the players' sockets and waits for their requests.
        await self._open.aclose()
        await self._work(self.session.close)
        self._worker.shutdown()

    def _answer(self, connection: ServerConnection, request: Request) -> Response | None:
        """Answer a plain request; None lets a socket be opened."""
        names = {f"{HOST}:{self.port}", f"localhost:{self.port}"}
        if request.headers.get_all("Host") not in [[name] for name in names]:
            return _respond(http.HTTPStatus.MISDIRECTED_REQUEST, b"This host is not served here.\n")
        origins = request.headers.get_all("Origin")
        if origins and origins not in [[f"http://{name}"] for name in names]:
            return _respond(http.HTTPStatus.FORBIDDEN, b"Other pages may not talk to this one.\n")
        path = request.path.partition("?")[0]
        if path == "/socket":
            return None
        if path == "/":
            return _respond(http.HTTPStatus.OK, self._page, "text/html")
        return _respond(http.HTTPStatus.NOT_FOUND, b"There is one page here: /\n")

    async def _play(self, player: ServerConnection) -> None:
        """Serve one player until the connection ends; a new player replaces the old one."""
        before, self._player = self._player, player
        if before is not None:
            await before.close(1000, "the dream was opened in another window")
        self._held = self._tapped = None
        try:
            await player.send(json.dumps(self._hello()))
            start = {"do": "reset", "from": "real" if self._beside else "recorded"}
            await self._receive(player, json.dumps(start))
            async with asyncio.TaskGroup() as tasks:
                ticking = tasks.create_task(self._tick(player))
                async for message in player:
                    await self._receive(player, message)
                ticking.cancel()
        except* ConnectionClosed:
            pass
        finally:
            if self._player is player:
                self._player = None

    async def _tick(self, player: ServerConnection) -> None:
        """Send frames at the requested rate, or as fast as this machine can."""
        due = time.monotonic()
        while True:
            due = max(due + 1 / self._fps, time.monotonic() - 1 / self._fps)
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            choices = (self._tapped, self._held, self._idle, _WAIT)
            action = None if self._autopilot else next(x for x in choices if x is not None)
            self._tapped = None
            if self._paused or action == _WAIT:
                self._times.clear()
                continue
            try:
                picture = await self._work(self.session.step, action)
            except _REFUSALS as error:
                await self._refuse(player, error)
                self._paused = True
                continue
            self._times.append(time.monotonic())
            await self._send(player, picture)

    async def _receive(self, player: ServerConnection, message: str | bytes) -> None:
        """Obey one message; an invalid one is answered with an error, and the dream continues."""
        try:
            request = json.loads(message)
            match request:
                case {"do": "hold"}:
                    self._held = self._action(request.get("action"))
                    self._tapped = self._tapped if self._held is None else self._held
                case {"do": "set"}:
                    self._set(request)
                case {"do": "reset"}:
                    self._times.clear()
                    await self._send(player, await self._work(self._begin, request))
                case dict():
                    raise ConfigError(f"unknown request {request.get('do')!r}")
                case _:
                    raise ConfigError("a message is a JSON object")
        except _REFUSALS as error:
            await self._refuse(player, error)
        except ValueError as error:
            await self._refuse(player, ConfigError(f"a message that is no JSON: {error}"))

    def _begin(self, request: dict[str, Any]) -> Picture:
        row = request.get("row")
        recorded = row is not None or len(self.session.recordings)
        if request.get("from") == "real" or not recorded:
            return self.session.begin_real()
        if row is None:
            return self.session.begin_recorded()
        env = _number(request.get("env", 0), "env")
        return self.session.begin_recorded(int(env), int(_number(row, "row")))

    def _set(self, request: dict[str, Any]) -> None:
        """Change the named settings; none of them if any is out of range."""
        fps = request.get("fps", self._fps)
        low, high = FPS_RANGE
        if not low <= _number(fps, "fps") <= high:
            raise ConfigError(f"frames per second must lie in {low:g} … {high:g}, not {fps}")
        steps, temperature = request.get("steps"), request.get("temperature")
        self.session.configure(
            steps=None if steps is None else int(_number(steps, "steps")),
            temperature=None if temperature is None else _number(temperature, "temperature"),
        )
        self._fps = float(fps)
        self._paused = bool(request.get("paused", self._paused))
        self._autopilot = bool(request.get("autopilot", self._autopilot))
        self._times.clear()

    def _action(self, action: Any) -> int | list[float] | None:
        if action is None:
            return None
        if isinstance(action, list):
            action = [_number(entry, "action") for entry in action]
        else:
            action = int(_number(action, "action"))
        return check_action(action, self.session.agent.spec).tolist()

    async def _send(self, player: ServerConnection, picture: Picture) -> None:
        rate = None
        if len(self._times) == _RATE_FRAMES:
            rate = (_RATE_FRAMES - 1) / (self._times[-1] - self._times[0])
        slow = rate is not None and rate < _ENOUGH * self._fps
        settings = (self._fps, self.session.steps, self.session.beside)
        if slow and self._reported != settings:
            self._reported = settings
            at = f"at S = {self.session.steps}, fewer than the requested {self._fps:g}"
            self._say(f"this machine dreams {rate:.1f} frames per second {at}")
        await player.send(pack(picture, {"rate": rate, "slow": slow}))

    def _hello(self) -> dict[str, Any]:
        """The message before the first frame."""
        session, agent, recordings = self.session, self.session.agent, self.session.recordings
        keys = enumerate(key_bindings(agent.spec.action_names, agent.spec.num_actions))
        actions = [{"name": action_name(agent.spec, i), "key": key} for i, key in keys]
        hello = {"hello": self._title, "env": agent.spec.name, "updates": agent.updates}
        hello |= {"actions": actions, "idle": self._idle, "entries": entry_controls(agent.spec)}
        hello |= {"steps": session.steps, "most_steps": agent.config.tokens}
        hello |= {"temperature": session.temperature, "temperatures": TEMPERATURES}
        hello |= {"fps": self._fps, "fps_range": FPS_RANGE}
        hello |= {"paused": self._paused, "autopilot": self._autopilot}
        return hello | {"recorded": {"spans": recordings.spans, "envs": recordings.num_envs}}

    async def _refuse(self, player: ServerConnection, error: Exception) -> None:
        await player.send(json.dumps({"error": " ".join(str(error).split())}))

    async def _work(self, function: Callable, *args: Any) -> Any:
        """Call a function in the thread that owns the session."""
        return await asyncio.get_running_loop().run_in_executor(self._worker, function, *args)


def pack(picture: Picture, more: dict[str, Any]) -> bytes:
    """A frame as a message: header length (uint32, little endian), JSON header, RGB, real RGB."""
    names = ("reward", "cont", "step", "action", "real_reward", "real_over")
    header = {
        **{name: getattr(picture, name) for name in names},
        "height": picture.frame.shape[0],
        "width": picture.frame.shape[1],
        "confidence": [[round(float(c), 3) for c in row] for row in picture.confidence],
        "beside": picture.real is not None,
        **more,
    }
    text = json.dumps(header).encode()
    real = b"" if picture.real is None else picture.real.tobytes()
    return struct.pack("<I", len(text)) + text + picture.frame.tobytes() + real


def _number(value: Any, name: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < 1e12:
        raise ConfigError(f"{name} must be a number, not {value!r}")
    return value


def _respond(status: http.HTTPStatus, body: bytes, kind: str = "text/plain") -> Response:
    about = {"Content-Type": f"{kind}; charset=utf-8", "Content-Length": str(len(body))}
    return Response(status.value, status.phrase, Headers(_HEADERS | about), body)
