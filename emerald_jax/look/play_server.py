"""Which key of the keyboard does which action, for environments that were never heard of.

The port of the page, taken before anything slow begins.

A page on the loopback where a person steers the dream: one page, one socket, one player.

The page is a file of this package and asks for nothing from outside. Frames go out as binary
messages (a length, a JSON header, raw RGB), what the player does comes in as JSON. Requests that
name another host, or come from another site's page, are refused: a browser would otherwise let any
web page talk to this port.
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
from emerald_jax.envs.base import EnvError
from emerald_jax.look.play_session import TEMPERATURES, DreamSession, Picture
from emerald_jax.replay import ReplayError

#: Words that mean "do nothing".
IDLE = ("noop", "nop", "no op", "stay", "idle")
#: Keys by the name ``KeyboardEvent.key`` has for them, for whole action names.
_USUAL = {
    "left": "ArrowLeft",
    "right": "ArrowRight",
    "up": "ArrowUp",
    "down": "ArrowDown",
    "do": " ",
    "fire": " ",
    "interact": " ",
    "toggle": " ",
    "jump": " ",
    "sleep": "z",
}
#: Left out: the page uses them itself.
_TAKEN = ("p", "r")
_DIGITS = "1234567890"


def idle_action(names: Sequence[str]) -> int | None:
    """The action that does nothing; None when the environment names none."""
    plain = [_plain(name) for name in names]
    return next((plain.index(word) for word in IDLE if word in plain), None)


def key_bindings(names: Sequence[str], num_actions: int) -> list[str]:
    """One key per action; empty where there is none left, and for the action that does nothing.

    Arrows for directions, the space bar for the main action, then a letter of the name, then any
    letter. Actions without names get 1, 2, … 9, 0, then letters.

    Args:
        names: of the actions, or empty.
        num_actions: how many there are.

    Returns:
        ``KeyboardEvent.key`` of each action, all different.
    """
    keys = [""] * num_actions
    free = [c for c in string.ascii_lowercase if c not in _TAKEN]
    if not names:
        spare = [*_DIGITS, *free]
        return [spare[i] if i < len(spare) else "" for i in range(num_actions)]
    idle = idle_action(names)
    rest = []
    for action, name in enumerate(names):
        word = _plain(name).removeprefix("move ")
        key = _USUAL.get(word, "")
        if action == idle:
            continue
        if key and key not in keys:
            keys[action] = key
        else:
            rest.append((action, word))
    for action, word in rest:
        # Initials first: "place table" is t rather than p's neighbour l.
        initials = [part[0] for part in reversed(word.split())]
        wanted = [*initials, *word, *free, *_DIGITS]
        allowed = (c for c in wanted if c in (*free, *_DIGITS) and c not in keys)
        keys[action] = next(allowed, "")
    return keys


def _plain(name: str) -> str:
    return name.lower().replace("_", " ").replace("-", " ").strip()


#: The loopback: nobody else's machine reaches the page.
HOST = "127.0.0.1"


def take_port(port: int) -> socket.socket:
    """A socket that listens on the loopback; a browser that comes early waits for the server.

    Args:
        port: 0 takes a free one.

    Raises:
        ConfigError: in one line, when the port cannot be had.
    """
    taken = socket.socket()
    # A server that has just stopped leaves the port in a state that would refuse it for a minute.
    taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        taken.bind((HOST, port))
        taken.listen()
    except OSError as error:
        taken.close()
        if error.errno in (errno.EADDRINUSE, errno.EACCES):
            why = "in use" if error.errno == errno.EADDRINUSE else "not ours to take"
            raise ConfigError(f"port {port} is {why}: choose another --port") from error
        raise
    return taken


#: Frames a second: what a dream starts with, and what may be asked for.
FPS, FPS_RANGE = 10.0, (1.0, 60.0)
#: Frames a rate is measured over, and the share of the rate asked for below which we say so.
_RATE_FRAMES, _ENOUGH = 20, 0.9
_MAX_MESSAGE = 4096
#: In place of an action: the environment has none that does nothing, so the dream stands still.
_WAIT = -1
_REFUSALS = (ConfigError, EnvError, ReplayError)
#: The page runs its own script and talks to this server only.
_POLICY = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; "
    "connect-src 'self'; img-src data:; frame-ancestors 'none'; base-uri 'none'"
)


class PlayServer:
    """Serves one :class:`DreamSession`; ``async with`` starts and stops it.

    Attributes:
        port: where it listens.
    """

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
        """Prepare; nothing listens yet.

        Args:
            session: the dream.
            listening: from :func:`port.take_port`; closed when the server stops.
            title: what the page calls the run.
            beside: begin with the real environment beside the dream.
            fps: frames a second to begin with.
            say: told in one line when this machine cannot keep up.
        """
        self.session, self._title, self._say = session, title, say
        self._listening, self.port = listening, listening.getsockname()[1]
        self._beside = beside
        self._player: ServerConnection | None = None
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="dream")
        self._open = AsyncExitStack()
        self._page = resources.files("emerald_jax.look").joinpath("play.html").read_bytes()
        self._fps, self._paused, self._autopilot = fps, False, False
        self._held: int | None = None
        self._tapped: int | None = None
        self._told: tuple | None = None
        self._times: deque[float] = deque(maxlen=_RATE_FRAMES)
        self._idle = idle_action(session.agent.spec.action_names)

    async def __aenter__(self) -> PlayServer:
        listening = serve(
            self._play,
            sock=self._listening,
            process_request=self._answer,
            max_size=_MAX_MESSAGE,
            compression=None,
            close_timeout=1,
        )
        await self._open.enter_async_context(listening)
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        # Closes the sockets of players too, and waits for what they had begun.
        await self._open.aclose()
        await self._work(self.session.close)
        self._worker.shutdown()

    def _answer(self, connection: ServerConnection, request: Request) -> Response | None:
        """Answer a plain request; None lets a socket be opened."""
        names = {f"{HOST}:{self.port}", f"localhost:{self.port}"}
        if request.headers.get_all("Host") not in [[name] for name in names]:
            return _text(http.HTTPStatus.MISDIRECTED_REQUEST, "This host is not served here.\n")
        origins = request.headers.get_all("Origin")
        if origins and origins not in [[f"http://{name}"] for name in names]:
            return _text(http.HTTPStatus.FORBIDDEN, "Other pages may not talk to this one.\n")
        path = request.path.partition("?")[0]
        if path == "/socket":
            return None
        if path == "/":
            return _respond(http.HTTPStatus.OK, self._page, "text/html; charset=utf-8")
        return _text(http.HTTPStatus.NOT_FOUND, "There is one page here: /\n")

    async def _play(self, player: ServerConnection) -> None:
        """One player, from the first frame to the last; a new one takes over from the old."""
        before, self._player = self._player, player
        if before is not None:
            await before.close(1000, "the dream was opened in another window")
        self._held = self._tapped = None
        try:
            await player.send(json.dumps(self._hello()))
            begin = {"do": "reset", "from": "real" if self._beside else "recorded"}
            try:
                await self._obey(player, begin)
            except _REFUSALS as error:
                await self._refuse(player, error)
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
        """Send frames at the rate asked for, or as fast as this machine can."""
        due = time.monotonic()
        while True:
            due = max(due + 1 / self._fps, time.monotonic() - 1 / self._fps)
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            action, self._tapped = self._next_action(), None
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

    def _next_action(self) -> int | None:
        """What to do now: an action, None for the policy's, or to wait for a key."""
        if self._autopilot:
            return None
        if self._tapped is not None:
            return self._tapped
        if self._held is not None:
            return self._held
        return _WAIT if self._idle is None else self._idle

    async def _receive(self, player: ServerConnection, message: str | bytes) -> None:
        """Read one message; whatever is wrong with it, the player is told and play goes on."""
        try:
            words = json.loads(message)
            if not isinstance(words, dict):
                raise ConfigError("a message is a JSON object")
            await self._obey(player, words)
        except _REFUSALS as error:
            await self._refuse(player, error)
        except ValueError as error:
            await self._refuse(player, ConfigError(f"a message that is no JSON: {error}"))

    async def _obey(self, player: ServerConnection, words: dict[str, Any]) -> None:
        """Do what the page asks for."""
        match words.get("do"):
            case "hold":
                self._held = self._action(words.get("action"))
                self._tapped = self._tapped if self._held is None else self._held
            case "set":
                self._set(words)
            case "reset":
                self._times.clear()
                await self._send(player, await self._work(self._begin, words))
            case other:
                raise ConfigError(f"unknown request {other!r}")

    def _begin(self, words: dict[str, Any]) -> Picture:
        if words.get("from") == "real":
            return self.session.begin_real()
        if words.get("row") is None:
            if not len(self.session.recordings):
                return self.session.begin_real()
            return self.session.begin_recorded()
        env, row = words.get("env", 0), words["row"]
        return self.session.begin_recorded(int(_number(env, "env")), int(_number(row, "row")))

    def _set(self, words: dict[str, Any]) -> None:
        """Change what is named; nothing when anything is out of range."""
        fps = words.get("fps", self._fps)
        low, high = FPS_RANGE
        if not low <= _number(fps, "fps") <= high:
            raise ConfigError(f"frames a second must lie in {low:g} … {high:g}, not {fps}")
        steps, temperature = words.get("steps"), words.get("temperature")
        self.session.configure(
            steps=None if steps is None else int(_number(steps, "steps")),
            temperature=None if temperature is None else _number(temperature, "temperature"),
        )
        self._fps = float(fps)
        self._paused = bool(words.get("paused", self._paused))
        self._autopilot = bool(words.get("autopilot", self._autopilot))
        self._times.clear()

    def _action(self, action: Any) -> int | None:
        if action is None:
            return None
        action = int(_number(action, "action"))
        if not 0 <= action < self.session.agent.spec.num_actions:
            raise ConfigError(f"there is no action {action}")
        return action

    async def _send(self, player: ServerConnection, picture: Picture) -> None:
        rate = self._rate()
        slow = rate is not None and rate < _ENOUGH * self._fps
        settings = (self._fps, self.session.steps, self.session.beside)
        if slow and self._told != settings:
            self._told = settings
            self._say(
                f"this machine dreams {rate:.1f} frames a second at S = {self.session.steps}, "
                f"fewer than the {self._fps:g} asked for"
            )
        await player.send(pack(picture, {"rate": rate, "slow": slow}))

    def _rate(self) -> float | None:
        """Frames a second over the last ones; None while there are too few."""
        if len(self._times) < _RATE_FRAMES:
            return None
        return (len(self._times) - 1) / (self._times[-1] - self._times[0])

    def _hello(self) -> dict[str, Any]:
        """What the page must know before the first frame."""
        agent, recordings = self.session.agent, self.session.recordings
        names = agent.spec.action_names
        keys = key_bindings(names, agent.spec.num_actions)
        return {
            "hello": self._title,
            "env": agent.spec.name,
            "updates": agent.updates,
            "actions": [
                {"name": names[i].replace("_", " ") if names else f"action {i}", "key": key}
                for i, key in enumerate(keys)
            ],
            "idle": self._idle,
            "steps": self.session.steps,
            "most_steps": agent.config.tokens,
            "temperature": self.session.temperature,
            "temperatures": TEMPERATURES,
            "fps": self._fps,
            "fps_range": FPS_RANGE,
            "paused": self._paused,
            "autopilot": self._autopilot,
            "recorded": {"spans": recordings.spans, "envs": recordings.num_envs},
        }

    async def _refuse(self, player: ServerConnection, error: Exception) -> None:
        await player.send(json.dumps({"error": " ".join(str(error).split())}))

    async def _work(self, function: Callable, *args: Any) -> Any:
        """Compute in the one thread that owns the session."""
        return await asyncio.get_running_loop().run_in_executor(self._worker, function, *args)


def pack(picture: Picture, facts: dict[str, Any]) -> bytes:
    """A frame as a message: header length (uint32, little endian), JSON header, RGB, RGB beside.

    Args:
        picture: what to send.
        facts: more entries of the header.
    """
    header = {
        "height": picture.frame.shape[0],
        "width": picture.frame.shape[1],
        "reward": picture.reward,
        "cont": picture.cont,
        "confidence": [[round(float(c), 3) for c in row] for row in picture.confidence],
        "step": picture.step,
        "action": picture.action,
        "beside": picture.real is not None,
        "real_reward": picture.real_reward,
        "real_over": picture.real_over,
        **facts,
    }
    text = json.dumps(header).encode()
    real = b"" if picture.real is None else picture.real.tobytes()
    return struct.pack("<I", len(text)) + text + picture.frame.tobytes() + real


def _number(value: Any, name: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < 1e12:
        raise ConfigError(f"{name} must be a number, not {value!r}")
    return value


def _text(status: http.HTTPStatus, text: str) -> Response:
    return _respond(status, text.encode(), "text/plain; charset=utf-8")


def _respond(status: http.HTTPStatus, body: bytes, kind: str) -> Response:
    headers = Headers(
        {
            "Content-Type": kind,
            "Content-Length": str(len(body)),
            "Connection": "close",
            "Cache-Control": "no-store",
            "Content-Security-Policy": _POLICY,
            "X-Content-Type-Options": "nosniff",
            "Referrer-Policy": "no-referrer",
        }
    )
    return Response(status.value, status.phrase, headers, body)
