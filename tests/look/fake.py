"""A dream without a model, served from a thread, to test the protocol and the page."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from types import SimpleNamespace

import numpy as np

from emerald_jax.config import ConfigError
from emerald_jax.envs.base import EnvSpec
from emerald_jax.look.play_server import PlayServer, take_port
from emerald_jax.look.play_session import Picture
from emerald_jax.replay import ReplayError

SIDE = 16
NAMES = ("noop", "move_left", "move_right", "do", "sleep")


class FakeRecordings:
    """Six rows of two environments."""

    spans, num_envs = ((3, 9),), 2

    def __len__(self) -> int:
        return 12


class FakeSession:
    """Draws a square that actions move; a decoding step takes 40 ms."""

    def __init__(self, *, names: tuple[str, ...] = NAMES, sizes: tuple[int, ...] = ()) -> None:
        shape = (SIDE, SIDE, 3)
        spec = EnvSpec(name="fake", image_shape=shape, num_actions=5, action_names=names)
        if sizes:  # the first entry moves the square
            spec = replace(spec, num_actions=0, action_names=(), action_sizes=sizes)
        self.agent = SimpleNamespace(spec=spec, updates=7, config=SimpleNamespace(tokens=48))
        self.recordings = FakeRecordings()
        self.steps, self.temperature, self.beside = 0, 1.0, False
        self.x = self.count = 0
        self.closed = False
        self.actions: list[int | list[float] | None] = []

    def configure(self, *, steps: int | None = None, temperature: float | None = None) -> None:
        if steps is not None and steps > 48:
            raise ConfigError(f"decoding steps must lie in 0 … 48, not {steps}")
        self.steps = self.steps if steps is None else steps
        self.temperature = self.temperature if temperature is None else temperature

    def begin_recorded(self, env: int | None = None, row: int | None = None) -> Picture:
        if row is not None and not 3 <= row < 9:
            raise ReplayError(f"row {row} is not recorded: the rows are 3 to 8")
        self.beside, self.x, self.count = False, row or 5, 0
        return self._picture(-1)

    def begin_real(self) -> Picture:
        self.beside, self.x, self.count = True, 0, 0
        return self._picture(-1)

    def step(self, action: int | list[float] | None) -> Picture:
        time.sleep(0.04 * self.steps)
        self.actions.append(action)
        move = round(action[0]) if isinstance(action, list) else {1: -1, 2: 1}.get(action, 0)
        self.x = (self.x + move) % SIDE
        self.count += 1
        return self._picture(0 if action is None else action)

    def close(self) -> None:
        self.closed = True

    def _picture(self, action: int | list[float]) -> Picture:
        frame = np.zeros((SIDE, SIDE, 3), np.uint8)
        frame[4:8, self.x] = (255, 200, 10)
        real = frame[::-1].copy() if self.beside else None
        sure = np.full((4, 4), 0.5, np.float32)
        return Picture(frame, 0.25, 0.9, sure, self.count, action, real, 1.0, False)


@contextmanager
def serving(session: FakeSession, **options: object) -> Iterator[tuple[PlayServer, list[str]]]:
    """Run the server in its own thread; yields it and the list of its lines."""
    said: list[str] = []
    own = {"listening": take_port(0), "title": "runs/fake", "say": said.append}
    server = PlayServer(session, **own, **options)
    ready, problem = threading.Event(), []
    loop = asyncio.new_event_loop()
    stop = asyncio.Event()

    async def serve() -> None:
        async with server:
            ready.set()
            await stop.wait()

    def run() -> None:
        try:
            loop.run_until_complete(serve())
        except BaseException as error:
            problem.append(error)
        finally:
            ready.set()
            loop.close()

    thread = threading.Thread(target=run)
    thread.start()
    assert ready.wait(10)
    try:
        if problem:
            raise problem[0]
        yield server, said
    finally:
        if not problem:
            loop.call_soon_threadsafe(stop.set)
        thread.join(10)
        assert not thread.is_alive(), "the server did not stop"
