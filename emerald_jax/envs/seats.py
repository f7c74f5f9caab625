"""Seats hold host environments, here or in a process of its own, and can be filled anew.

Both kinds are tables where every environment is played alike, so it behaves the same wherever it
sits.

An environment may have a method ``work_ahead() -> bool``: a little of what later steps would have
to do, done while nothing else is asked of its process; it says whether there was any to do.
"""

from __future__ import annotations

import contextlib
import json
import traceback
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import gymnasium
import numpy as np

EnvFactory = Callable[[], gymnasium.Env]


class SeatError(Exception):
    """An environment raised, hung or died; the message says which."""


class Spaces(NamedTuple):
    """What an environment shows and takes: the answer to ``make``."""

    observation: gymnasium.Space
    action: gymnasium.Space


class Reply(NamedTuple):
    """What an environment answers to a reset or a step, besides the image.

    Attributes:
        reward: of a step.
        terminated: the world ended.
        truncated: a limit cut the episode.
        extra: what a final step reports besides, see ``vector.py``.
    """

    reward: float = 0.0
    terminated: bool = False
    truncated: bool = False
    extra: dict[str, Any] | None = None

    @property
    def over(self) -> bool:
        """Whether the episode ended."""
        return self.terminated or self.truncated


class Failure(NamedTuple):
    """An exception that an environment raised: in one line, and its traceback."""

    line: str
    trace: str

    @classmethod
    def of(cls, error: Exception) -> Failure:
        """What is left of an exception when it has to leave its process."""
        line = " ".join(f"{type(error).__name__}: {error}".split())
        return cls(line, "".join(traceback.format_exception(error)))

    def as_error(self) -> SeatError:
        """The same as an exception, the traceback attached as a note."""
        error = SeatError(f"raised {self.line}")
        error.add_note(self.trace)
        return error


class Command(NamedTuple):
    """What one environment has to do.

    Attributes:
        seat: its place at the table.
        name: ``make``, ``reset`` or ``step``. A reset makes the environment first where there is
            none, at the beginning and after it raised.
        value: the seed of a reset, or None; the action of a step.
    """

    seat: int
    name: str
    value: int | None = None


Answer = Spaces | Reply | Failure


class Seats(Protocol):
    """Some environments that are stepped by one process, one after another.

    Attributes:
        frames: `[seats, height, width, 3]` uint8, where each shows its newest image. The caller
            may write there while no command is under way.
    """

    frames: np.ndarray

    def start(self) -> None:
        """Begin with empty seats, whatever sat there; returns at once."""

    def send(self, commands: Sequence[Command]) -> None:
        """Begin some commands and return at once."""

    def receive(self, seconds: float, since: float) -> list[Answer]:
        """What the commands led to, in their order.

        Args:
            seconds: that each command may take.
            since: when the caller began to wait, on the monotonic clock.

        Raises:
            SeatError: when all seats are lost: the process died, or a command hung.
        """

    def ask_to_close(self) -> None:
        """Begin to close and return at once."""

    def close(self, deadline: float) -> None:
        """Release everything, by force after ``deadline`` on the monotonic clock."""


class Table:
    """The environments of one process and the images they show."""

    def __init__(self, factories: Sequence[EnvFactory], frames: np.ndarray):
        """Nothing is made before it is asked for.

        Args:
            factories: of the environment in each seat.
            frames: see :class:`Seats`.
        """
        self._factories = factories
        self._frames = frames
        self._envs: list[gymnasium.Env | None] = [None] * len(factories)
        self._late: dict[int, Failure] = {}

    def obey(self, command: Command) -> Answer:
        """Carry out one command; an environment that raises leaves its seat empty."""
        seat = command.seat
        try:
            failure = self._late.pop(seat, None)
            return failure or self._obey(*command)
        except Exception as error:
            failure = Failure.of(error)
            self._clear(seat)
            return failure

    def work_ahead(self) -> bool:
        """Let one environment do a little of what it will need later; False when none has to.

        One that raises meanwhile has failed its next command.
        """
        for seat, env in enumerate(self._envs):
            try:
                work = getattr(env, "work_ahead", None)
                if work is not None and work():
                    return True
            except Exception as error:
                self._late[seat] = Failure.of(error)
                self._clear(seat)
        return False

    def close(self) -> None:
        """Close every environment; safe to call twice."""
        self._late.clear()
        for seat in range(len(self._envs)):
            self._clear(seat)

    def _obey(self, seat: int, name: str, value: int | None) -> Answer:
        if name != "step" and self._envs[seat] is None:
            self._envs[seat] = self._factories[seat]()
        env = self._envs[seat]
        if name == "make":
            return Spaces(env.observation_space, env.action_space)
        if name == "reset":
            image, reply = env.reset(seed=value)[0], Reply()
        else:
            image, reward, terminated, truncated, info = env.step(value)
            reply = Reply(float(reward), bool(terminated), bool(truncated))
            if reply.over and "extra" in info:
                reply = reply._replace(extra=json.loads(json.dumps(info["extra"])))
        self._frames[seat] = _checked(image, self._frames.shape[1:], name)
        return reply

    def _clear(self, seat: int) -> None:
        env, self._envs[seat] = self._envs[seat], None
        if env is not None:
            # It may be closed because it is broken.
            with contextlib.suppress(Exception):
                env.close()


def _checked(image: Any, shape: tuple[int, ...], what: str) -> np.ndarray:
    if not isinstance(image, np.ndarray) or image.shape != shape or image.dtype != np.uint8:
        raise ValueError(
            f"{what} gave {getattr(image, 'dtype', type(image).__name__)} "
            f"{list(getattr(image, 'shape', []))}, not a uint8 image of {list(shape)}"
        )
    return image


class InlineSeats:
    """Environments in this process. They cannot be told that they hang, nor survive being killed.

    See :class:`Seats`.
    """

    def __init__(self, factories: Sequence[EnvFactory], shape: tuple[int, ...]):
        """Nothing is made before it is asked for.

        Args:
            factories: of the environment in each seat.
            shape: of the images they must show.
        """
        self.frames = np.zeros((len(factories), *shape), np.uint8)
        self._table = Table(factories, self.frames)
        self._todo: Sequence[Command] = ()

    def start(self) -> None:
        """See :class:`Seats`."""
        self._table.close()

    def send(self, commands: Sequence[Command]) -> None:
        """See :class:`Seats`; the work happens in :meth:`receive`."""
        self._todo = commands

    def receive(self, seconds: float, since: float) -> list[Answer]:
        """See :class:`Seats`."""
        del seconds, since
        return [self._table.obey(command) for command in self._todo]

    def ask_to_close(self) -> None:
        """See :class:`Seats`."""

    def close(self, deadline: float) -> None:
        """See :class:`Seats`."""
        del deadline
        self._table.close()
