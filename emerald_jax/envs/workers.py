"""Environment worker processes: how they start, what they may do, how they end.

Workers never import JAX (nothing on their import path does), never fork from a process with
threads, never use more than one thread for arithmetic, and never outlive their parent.
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
from collections.abc import Iterator, Sequence
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

import numpy as np
from gymnasium.vector.utils import CloudpickleWrapper

from emerald_jax.envs.seats import EnvFactory, Reply, SeatError, Spaces, describe, fault_of, play

_THREADS = (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "NUMBA_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
)
_PR_SET_PDEATHSIG = 1
_FORK_SERVER = "emerald_jax.envs.fork_server"


class _Failure(NamedTuple):
    """What a worker says last when its environment raised; see :func:`describe`."""

    line: str
    trace: str


class WorkerSeat:
    """An environment in a process of its own, its images in shared memory; see :class:`Seat`.

    Attributes:
        process: the worker, once started.
    """

    def __init__(self, factory: EnvFactory, shape: tuple[int, ...], preload: Sequence[str] = ()):
        """Nothing starts before :meth:`start`.

        Args:
            factory: makes the environment; picklable by cloudpickle.
            shape: of the images it must show.
            preload: modules imported once for all workers, where the platform allows it.
        """
        methods = multiprocessing.get_all_start_methods()
        method = "forkserver" if "forkserver" in methods else "spawn"
        self._context = multiprocessing.get_context(method)
        if method == "forkserver":
            # Replaces the default ["__main__"], which would import the user's script, and JAX
            # with it, into every worker.
            self._context.set_forkserver_preload([_FORK_SERVER, __name__, *preload])
        self._factory = CloudpickleWrapper(factory)
        self._shape = shape
        self._buffer = self._context.RawArray("B", math.prod(shape))
        self._pipe: Connection | None = None
        self._spaces: Spaces | None = None
        self.process: multiprocessing.process.BaseProcess | None = None

    def start(self) -> None:
        """See :class:`Seat`."""
        # The fork server has its variables since the first start; changing them later, beside
        # the threads of a training run, is not safe.
        again = self.process is not None and self._context.get_start_method() == "forkserver"
        self.close(0)
        self._spaces = None
        self._pipe, theirs = self._context.Pipe()
        with contextlib.nullcontext() if again else _single_threaded(), _hidden_main():
            self.process = self._context.Process(
                target=_work,
                args=(theirs, self._factory, self._buffer, self._shape),
                name="emerald_jax environment",
                daemon=True,
            )
            self.process.start()
        theirs.close()

    def ready(self, seconds: float) -> Spaces:
        """See :class:`Seat`."""
        if self._spaces is None:
            self._spaces = self._answer(seconds)
        return self._spaces

    def send(self, command: str, value: int | None) -> None:
        """See :class:`Seat`."""
        # That a worker is dead is told by receive.
        with contextlib.suppress(OSError):
            self._pipe.send((command, value))

    def receive(self, seconds: float) -> Reply:
        """See :class:`Seat`."""
        deadline = time.monotonic() + seconds
        self.ready(seconds)
        reply = self._answer(max(deadline - time.monotonic(), 0))
        image = np.frombuffer(self._buffer, np.uint8).reshape(self._shape)
        return reply._replace(image=image)

    def ask_to_close(self) -> None:
        """See :class:`Seat`."""
        if self._pipe is not None:
            self.send("close", None)

    def close(self, deadline: float) -> None:
        """See :class:`Seat`. Never waits for a pending step beyond ``deadline``."""
        if self._pipe is None:
            return
        self.process.join(max(deadline - time.monotonic(), 0))
        self.process.kill()
        self.process.join()
        self._pipe.close()
        self._pipe = None

    def _answer(self, seconds: float) -> Any:
        """The worker's next message.

        Raises:
            SeatError: when there is none, or it tells of an exception.
        """
        try:
            if not self._pipe.poll(seconds):
                raise SeatError("gave no answer within envs.worker_timeout")
            message = self._pipe.recv()
        except (EOFError, OSError) as error:
            self.process.join(1.0)
            raise SeatError(f"died ({_ending(self.process.exitcode)})") from error
        if isinstance(message, _Failure):
            raise fault_of(*message)
        return message


def _ending(code: int | None) -> str:
    return f"killed by signal {-code}" if code is not None and code < 0 else f"exit code {code}"


def _work(
    pipe: Connection, factory: CloudpickleWrapper, buffer: Any, shape: tuple[int, ...]
) -> None:
    """Body of a worker process."""
    # Ctrl-C reaches the whole process group; the parent decides when a worker ends.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _die_with_parent()
    frame = np.frombuffer(buffer, np.uint8).reshape(shape)
    try:
        env = factory.fn()
        pipe.send(Spaces(env.observation_space, env.action_space))
        while (message := pipe.recv())[0] != "close":
            reply = play(env, shape, *message)
            frame[...] = reply.image
            pipe.send(reply._replace(image=None))
        env.close()
    except Exception as error:
        # Nobody listens any more when the parent is gone.
        with contextlib.suppress(OSError):
            pipe.send(_Failure(*describe(error)))


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
