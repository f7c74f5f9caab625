"""Groups of host environments, stepped one after another: in this process, or in a worker process.

Worker processes never import JAX (no import of theirs needs it), are never forked from a process
with threads, use one thread each for arithmetic, and never outlive their parent.

An environment may have a method ``work_ahead() -> bool``: do a small part of the work of later
steps while its process waits for commands; False when nothing is left to do.
"""

from __future__ import annotations

import contextlib
import ctypes
import math
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

import gymnasium
import numpy as np
from gymnasium.vector.utils import CloudpickleWrapper

from emerald_jax.envs.guards import (
    INLINE_HINT,
    FaultError,
    checked_image,
    checked_reward,
    env_code,
    plain_extra,
)

EnvFactory = Callable[[], gymnasium.Env]
Shape = tuple[int, ...]

_LIBRARIES = ("OMP_NUM", "OPENBLAS_NUM", "MKL_NUM", "NUMBA_NUM", "VECLIB_MAXIMUM")
_ONE_THREAD = {f"{library}_THREADS": "1" for library in _LIBRARIES}
_PR_SET_PDEATHSIG = 1
_FORK_SERVER = "emerald_jax.envs.fork_server"


class Command(NamedTuple):
    """A call of environment ``index`` of a group: ``make``, ``reset`` or ``step``.

    ``value`` is the action of a step (an index, or a vector `[A]`), or the seed of a reset, which
    may be None. A reset makes the environment again if a fault removed it.
    """

    index: int
    name: str
    value: int | np.ndarray | None = None


class Reply(NamedTuple):
    """Reply to ``reset`` and ``step``, except for the image.

    ``extra`` of a final step is :attr:`Episode.extra`; ``warnings`` are those of
    :class:`VectorEnv`.
    """

    reward: float = 0.0
    terminated: bool = False
    truncated: bool = False
    extra: dict[str, Any] | None = None
    warnings: dict[str, str] = {}  # noqa: RUF012

    @property
    def over(self) -> bool:
        """Whether the episode ended."""
        return self.terminated or self.truncated


#: The spaces after ``make``, or a reply.
Answer = tuple[gymnasium.Space, gymnasium.Space] | Reply | FaultError


class InlineGroup:
    """Environments in this process. A timeout cannot stop them, and their crash is ours.

    ``frames`` `[envs, height, width, 3]` uint8 holds the newest image of each; the caller may write
    to it while no command is running.
    """

    def __init__(
        self, factories: Sequence[EnvFactory], shape: Shape, frames: np.ndarray | None = None
    ):
        """Environments are made by the first command.

        ``frames`` is given in a worker process, which needs no protection from its environments.
        """
        self.frames = np.zeros((len(factories), *shape), np.uint8) if frames is None else frames
        self._factories = factories
        self._envs: list[gymnasium.Env | None] = [None] * len(factories)
        self._late: dict[int, FaultError] = {}
        self._todo: Sequence[Command] = ()
        self._scope = env_code if frames is None else contextlib.nullcontext

    def start(self) -> None:
        """Remove all environments; the next commands make new ones."""
        self.close(0)

    def send(self, commands: Sequence[Command]) -> None:
        """Take commands; :meth:`receive` carries them out."""
        self._todo = commands

    def receive(self, seconds: float, since: float) -> list[Answer]:
        """Answers to the last commands, in their order; the timeout is ignored."""
        del seconds, since
        return [self.obey(command) for command in self._todo]

    def close(self, deadline: float) -> None:
        """Close every environment; safe to call twice."""
        del deadline
        self._late.clear()
        for index in range(len(self._envs)):
            self._remove(index)

    def obey(self, command: Command) -> Answer:
        """Carry out one command; an environment that raises is removed."""
        if command.index in self._late:
            return self._late.pop(command.index)
        try:
            with self._scope():
                return self._obey(*command)
        except (Exception, SystemExit) as error:
            self._remove(command.index)
            return FaultError.of(error)

    def work_ahead(self) -> bool:
        """Let one environment do some work of later steps; False when none has any."""
        for index, env in enumerate(self._envs):
            try:
                work = getattr(env, "work_ahead", None)
                if work is not None and work():
                    return True
            except (Exception, SystemExit) as error:
                self._late[index] = FaultError.of(error)  # the answer to its next command
                self._remove(index)
        return False

    def _obey(self, index: int, name: str, value: int | np.ndarray | None) -> Answer:
        if name != "step" and self._envs[index] is None:
            self._envs[index] = self._factories[index]()
        env = self._envs[index]
        if name == "make":
            return env.observation_space, env.action_space
        if name == "reset":
            image, reply = env.reset(seed=value)[0], Reply()
        else:
            action = value if isinstance(value, np.ndarray) else np.int64(value)
            image, reward, terminated, truncated, info = env.step(action)
            reply = Reply(checked_reward(reward), bool(terminated), bool(truncated))
            if reply.over and isinstance(info, Mapping):
                extra, warnings = plain_extra(info.get("extra"))
                reply = reply._replace(extra=extra, warnings=warnings)
        self.frames[index] = checked_image(image, self.frames.shape[1:], name)
        return reply._replace(warnings=reply.warnings | getattr(env, "take_warnings", dict)())

    def _remove(self, index: int) -> None:
        env, self._envs[index] = self._envs[index], None
        if env is not None:  # it may be broken: closing it is only an attempt
            with contextlib.suppress(Exception, SystemExit), self._scope():
                env.close()


class WorkerGroup:
    """Environments in a worker process, their images in shared memory; see :class:`InlineGroup`.

    A vector step costs one message and two context switches per process. If an environment hangs or
    crashes the process, all are lost. If it only raises, it alone is replaced. ``process`` is the
    worker, once started.
    """

    def __init__(self, factories: Sequence[EnvFactory], shape: Shape, preload: Sequence[str] = ()):
        """The process starts with :meth:`start`; cloudpickle must be able to pickle ``factories``.

        ``preload`` names modules to import once for all workers, where the platform allows it.
        """
        methods = multiprocessing.get_all_start_methods()
        method = "forkserver" if "forkserver" in methods else "spawn"
        self._context = multiprocessing.get_context(method)
        if method == "forkserver":
            # Replaces the default ["__main__"], which would import the user's script, and with it
            # JAX, into every worker.
            self._context.set_forkserver_preload([_FORK_SERVER, __name__, *preload])
        self._factories = CloudpickleWrapper(list(factories))
        self._shape = (len(factories), *shape)
        self._buffer = self._context.RawArray("B", math.prod(self._shape))
        self.frames = np.frombuffer(self._buffer, np.uint8).reshape(self._shape)
        self._began = self._context.RawValue("d", 0.0)
        self._pipe: Connection | None = None
        self.process: multiprocessing.process.BaseProcess | None = None

    def start(self) -> None:
        """Start a new worker without environments; the old one is killed. Returns at once.

        FaultError: the factories cannot be sent to another process.
        """
        # The fork server got its variables at its first start. Changing them later, while a
        # training run has threads, is not safe.
        again = self.process is not None and self._context.get_start_method() == "forkserver"
        self.close(0)
        self._pipe, theirs = self._context.Pipe()
        with contextlib.nullcontext() if again else _single_threaded(), _hidden_main():
            arguments = theirs, self._buffer, self._shape, self._began
            self.process = self._context.Process(target=_work, args=arguments, daemon=True)
            self.process.start()
        theirs.close()
        try:
            self._pipe.send(self._factories)
        except OSError:
            pass  # receive() reports a dead worker
        except Exception as error:  # pickling runs code of the user's classes
            self.close(0)
            fault = FaultError.of(error)
            raise FaultError(f"cannot be sent to a worker: {fault}; {INLINE_HINT}") from error

    def send(self, commands: Sequence[Command]) -> None:
        """Send commands and return at once; an empty list ends the worker."""
        if self._pipe is not None:
            with contextlib.suppress(OSError):  # receive() reports a dead worker
                self._pipe.send(commands)

    def receive(self, seconds: float, since: float) -> list[Answer]:
        """Answers to the last commands; FaultError if the process died or a command hung.

        Each command has its own timeout, counted from the end of the one before, the first from
        ``since`` on the monotonic clock. So slow environments may share a worker, and a hanging one
        is noticed as soon as if it were alone.
        """
        try:
            while not self._pipe.poll(self._left(seconds, since)):
                if not self._left(seconds, since):
                    raise FaultError("gave no answer within envs.worker_timeout")
            return self._pipe.recv()
        except (EOFError, OSError) as error:
            self.process.join(1.0)
            code = self.process.exitcode
            how = f"killed by signal {-code}" if (code or 0) < 0 else f"exit code {code}"
            raise FaultError(f"died ({how})") from error

    def _left(self, seconds: float, since: float) -> float:
        """Seconds left for the running command; both processes share the monotonic clock."""
        return max(max(since, self._began.value) + seconds - time.monotonic(), 0.0)

    def close(self, deadline: float) -> None:
        """End the process, by force after ``deadline`` on the monotonic clock."""
        if self._pipe is None:
            return
        if self.process.pid is not None:  # None if it could not be started
            self.process.join(max(deadline - time.monotonic(), 0))
            self.process.kill()
            self.process.join()
        self._pipe.close()
        self._pipe = None


def _work(pipe: Connection, buffer: Any, shape: tuple[int, ...], began: Any) -> None:
    """Main function of a worker: answers lists of commands until an empty one comes."""
    # Ctrl-C reaches the complete process group; the parent decides when a worker ends.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # Imported here, in the worker: an environment may print although the output is broken.
    from emerald_jax.process import SafeStream

    sys.stdout, sys.stderr = SafeStream(sys.stdout), SafeStream(sys.stderr)
    _die_with_parent()
    # A process that an environment starts must not keep the pipe open after this one has died.
    os.set_inheritable(pipe.fileno(), False)
    # An environment that uses JAX must leave the accelerator to the training process.
    os.environ["JAX_PLATFORMS"] = "cpu"
    with contextlib.suppress(OSError):  # standard output is for results
        os.dup2(2, 1)
    factories = _receive_factories(pipe, shape[0])
    group = InlineGroup(factories, shape[1:], np.frombuffer(buffer, np.uint8).reshape(shape))

    def obey(command: Command) -> Answer:
        began.value = time.monotonic()
        return group.obey(command)

    with contextlib.suppress(EOFError, OSError):  # the parent is gone
        commands: Sequence[Command] = pipe.recv()
        while commands:
            pipe.send([obey(command) for command in commands])
            while not pipe.poll(0) and group.work_ahead():
                pass
            commands = pipe.recv()
    group.close(0)


def _receive_factories(pipe: Connection, count: int) -> list[EnvFactory]:
    """The first message. Where it cannot be read here, every factory raises the reason."""
    try:
        return pipe.recv().fn
    except (EOFError, OSError):
        os._exit(0)  # the parent is gone
    except (Exception, SystemExit) as error:
        fault = FaultError.of(error)

        def fail() -> gymnasium.Env:
            raise fault

        return [fail] * count


def _die_with_parent() -> None:
    """End this process when its parent ends, for whatever reason.

    The thread works on every platform. On Linux, a signal from the kernel also ends a worker that
    hangs in C code; its sender is the fork server, which exits when the training process does.
    """
    parent = multiprocessing.parent_process()

    def wait() -> None:
        parent.join()
        os._exit(1)

    if parent is not None:
        threading.Thread(target=wait, daemon=True).start()
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


#: Held while a process starts: its surroundings are changed, and other threads may start some too.
_STARTING = threading.RLock()


@contextlib.contextmanager
def _single_threaded() -> Iterator[None]:
    """Processes started in this context use one thread each for BLAS, OpenMP and numba."""
    with _STARTING:
        before = {name: os.environ[name] for name in _ONE_THREAD if name in os.environ}
        os.environ.update(_ONE_THREAD)
        try:
            yield
        finally:
            for name in _ONE_THREAD:
                del os.environ[name]
            os.environ.update(before)


@contextlib.contextmanager
def _hidden_main() -> Iterator[None]:
    """Processes started in this context do not import the script that this process runs.

    It may import JAX, or lack the ``__main__`` guard. cloudpickle sends the script's own
    definitions by value, so nothing is missing.
    """
    with _STARTING:
        main = vars(sys.modules["__main__"])
        hidden = {name: main.pop(name) for name in ("__spec__", "__file__") if name in main}
        main["__spec__"] = None
        try:
            yield
        finally:
            main.update(hidden)
