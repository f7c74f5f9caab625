"""Environment worker processes: how they start, what they may do, how they end.

Workers never import JAX (nothing on their import path does), never fork from a process with
threads, never use more than one thread for arithmetic, and never outlive their parent.

Seats hold host environments, here or in a process of its own, and can be filled anew.

Both kinds are tables where every environment is played alike, so it behaves the same wherever it
sits.

An environment may have a method ``work_ahead() -> bool``: a little of what later steps would have
to do, done while nothing else is asked of its process; it says whether there was any to do.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import math
import multiprocessing
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection
from typing import Any, NamedTuple, Protocol

import gymnasium
import numpy as np
from gymnasium.vector.utils import CloudpickleWrapper

_THREADS = (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "NUMBA_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
)
_PR_SET_PDEATHSIG = 1
_FORK_SERVER = "emerald_jax.envs.fork_server"


class WorkerSeats:
    """Environments in a process of their own, their images in shared memory; see :class:`Seats`.

    A process costs a message and two switches of context per vector step, however many sit there.
    They are stepped one after another and share its fate: when one hangs or brings the process
    down, all are lost. One that only raises is made anew beside the others.

    Attributes:
        frames: see :class:`Seats`.
        process: the worker, once started.
    """

    def __init__(
        self, factories: Sequence[EnvFactory], shape: tuple[int, ...], preload: Sequence[str] = ()
    ):
        """Nothing starts before :meth:`start`.

        Args:
            factories: of the environment in each seat; picklable by cloudpickle.
            shape: of the images they must show.
            preload: modules imported once for all workers, where the platform allows it.
        """
        methods = multiprocessing.get_all_start_methods()
        method = "forkserver" if "forkserver" in methods else "spawn"
        self._context = multiprocessing.get_context(method)
        if method == "forkserver":
            # Replaces the default ["__main__"], which would import the user's script, and JAX
            # with it, into every worker.
            self._context.set_forkserver_preload([_FORK_SERVER, __name__, *preload])
        self._factories = CloudpickleWrapper(list(factories))
        self._shape = (len(factories), *shape)
        self._buffer = self._context.RawArray("B", math.prod(self._shape))
        self.frames = np.frombuffer(self._buffer, np.uint8).reshape(self._shape)
        self._began = self._context.RawValue("d", 0.0)
        self._pipe: Connection | None = None
        self.process: multiprocessing.process.BaseProcess | None = None

    def start(self) -> None:
        """See :class:`Seats`."""
        # The fork server has its variables since the first start; changing them later, beside
        # the threads of a training run, is not safe.
        again = self.process is not None and self._context.get_start_method() == "forkserver"
        self.close(0)
        self._pipe, theirs = self._context.Pipe()
        with contextlib.nullcontext() if again else _single_threaded(), _hidden_main():
            self.process = self._context.Process(
                target=_work,
                args=(theirs, self._factories, self._buffer, self._shape, self._began),
                name="emerald_jax environments",
                daemon=True,
            )
            self.process.start()
        theirs.close()

    def send(self, commands: Sequence[Command]) -> None:
        """See :class:`Seats`."""
        # That a worker is dead is told by receive.
        with contextlib.suppress(OSError):
            self._pipe.send(commands)

    def receive(self, seconds: float, since: float) -> list[Answer]:
        """See :class:`Seats`.

        ``seconds`` are those of one command, not of all: each begins to count when the one before
        it is done, so slow environments may share a worker, and one that hangs is noticed as soon
        as if it sat alone.
        """
        try:
            while not self._pipe.poll(self._left(seconds, since)):
                if not self._left(seconds, since):
                    raise SeatError("gave no answer within envs.worker_timeout")
            return self._pipe.recv()
        except (EOFError, OSError) as error:
            self.process.join(1.0)
            raise SeatError(f"died ({_ending(self.process.exitcode)})") from error

    def _left(self, seconds: float, since: float) -> float:
        """What is left to the command that the worker is at; its monotonic clock is ours."""
        return max(max(since, self._began.value) + seconds - time.monotonic(), 0.0)

    def ask_to_close(self) -> None:
        """See :class:`Seats`."""
        if self._pipe is not None:
            self.send(())

    def close(self, deadline: float) -> None:
        """See :class:`Seats`. Never waits for a pending step beyond ``deadline``."""
        if self._pipe is None:
            return
        if self.process.pid is not None:  # None if it could not be started
            self.process.join(max(deadline - time.monotonic(), 0))
            self.process.kill()
            self.process.join()
        self._pipe.close()
        self._pipe = None


def _ending(code: int | None) -> str:
    return f"killed by signal {-code}" if code is not None and code < 0 else f"exit code {code}"


def _work(
    pipe: Connection,
    factories: CloudpickleWrapper,
    buffer: Any,
    shape: tuple[int, ...],
    began: Any,
) -> None:
    """Body of a worker process: answers messages of commands until an empty one comes."""
    # Ctrl-C reaches the whole process group; the parent decides when a worker ends.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # Imported here, in the worker: an environment may print although the output is broken.
    from emerald_jax.process import SafeStream

    sys.stdout, sys.stderr = SafeStream(sys.stdout), SafeStream(sys.stderr)
    _die_with_parent()
    table = Table(factories.fn, np.frombuffer(buffer, np.uint8).reshape(shape))

    def obey(command: Command) -> Answer:
        began.value = time.monotonic()
        return table.obey(command)

    # Nobody listens any more when the parent is gone.
    with contextlib.suppress(EOFError, OSError):
        while commands := _next_message(pipe, table):
            pipe.send([obey(command) for command in commands])
    table.close()


def _next_message(pipe: Connection, table: Table) -> Sequence[Command]:
    """Wait for it, and make good use of the time."""
    while not pipe.poll(0) and table.work_ahead():
        pass
    return pipe.recv()


def _die_with_parent() -> None:
    """End this process when its parent does, however that happens.

    The thread works everywhere; on Linux the kernel's signal also ends a worker that is stuck in
    C code. Its sender is the fork server, which exits when the training process does.
    """
    threading.Thread(target=_outlive_nobody, daemon=True).start()
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _outlive_nobody() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


@contextlib.contextmanager
def _single_threaded() -> Iterator[None]:
    """Processes started meanwhile use one thread each for BLAS, OpenMP and numba."""
    before = {name: os.environ.get(name) for name in _THREADS}
    os.environ.update(dict.fromkeys(_THREADS, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


@contextlib.contextmanager
def _hidden_main() -> Iterator[None]:
    """Processes started meanwhile do not import the script that this process runs.

    It may import JAX, or lack the ``__main__`` guard. cloudpickle sends what is defined there by
    value, so nothing is missed.
    """
    main = sys.modules["__main__"]
    spec, path = getattr(main, "__spec__", None), getattr(main, "__file__", None)
    main.__spec__ = None
    if path is not None:
        del main.__file__
    try:
        yield
    finally:
        main.__spec__ = spec
        if path is not None:
            main.__file__ = path


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
