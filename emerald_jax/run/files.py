"""How a file gets onto the disk whole, or not at all. Nothing here imports JAX.

What a flipped bit must not turn into wrong data: digests, and the errors of what is saved.

A *digest* is a SHA-256 in hex, so anyone can check one with standard tools. A *sealed* JSON object
carries the digest of its own content.

One process per run directory.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import logging
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any

import jax
import numpy as np


def write_atomic(path: Path, data: bytes | memoryview) -> None:
    """Write a file whole and onto the disk: a kill or a power cut leaves the old one, or none.

    Args:
        path: the file; replaced if it exists, its folders made if they do not.
        data: its content.

    Raises:
        OSError: when the disk is full or cannot be written; ``path`` is as it was.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # The process id keeps two processes from writing into one another's half-made file.
    draft = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with draft.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(draft, path)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise
    # The file is there; that its name survives a power cut, not every file system can promise.
    with contextlib.suppress(OSError):
        sync_directory(path.parent)


def sync_directory(path: Path) -> None:
    """Put the names in a directory on the disk, so that a rename survives a power cut."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


#: hashlib releases the interpreter, so the digests of many leaves are taken side by side.
_HASHERS = min(8, os.cpu_count() or 1)


class CheckpointError(RuntimeError):
    """Something saved cannot be used or written; the message is one line that says what to do."""


class DamagedError(CheckpointError):
    """A saved file is missing, truncated or altered; an older one may do."""


def file_digest(path: Path) -> str:
    """SHA-256 of a file in hex, read piece by piece.

    Raises:
        OSError: if it cannot be read.
    """
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def first_line(error: BaseException) -> str:
    """The error's first line, at most 160 characters: orbax prints whole trees of leaves."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    if "RESOURCE_EXHAUSTED" in str(error):  # tensorstore's word for it
        return "No space left on device"
    lines = str(error).strip().splitlines()
    return (lines[0] if lines else type(error).__name__)[:160]


def digest(data: bytes | memoryview) -> str:
    """SHA-256 of ``data`` in hex."""
    return hashlib.sha256(data).hexdigest()


def seal(content: dict[str, Any]) -> dict[str, Any]:
    """``content`` in JSON's own types, with its digest.

    Args:
        content: JSON values only.

    Raises:
        TypeError: on a value that JSON cannot hold.
    """
    content = json.loads(json.dumps(content))
    return {"sha256": digest(_canonical(content)), "content": content}


def unseal(sealed: Any) -> dict[str, Any]:
    """The content of :func:`seal`.

    Raises:
        DamagedError: if it is not what was sealed.
    """
    if not isinstance(sealed, dict) or not isinstance(sealed.get("content"), dict):
        raise DamagedError("it is not what was written")
    if sealed.get("sha256") != digest(_canonical(sealed["content"])):
        raise DamagedError("its digest does not match")
    return sealed["content"]


def _canonical(content: dict[str, Any]) -> bytes:
    """One spelling per content: JSON keeps floats and integers of any size exactly."""
    return json.dumps(content, sort_keys=True, separators=(",", ":")).encode()


def named_leaves(tree: Any) -> dict[str, Any]:
    """Leaves by name, such as ``params/actor/out/kernel``; the same for a tree of plain dicts.

    Args:
        tree: any pytree; dict keys, attributes and indices all become one path component.
    """
    paths, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {jax.tree_util.keystr(k, simple=True, separator="/"): leaf for k, leaf in paths}


def describe_leaves(leaves: dict[str, np.ndarray]) -> dict[str, dict[str, Any]]:
    """Shape, dtype and digest of each leaf, as JSON values.

    Args:
        leaves: name -> array in host memory.
    """
    with ThreadPoolExecutor(_HASHERS) as pool:
        digests = pool.map(_leaf_digest, leaves.values())
        return {
            name: {"shape": list(x.shape), "dtype": str(x.dtype), "sha256": found}
            for (name, x), found in zip(leaves.items(), digests, strict=True)
        }


def _leaf_digest(array: np.ndarray) -> str:
    """Digest of the bytes in C order; uint8 because not every dtype has a buffer (bfloat16)."""
    return digest(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)


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
