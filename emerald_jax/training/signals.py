"""SIGTERM and SIGINT: the first asks a run to save and stop, a second one ends it immediately.

Python runs signal handlers between two of its own instructions, so a signal that arrives during a
long computation, a compilation or a save waits for its end: fine for the first signal, but not for
the second. So the interpreter also writes every signal into a socket, and a thread reads it there.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

SIGNALS = (signal.SIGTERM, signal.SIGINT)

#: A second signal within this time counts as the first: ``timeout`` and some schedulers signal the
#: process and then its process group.
ECHO_S = 0.5


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
