"""One process per run directory."""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
from pathlib import Path
from types import TracebackType

from emerald_jax.saving.durable import CheckpointError

_log = logging.getLogger(__name__)

LOCK_FILE = "lock"


class RunInUseError(CheckpointError):
    """Another process works in this run directory."""


class RunLock:
    """Holds a run directory for this process until :meth:`release`, or until the process dies.

    The kernel keeps the lock with the open file and drops it when its owner is gone, killed or not,
    so no stale lock is ever left. The file itself stays and means nothing; it holds the owner's
    process id for the message.
    """

    def __init__(self, directory: str | Path) -> None:
        """Take the lock.

        Args:
            directory: the run directory; made if it does not exist.

        Raises:
            RunInUseError: if another process holds it.
            CheckpointError: if the directory cannot be written in.
        """
        self.path = Path(directory) / LOCK_FILE
        self._handle: int | None = None
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            handle = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            raise CheckpointError(f"{directory} cannot be written in: {error.strerror}") from error
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            owner = os.pread(handle, 32, 0).decode(errors="replace").strip() or "unknown"
            os.close(handle)
            raise RunInUseError(
                f"{directory} is in use by process {owner}: "
                "wait for it, stop it, or choose another --logdir"
            ) from None
        except OSError as error:  # a network file system without locks
            _log.warning("%s has no file locks (%s): nothing guards it", directory, error.strerror)
        with contextlib.suppress(OSError):  # on a full disk the message lacks the number, no more
            os.ftruncate(handle, 0)
            os.pwrite(handle, f"{os.getpid()}\n".encode(), 0)
        self._handle = handle
        # A forked worker would share the open file, and outlive us with the lock in its hand.
        os.register_at_fork(after_in_child=self._close)

    def release(self) -> None:
        """Let go; safe to call twice."""
        self._close()

    def _close(self) -> None:
        if self._handle is not None:
            os.close(self._handle)
            self._handle = None

    def __enter__(self) -> RunLock:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.release()
