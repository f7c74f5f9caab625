"""The process of a command: its streams, limits and signals. Nothing here imports JAX.

Output that cannot be written (full disk, closed pipe, closed stream, characters that the encoding
lacks) must not end a training run, so standard output and error become :class:`SafeStream`.

The first SIGTERM or SIGINT asks a run to save and stop, a second one ends it immediately. Python
runs signal handlers between two of its own instructions, so a signal that arrives during a long
computation, a compilation or a save waits for its end: fine for the first signal, but not for the
second. So the interpreter also writes every signal into a socket, and a thread reads it there.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import resource
import signal
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TextIO

from emerald_jax.config import ConfigError

#: Open files that a run with many environments and checkpoints needs.
_FILES = 4096
#: Longest temporary directory: the path of a socket has at most 107 bytes, and multiprocessing
#: appends /pymp-xxxxxxxx/listener-xxxxxxxx to it.
_SOCKET_DIRECTORY = 70
#: Errors of the machine, not of the program: reported in one line.
_REASONS = {errno.EMFILE: "raise the limit with ulimit -n", errno.ENFILE: "close other programs"}
_MACHINE = {*_REASONS, errno.EACCES, errno.EPERM, errno.EROFS, errno.EDQUOT, errno.ENOSPC}
_MACHINE |= {errno.ENAMETOOLONG}
SIGNALS = (signal.SIGTERM, signal.SIGINT)
#: Exit code of a run that a signal stopped: saved; the same command continues it.
INTERRUPTED = 75

#: A second signal within this time counts as the first: ``timeout`` and some schedulers signal the
#: process and then its process group.
ECHO_S = 0.5


class SafeStream:
    """A text stream whose last write error is kept in ``error`` instead of raised.

    Text is written again as soon as the stream accepts it, for example when a disk has room.
    """

    def __init__(self, stream: TextIO | None) -> None:
        """Wrap a stream; None, as in a process without standard output, discards all text."""
        self.error: Exception | None = None
        self._stream = stream
        # Characters that the encoding lacks become "?".
        with contextlib.suppress(AttributeError, ValueError, OSError):
            stream.reconfigure(errors="replace")

    def write(self, text: str) -> int:
        """Write ``text``; returns its length, also when it is lost."""
        self._try("write", text)
        return len(text)

    def flush(self) -> None:
        """Write buffered text."""
        self._try("flush")

    def isatty(self) -> bool:
        """Whether the stream is a terminal."""
        with contextlib.suppress(AttributeError, ValueError, OSError):
            return self._stream.isatty()
        return False

    def _try(self, name: str, *arguments: Any) -> None:
        if self._stream is not None:
            try:
                getattr(self._stream, name)(*arguments)
            except (OSError, ValueError) as error:  # ValueError: closed by other code
                self.error = error

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextlib.contextmanager
def safe_output() -> Iterator[SafeStream]:
    """Make standard output (yielded) and error safe; they are restored at the end."""
    # A closed standard file becomes the null device: otherwise a checkpoint may get descriptor 2,
    # to which libraries write their warnings.
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free descriptor: this one
    before = sys.stdout, sys.stderr
    safe = SafeStream(sys.stdout), SafeStream(sys.stderr)
    sys.stdout, sys.stderr = safe
    try:
        yield safe[0]
    finally:
        sys.stdout, sys.stderr = before
        for stream, descriptor in zip(safe, (1, 2), strict=True):
            stream.flush()
            with contextlib.suppress(AttributeError, ValueError, OSError):
                # Python writes the rest of the buffer when it exits, and would fail again.
                if stream.error is not None and stream.fileno() == descriptor:
                    null = os.open(os.devnull, os.O_WRONLY)
                    os.dup2(null, descriptor)
                    os.close(null)


def prepare_process() -> None:
    """Raise the limit of open files and choose a temporary directory for sockets.

    ConfigError when the working directory was deleted, or there is no such directory.
    """
    try:
        os.getcwd()
    except OSError as error:
        reason = f"the working directory cannot be used ({error.strerror})"
        raise ConfigError(f"{reason}: change to another one") from error
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _FILES if hard == resource.RLIM_INFINITY else min(_FILES, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    folder = tempfile.gettempdir()
    if len(os.fsencode(folder)) > _SOCKET_DIRECTORY:
        if not os.access("/tmp", os.W_OK | os.X_OK):
            raise ConfigError(f"{folder} is too long for a socket: set TMPDIR to a shorter path")
        tempfile.tempdir = "/tmp"


def expand_home(arguments: Sequence[str]) -> list[str]:
    """Expand ``~`` at the start of command-line arguments and of ``--name=~/path``.

    ConfigError when there is no such home directory.
    """
    expanded = []
    for argument in arguments:
        name, path = re.fullmatch(r"(--[^=]*=|)(.*)", argument, re.DOTALL).groups()
        full = os.path.expanduser(path)
        if full.startswith("~"):
            raise ConfigError(f"{argument}: there is no such home directory, give the full path")
        expanded.append(name + full)
    return expanded


def machine_error(error: BaseException) -> str:
    """One line for an error that the machine caused, such as a full disk; empty for others."""
    if not isinstance(error, OSError):
        return ""
    if error.errno not in _MACHINE and "No usable temporary" not in str(error.strerror):
        return ""
    parts = [str(error.filename or ""), error.strerror, _REASONS.get(error.errno, "")]
    return ": ".join(part for part in parts if part)


class StoppedError(Exception):
    """A signal asked to stop where nothing needs to be saved; the message is its name."""


class StopSignals:
    """Handles SIGTERM and SIGINT inside a ``with`` block, in the main thread only.

    Attributes:
        name: name of the first signal, such as ``SIGTERM``; None before it arrives.
        tell: called with that name, from a thread of its own.
    """

    def __init__(self, tell: Callable[[str], None] = lambda text: None) -> None:
        self.name: str | None = None
        self.tell = tell
        self._first = 0.0
        self._before: dict[int, Any] = {}

    def check(self) -> None:
        """Raise StoppedError if a signal has arrived; call it where nothing needs to be saved."""
        if self.name:
            raise StoppedError(self.name)

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():
            self._ours, theirs = socket.socketpair()
            theirs.setblocking(False)
            self._theirs = theirs
            # Also where SIGINT was ignored, as in a command that a script starts with "&".
            self._before = {number: signal.signal(number, self._note) for number in SIGNALS}
            self._fd_before = signal.set_wakeup_fd(theirs.fileno(), warn_on_full_buffer=False)
            threading.Thread(target=self._watch, daemon=True, name="signals").start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        if self._before:
            signal.set_wakeup_fd(self._fd_before)
            for number, handler in self._before.items():
                signal.signal(number, handler)
            self._before = {}
            self._theirs.close()  # ends the thread

    def _note(self, number: int, frame: Any) -> None:
        del frame
        self.name = self.name or signal.Signals(number).name

    def _watch(self) -> None:
        """Body of the thread: announce the first signal, exit at the second."""
        with contextlib.closing(self._ours):
            while received := self._ours.recv(1):
                number = received[0]
                if number not in SIGNALS:
                    continue
                now = time.monotonic()
                if not self._first:
                    self._first = now
                    self._note(number, None)
                    with contextlib.suppress(Exception):  # for example a closed terminal
                        self.tell(self.name)
                elif now - self._first > ECHO_S:
                    leave_at_once(128 + number)


def leave_at_once(code: int) -> None:
    """End the process immediately; files on disk are complete, and workers die with it."""
    if sys.stderr is not None and sys.stderr.isatty():
        os.write(2, b"\x1b[?25h\n")  # the progress bar hides the cursor
    os._exit(code)
