"""How a file gets onto the disk whole, or not at all. Nothing here imports JAX."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path


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
