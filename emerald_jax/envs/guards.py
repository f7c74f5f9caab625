"""Guards against other people's environments: they may do anything and return anything."""

from __future__ import annotations

import contextlib
import math
import numbers
import os
import signal
import sys
import threading
import traceback
from collections.abc import Iterator, Mapping
from typing import Any, TypeVar

import numpy as np

from emerald_jax.envs.base import FINITE, MAX_REWARD, EnvError

INLINE_HINT = "--envs.workers inline runs it in the training process"
_Error = TypeVar("_Error", bound=BaseException)
_SIGNALS = (signal.SIGINT, signal.SIGTERM)
#: The working directory of environments in this process, once they have changed it.
_CHANGED: list[str] = []
#: Several seeds are trained in threads; what is restored belongs to the whole process.
_ONE_AT_A_TIME = threading.RLock()
#: A record is one line of a log: more values, deeper levels and longer texts are left out.
_MAX_VALUES, _MAX_DEPTH, _MAX_TEXT = 1000, 20, 10_000


def describe(error: BaseException) -> str:
    """An exception in one line."""
    return " ".join(f"{type(error).__name__}: {error}".split())


def with_notes(error: _Error, other: BaseException) -> _Error:
    """``error`` with the notes of ``other``, such as an environment's traceback."""
    for note in getattr(other, "__notes__", ()):
        error.add_note(note)
    return error


class FaultError(Exception):
    """An environment raised, hung, died or broke the interface.

    The message is one line that continues "environment 3 ..."; a note may hold a traceback. If it
    is ``hopeless``, a new environment would do the same: none is tried unless others have worked.
    """

    hopeless = False

    @classmethod
    def of(cls, error: BaseException) -> FaultError:
        """An exception in a form that can be sent to another process."""
        if isinstance(error, FaultError):
            return error
        if isinstance(error, EnvError):  # its message and notes are complete
            fault = with_notes(cls(f"failed: {error}"), error)
        else:
            fault = cls(f"raised {describe(error)}")
            fault.add_note("".join(traceback.format_exception(error)))
        if "daemonic processes are not allowed" in str(fault):
            fault.hopeless = True
            if INLINE_HINT not in str(fault):
                fault.args = (f"{fault}; {INLINE_HINT}",)
        return fault

    @classmethod
    def interface(cls, message: str) -> FaultError:
        """An answer that no environment may give."""
        fault = cls(message)
        fault.hopeless = True
        return fault


@contextlib.contextmanager
def env_code() -> Iterator[None]:
    """Context for code of an environment; restores what belongs to this process afterwards.

    Signal handlers and the working directory stay ours; a directory that the environment changed to
    returns with its next call. What it prints goes to standard error. JAX, where it is in use, lets
    it copy between host and device as it likes.
    """
    with _ONE_AT_A_TIME:
        handlers = {number: signal.getsignal(number) for number in _SIGNALS}
        ours = _directory()
        for theirs in _CHANGED:
            _change_directory(theirs)
        before = _directory()
        jax = sys.modules.get("jax")
        guard = jax.transfer_guard("allow") if hasattr(jax, "transfer_guard") else None
        try:
            with guard or contextlib.nullcontext(), contextlib.redirect_stdout(sys.stderr):
                yield
        finally:
            after = _directory()
            if after != before:
                _CHANGED[:] = [after] if after else []
            if after != ours and ours is not None:
                _change_directory(ours)
            for number, handler in handlers.items():
                if handler is not None and signal.getsignal(number) is not handler:
                    with contextlib.suppress(ValueError):  # not the main thread
                        signal.signal(number, handler)


def _directory() -> str | None:
    """The working directory; None when it has been deleted."""
    try:
        return os.getcwd()
    except OSError:
        return None


def _change_directory(directory: str) -> None:
    with contextlib.suppress(OSError):  # it may have been deleted
        os.chdir(directory)


def checked_image(image: Any, shape: tuple[int, ...], what: str) -> np.ndarray:
    """``image`` from the call ``what``; FaultError if it is not uint8 of ``shape``."""
    if not isinstance(image, np.ndarray) or image.shape != shape or image.dtype != np.uint8:
        raise FaultError.interface(
            f"gave {getattr(image, 'dtype', type(image).__name__)} "
            f"{list(getattr(image, 'shape', []))} at a {what}, not a uint8 image of {list(shape)}"
        )
    return image


def checked_reward(reward: Any) -> float:
    """``reward`` as a float; FaultError with the value if it is not a finite float32 number."""
    try:
        number = float(reward.item() if isinstance(reward, np.ndarray) else reward)
    except (TypeError, ValueError) as error:
        line = " ".join(repr(reward).split())[:80]
        raise FaultError.interface(f"gave the reward {line}, not a number") from error
    if not abs(number) <= MAX_REWARD:
        raise FaultError(f"gave the reward {number}: {FINITE}")
    return number


def plain_extra(value: Any) -> tuple[dict[str, Any], dict[str, str]]:
    """:attr:`Episode.extra` from ``info["extra"]`` of any form, and warnings (kind -> line).

    ``achievements`` must be a dict of names and counts; everything else is kept under ``info``,
    so that no name of the user's can replace one of ours.
    """
    converter = _Converter()
    try:
        return {} if value is None else converter.extra(value), converter.warnings
    except Exception as error:  # the user's types may raise anything
        return {}, {"extra": f'info["extra"] cannot be read: {describe(error)}'}


class _Converter:
    """Converts one ``info["extra"]`` to JSON's types, with warnings about changed values."""

    def __init__(self):
        self.warnings: dict[str, str] = {}
        self._left = _MAX_VALUES

    def extra(self, value: Any) -> dict[str, Any]:
        if not isinstance(value, Mapping):
            kind = type(value).__name__
            self.warnings["extra"] = f'info["extra"] is a {kind}, not a dict: kept under info.value'
            value = {"value": value}
        extra, rest = {}, dict(value)
        if "achievements" in rest:
            counts = _counts(rest["achievements"])
            if counts is None:
                short = " ".join(repr(rest["achievements"]).split())[:40]
                self.warnings["achievements"] = (
                    f'info["extra"]["achievements"] is {short}, not a dict of names and counts: '
                    "kept under info, without success rates"
                )
            else:
                del rest["achievements"]
                extra = {"achievements": counts} if counts else {}
        info = self.plain(rest, 'info["extra"]')
        return extra | ({"info": info} if info else {})

    def plain(self, value: Any, path: str, depth: int = 0) -> Any:
        """``value`` in JSON's types; None with a warning where it has no such form."""
        self._left -= 1
        if self._left < 0:
            return self._without(path, f"more than {_MAX_VALUES} values")
        if depth > _MAX_DEPTH:
            return self._without(path, f"more than {_MAX_DEPTH} levels")
        if hasattr(value, "tolist"):  # numpy, JAX, torch
            array = np.asarray(value)
            if array.size > self._left:
                return self._without(path, f"an array of {array.size} numbers")
            value = array.tolist()
        if isinstance(value, Mapping):
            return {
                str(key): self.plain(entry, f"{path}[{str(key)[:20]!r}]", depth + 1)
                for key, entry in value.items()
                if self._left >= 0
            }
        if isinstance(value, set | frozenset):
            value = sorted(value, key=str)
        if isinstance(value, list | tuple):
            path = f"{path}[...]"
            return [self.plain(entry, path, depth + 1) for entry in value if self._left >= 0]
        return self._scalar(value, path)

    def _scalar(self, value: Any, path: str) -> Any:
        if value is None or isinstance(value, bool):
            return value
        if isinstance(value, str):
            return str(value) if len(value) < _MAX_TEXT else self._without(path, "a long text")
        if isinstance(value, numbers.Integral):
            return int(value) if abs(value) < 2**63 else self._without(path, "a long number")
        if isinstance(value, numbers.Real):
            number = float(value)
            return number if math.isfinite(number) else self._without(path, str(number))
        return self._without(path, f"a {type(value).__name__}, which JSON cannot hold")

    def _without(self, path: str, what: str) -> None:
        self.warnings[path[:60]] = f"{path[:60]} holds {what}: left out"


def _counts(value: Any) -> dict[str, int] | None:
    """Name -> times unlocked, or None if ``value`` is something else."""
    if not isinstance(value, Mapping):
        return None
    counts = {}
    for name, times in value.items():
        if isinstance(times, np.ndarray | np.generic) and times.size == 1:
            times = times.item()
        if not isinstance(times, numbers.Real) or not 0 <= times < 2**53 or times != int(times):
            return None
        counts[str(name)] = int(times)
    return counts
