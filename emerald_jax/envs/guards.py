"""Guards against what other people's environments may do and return.

Their code may raise, print, change the working directory or install signal handlers; their values
may have any form.
"""

from __future__ import annotations

import contextlib
import math
import numbers
import os
import signal
import sys
import traceback
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from emerald_jax.envs.base import FINITE, MAX_REWARD, EnvError

INLINE_HINT = "--envs.workers inline runs it in the training process"
_SIGNALS = (signal.SIGINT, signal.SIGTERM)
#: Larger arrays and deeper nestings are left out: a record is one line of a log.
_MAX_SIZE, _MAX_DEPTH = 1000, 20


def describe(error: BaseException) -> str:
    """An exception in one line."""
    return " ".join(f"{type(error).__name__}: {error}".split())


class FaultError(Exception):
    """An environment raised, hung, died or broke the interface; the message says which.

    Attributes:
        hopeless: a new environment would do the same; tried again only if this one has worked
            before. A note holds the traceback of an exception.
    """

    hopeless = False

    @classmethod
    def of(cls, error: BaseException) -> FaultError:
        """An exception in a form that can be sent to another process."""
        if isinstance(error, FaultError):
            return error
        if isinstance(error, EnvError):  # its message and notes say everything
            fault, notes = cls(f"failed: {error}"), getattr(error, "__notes__", [])
        else:
            fault = cls(f"raised {describe(error)}")
            notes = ["".join(traceback.format_exception(error))]
        for note in notes:
            fault.add_note(note)
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


class EnvScope:
    """Runs code of an environment; restores what belongs to this process afterwards.

    Signal handlers and the working directory stay ours. The environment's own working directory
    returns with its next call. What it prints goes to standard error. JAX, where it is in use, lets
    it copy between host and device as it likes.
    """

    def __init__(self):
        """The environment begins in our working directory."""
        self._directory: str | None = None  # its own, once it has changed it

    @contextlib.contextmanager
    def __call__(self) -> Iterator[None]:
        """Context in which the environment's code runs."""
        handlers = {number: signal.getsignal(number) for number in _SIGNALS}
        ours = _directory()
        if self._directory is not None:
            _change_directory(self._directory)
        before = _directory()
        jax = sys.modules.get("jax")
        guard = jax.transfer_guard("allow") if hasattr(jax, "transfer_guard") else None
        try:
            with guard or contextlib.nullcontext(), contextlib.redirect_stdout(sys.stderr):
                yield
        finally:
            after = _directory()
            if after != before:
                self._directory = after
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
    """``image``; refused when it is not uint8 of ``shape``.

    Raises:
        FaultError: with the type and shape; ``what`` is the call that returned it.
    """
    if not isinstance(image, np.ndarray) or image.shape != shape or image.dtype != np.uint8:
        raise FaultError.interface(
            f"gave {getattr(image, 'dtype', type(image).__name__)} "
            f"{list(getattr(image, 'shape', []))} at a {what}, not a uint8 image of {list(shape)}"
        )
    return image


def checked_reward(reward: Any) -> float:
    """``reward`` as a float; refused when it is not a finite float32 number.

    Raises:
        FaultError: with the value.
    """
    try:
        number = float(reward)
    except (TypeError, ValueError) as error:
        line = " ".join(repr(reward).split())[:80]
        raise FaultError.interface(f"gave the reward {line}, not a number") from error
    if not abs(number) <= MAX_REWARD:
        raise FaultError(f"gave the reward {number}: {FINITE}")
    return number


def plain_extra(value: Any) -> tuple[dict[str, Any], dict[str, str]]:
    """Make :attr:`Episode.extra` from ``info["extra"]``.

    ``achievements`` must be a dict of names and counts; everything else is kept under ``info``,
    so that no name of the user's can replace one of ours.

    Args:
        value: of any form.

    Returns:
        The plain values, and warnings (kind -> line) about values that cannot be used as they are.
    """
    warnings: dict[str, str] = {}
    if value is None:
        return {}, warnings
    if not isinstance(value, Mapping):
        kind = type(value).__name__
        warnings["extra"] = f'info["extra"] is a {kind}, not a dict: kept under info.value'
        value = {"value": value}
    extra: dict[str, Any] = {}
    rest = dict(value)
    if "achievements" in rest:
        counts = _counts(rest["achievements"])
        if counts is None:
            warnings["achievements"] = (
                f'info["extra"]["achievements"] is {_short(rest["achievements"])}, not a dict of '
                "names and counts: kept under info, without success rates"
            )
        else:
            del rest["achievements"]
            if counts:
                extra["achievements"] = counts
    info = _plain(rest, 'info["extra"]', 0, warnings)
    if info:
        extra["info"] = info
    return extra, warnings


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


def _plain(value: Any, path: str, depth: int, warnings: dict[str, str]) -> Any:
    """``value`` in JSON's types; None with a warning where there is no such form."""
    if hasattr(value, "tolist"):  # numpy, JAX, torch
        if getattr(value, "size", 1) is not None and np.size(value) > _MAX_SIZE:
            warnings[path] = f"{path} is an array of {np.size(value)} numbers: left out"
            return None
        value = value.tolist()
    if depth > _MAX_DEPTH:
        warnings[path] = f"{path} is nested deeper than {_MAX_DEPTH}: left out"
        return None
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return str(value)
    if isinstance(value, numbers.Integral):
        return int(value)
    if isinstance(value, numbers.Real):
        if math.isfinite(value):
            return float(value)
        warnings[path] = f"{path} holds {float(value)}: kept as null"
        return None
    if isinstance(value, Mapping):
        return {
            str(key): _plain(entry, f"{path}[{str(key)[:20]!r}]", depth + 1, warnings)
            for key, entry in value.items()
        }
    if isinstance(value, set | frozenset):
        value = sorted(value, key=str)
    if isinstance(value, list | tuple):
        return [_plain(entry, f"{path}[...]", depth + 1, warnings) for entry in value]
    warnings[path] = f"{path} is a {type(value).__name__}, which JSON cannot hold: left out"
    return None


def _short(value: Any) -> str:
    return " ".join(repr(value).split())[:40]
