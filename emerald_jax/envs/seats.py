"""A seat holds one host environment, here or in a process of its own, and can be filled anew.

Both kinds play with :func:`play`, so an environment behaves alike wherever it sits.
"""

from __future__ import annotations

import contextlib
import json
import traceback
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import gymnasium
import numpy as np

EnvFactory = Callable[[], gymnasium.Env]


class SeatError(Exception):
    """An environment raised, hung or died; the message says which. Its seat must start again."""


class Spaces(NamedTuple):
    """What an environment shows and takes."""

    observation: gymnasium.Space
    action: gymnasium.Space


class Reply(NamedTuple):
    """What an environment answers to a reset or a step.

    Attributes:
        image: `[height, width, 3]` uint8; only valid until the next command.
        reward: of a step.
        terminated: the world ended.
        truncated: a limit cut the episode.
        extra: what a final step reports besides, see ``vector.py``.
    """

    image: np.ndarray | None
    reward: float = 0.0
    terminated: bool = False
    truncated: bool = False
    extra: dict[str, Any] | None = None


class Seat(Protocol):
    """One environment. Commands are ``reset`` (with a seed or None) and ``step`` (an action)."""

    def start(self) -> None:
        """Make a new environment, in place of the one there was; returns at once."""

    def ready(self, seconds: float) -> Spaces:
        """Wait until it is made; raises :class:`SeatError`."""

    def send(self, command: str, value: int | None) -> None:
        """Begin a command and return at once."""

    def receive(self, seconds: float) -> Reply:
        """What the command led to; raises :class:`SeatError`."""

    def ask_to_close(self) -> None:
        """Begin to close and return at once."""

    def close(self, deadline: float) -> None:
        """Release everything, by force after ``deadline`` on the monotonic clock."""


def play(env: gymnasium.Env, shape: tuple[int, ...], command: str, value: int | None) -> Reply:
    """One reset or step of an environment.

    Args:
        env: the environment.
        shape: of the images it must show.
        command: ``reset`` or ``step``.
        value: seed or action.

    Raises:
        ValueError: when the image is not a uint8 image of ``shape``.
        TypeError: when ``extra`` is not plain JSON.
    """
    if command == "reset":
        reply = Reply(env.reset(seed=value)[0])
    else:
        image, reward, terminated, truncated, info = env.step(value)
        over = bool(terminated or truncated)
        extra = json.loads(json.dumps(info["extra"])) if over and "extra" in info else None
        reply = Reply(image, float(reward), bool(terminated), bool(truncated), extra)
    image = reply.image
    if not isinstance(image, np.ndarray) or image.shape != shape or image.dtype != np.uint8:
        raise ValueError(
            f"{command} gave {getattr(image, 'dtype', type(image).__name__)} "
            f"{list(getattr(image, 'shape', []))}, not a uint8 image of {list(shape)}"
        )
    return reply


def describe(error: BaseException) -> tuple[str, str]:
    """An exception in one line, and its traceback."""
    line = " ".join(f"{type(error).__name__}: {error}".split())
    return line, "".join(traceback.format_exception(error))


def fault_of(line: str, trace: str) -> SeatError:
    """The fault that :func:`describe` tells of, the traceback attached as a note."""
    fault = SeatError(f"raised {line}")
    fault.add_note(trace)
    return fault


class InlineSeat:
    """An environment in this process. It cannot be told that it hangs, nor survive being killed."""

    def __init__(self, factory: EnvFactory, shape: tuple[int, ...]):
        """Nothing is made before :meth:`start`.

        Args:
            factory: makes the environment.
            shape: of the images it must show.
        """
        self._factory, self._shape = factory, shape
        self._env: gymnasium.Env | None = None
        self._todo: tuple[str, int | None] = ("reset", None)

    def start(self) -> None:
        """See :class:`Seat`; the work happens in :meth:`ready`."""
        self.close(0)

    def ready(self, seconds: float) -> Spaces:
        """See :class:`Seat`."""
        del seconds
        try:
            self._env = self._env or self._factory()
        except Exception as error:
            raise fault_of(*describe(error)) from error
        return Spaces(self._env.observation_space, self._env.action_space)

    def send(self, command: str, value: int | None) -> None:
        """See :class:`Seat`; the work happens in :meth:`receive`."""
        self._todo = (command, value)

    def receive(self, seconds: float) -> Reply:
        """See :class:`Seat`."""
        self.ready(seconds)
        try:
            return play(self._env, self._shape, *self._todo)
        except Exception as error:
            raise fault_of(*describe(error)) from error

    def ask_to_close(self) -> None:
        """See :class:`Seat`."""

    def close(self, deadline: float) -> None:
        """See :class:`Seat`."""
        del deadline
        env, self._env = self._env, None
        if env is not None:
            # It may be closed because it is broken.
            with contextlib.suppress(Exception):
                env.close()
