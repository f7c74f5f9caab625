"""Files that survive: atomic writes, SHA-256 sums of a directory, one process per run directory.

``SHA256SUMS`` in a directory lists the digest of each of its files, as ``sha256sum`` writes it; it
is the only digest scheme of the package. Nothing here imports JAX.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import logging
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_log = logging.getLogger(__name__)

LOCK_FILE = "lock"
SUMS_FILE = "SHA256SUMS"
#: Files that have no digest in checkpoints of versions up to a5675e2; they hold only times.
_LATE = ("_CHECKPOINT_METADATA", "commit_success.txt")


class CheckpointError(RuntimeError):
    """Something saved cannot be used or written; the message is one line with a way out."""


class DamagedError(CheckpointError):
    """A saved file is missing, truncated or altered; an older one may still be intact."""


class RunInUseError(CheckpointError):
    """Another process uses this run directory."""


def write_atomic(path: Path, data: bytes | memoryview) -> None:
    """Write a complete file to disk; after a kill or a power cut the old content is still there.

    Parent directories are made. OSError when the disk is full or not writable.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # The process id keeps two processes from writing to the same draft.
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
    with contextlib.suppress(OSError):  # not every file system can sync a directory
        sync_directory(path.parent)


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file by :func:`write_atomic`."""
    write_atomic(path, (json.dumps(value, indent=2) + "\n").encode())


def sync_directory(path: Path) -> None:
    """Flush a directory to disk, so that a rename inside it survives a power cut."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def first_line(error: BaseException) -> str:
    """The error's first line, at most 160 characters (orbax prints complete trees)."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    if "RESOURCE_EXHAUSTED" in str(error):  # tensorstore's name for it
        return "No space left on device"
    lines = str(error).strip().splitlines()
    return (lines[0] if lines else type(error).__name__)[:160]


def file_digest(path: Path) -> str:
    """SHA-256 of a file in hex, read in blocks."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_sums(directory: Path) -> None:
    """Write SHA256SUMS of all files below ``directory``."""
    lines = [f"{file_digest(directory / name)}  {name}\n" for name in _files_of(directory)]
    write_atomic(directory / SUMS_FILE, "".join(lines).encode())


def check_sums(directory: Path, *, only: str = "") -> None:
    """Refuse a directory in which a file is missing, altered, or was added since write_sums.

    ``only`` names a single file to check. DamagedError names the bad one.
    """
    try:
        lines = (directory / SUMS_FILE).read_text(encoding="utf-8").splitlines()
        expected = {name: found for found, name in (line.split("  ", 1) for line in lines)}
        late = {name for name in _files_of(directory) if Path(name).name in _LATE} - {*expected}
        names = {only} if only else {*expected, *_files_of(directory)} - late
        for name in sorted(names):
            if not (directory / name).is_file():
                raise DamagedError(f"{name} is missing")
            if file_digest(directory / name) != expected.get(name):
                raise DamagedError(f"{name} is not the file that was written")
    except (OSError, ValueError) as error:
        raise DamagedError(f"its files cannot be checked: {first_line(error)}") from error


def _files_of(directory: Path) -> list[str]:
    """Names of all files below ``directory`` but SHA256SUMS, in a fixed order."""
    paths = sorted(p for p in directory.rglob("*") if p.is_file() and p.name != SUMS_FILE)
    return [str(path.relative_to(directory)) for path in paths]


@contextlib.contextmanager
def new_directory(target: Path) -> Iterator[Path]:
    """Make a directory that appears complete, by a rename, or not at all.

    ``target`` must not exist. Yields the draft to write to; SHA256SUMS is added at the end.
    """
    draft = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    shutil.rmtree(draft, ignore_errors=True)
    try:
        draft.mkdir(parents=True)
        yield draft
        write_sums(draft)
        os.rename(draft, target)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


class RunLock(contextlib.AbstractContextManager):
    """Locks a run directory for this process until :meth:`release` or until the process ends.

    The kernel ties the lock to the open file and drops it with its process, so no stale lock is
    left. The file itself stays; it holds the owner's process id for the error message.
    """

    def __init__(self, directory: str | Path) -> None:
        """Take the lock; the directory is made if it does not exist.

        RunInUseError if another process holds it, CheckpointError if it is not writable.
        """
        path = Path(directory) / LOCK_FILE
        self._handle: int | None = None
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            raise CheckpointError(f"{directory} cannot be written in: {error.strerror}") from error
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            owner = os.pread(handle, 32, 0).decode(errors="replace").strip() or "unknown"
            os.close(handle)
            raise RunInUseError(
                f"{directory} is in use by process {owner}: stop it, or choose another --logdir"
            ) from None
        except OSError as error:  # a network file system without locks
            _log.warning("%s has no file locks (%s): it is not locked", directory, error.strerror)
        with contextlib.suppress(OSError):  # on a full disk the message lacks the process id
            os.ftruncate(handle, 0)
            os.pwrite(handle, f"{os.getpid()}\n".encode(), 0)
        self._handle = handle
        # A forked worker would inherit the file descriptor and keep the lock after this process.
        os.register_at_fork(after_in_child=self.release)

    def release(self) -> None:
        """Release the lock; safe to call twice."""
        if self._handle is not None:
            os.close(self._handle)
            self._handle = None

    def __exit__(self, *_: object) -> None:
        self.release()
