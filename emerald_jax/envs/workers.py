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
from typing import Any

import numpy as np
from gymnasium.vector.utils import CloudpickleWrapper

from emerald_jax.envs.seats import Answer, Command, EnvFactory, SeatError, Table

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
