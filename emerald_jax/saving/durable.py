"""What a flipped bit must not turn into wrong data: digests, and the errors of what is saved.

A *digest* is a SHA-256 in hex, so anyone can check one with standard tools. A *sealed* JSON object
carries the digest of its own content.
"""

from __future__ import annotations

import hashlib
import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import numpy as np

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
