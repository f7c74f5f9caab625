"""The replay on disk: chunks of rows that are written once and never changed.

A chunk is one ``.npz`` of the columns of successive rows, named by its rows and digest, readable
with plain ``numpy.load``. A *manifest* (JSON values, part of a checkpoint's metadata) lists the
chunks of one checkpoint with their SHA-256, so replay and parameters are one consistent point.
Rows written after the last checkpoint are in no manifest, so a resumed run does not see them.

A row is a vector step; actions, rewards and images are aligned as in ``replay/store.py``.
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np

from emerald_jax.replay import COLUMNS, Replay
from emerald_jax.run.directory import CheckpointError, DamagedError, first_line, write_atomic
from emerald_jax.run.hosts import ALONE, Hosts

_log = logging.getLogger(__name__)

#: Size of a full chunk; two of them are in memory while one is written or read.
_CHUNK_BYTES = 32 * 2**20
#: A last chunk smaller than this share of a full one is merged with the rows that follow it, so
#: that frequent checkpoints do not leave thousands of files.
_SMALL = 0.25


class ReplayFiles:
    """The chunks in one directory: saves and loads a replay. Not thread-safe, like the replay."""

    def __init__(self, directory: str | Path, hosts: Hosts = ALONE) -> None:
        """Nothing is read or written yet; the directory is made at the first write.

        Several hosts share the directory: the replay of each holds some of the environments, and
        its chunks are in a folder named by them. All have the same rows.
        """
        self.directory, self._hosts = Path(directory), hosts
        self._chunks: list[dict[str, Any]] = []  # of this run's history, by rising rows
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="replay-files")
        self._job: Future[dict[str, Any]] | None = None
        self._ahead = True  # False after a write ahead failed, until a save succeeds

    def advance(self, replay: Replay) -> None:
        """Write a full chunk in the background, if there is one and none is being written.

        Optional, and cheap when there is nothing to do: it makes :meth:`save` short. Give it
        always the same replay.
        """
        if self.writing():
            return
        self._collect()
        if not self._ahead:
            return
        size = _chunk_rows(replay)
        start = self._chunks[-1]["stop"] if self._chunks else 0
        for low, high in replay.spans():
            low = max(low, start)
            if high - low >= size:
                rows = _copy_rows(replay, low, low + size)
                self._job = self._writer.submit(self._write, rows, low, low + size)
                return

    def writing(self) -> bool:
        """Whether a chunk is being written in the background."""
        return self._job is not None and not self._job.done()

    def save(self, replay: Replay) -> dict[str, Any] | None:
        """Write the rows that are not on disk yet; give it always the same replay.

        Returns the manifest of the replay as it is now, or None, with a warning, if the disk is
        full or cannot be written.
        """
        self._collect()
        try:
            self._write_new_rows(replay)
        except OSError as error:
            text = "the replay cannot be written to %s (%s)"
            _log.warning(text, self.directory, first_line(error))
            return None
        self._ahead = True
        manifest = {"written": replay.written, "oldest": replay.oldest}
        self._num_envs = replay.num_envs
        num_envs = replay.num_envs * self._hosts.count
        manifest |= {"num_envs": num_envs, "image_shape": list(replay.image_shape)}
        manifest |= {"action_sizes": list(replay.action_sizes)} if replay.action_sizes else {}
        return {**manifest, "chunks": [dict(chunk) for chunk in self._chunks]}

    def load(self, manifest: dict[str, Any], replay: Replay) -> tuple[str, ...]:
        """Fill an empty replay, whose capacity may differ, with one chunk in memory at a time.

        A chunk that is missing, truncated or altered is skipped with a warning; its rows become a
        hole, at which episodes are cut. Returns the file names of such chunks. CheckpointError if
        the manifest is of other environments or images. Another number of hosts may have written
        it: the environments are dealt again, and the next save writes all rows.
        """
        for name in ("num_envs", "image_shape", "action_sizes"):
            theirs, ours = manifest.get(name, []), getattr(replay, name)
            ours = ours * self._hosts.count if name == "num_envs" else ours
            if theirs != (ours if name == "num_envs" else list(ours)):
                raise CheckpointError(
                    f"the replay in {self.directory} has {name} {theirs}, this run {ours}: use "
                    "the settings it was saved with"
                )
        written = manifest["written"]
        oldest = max(manifest["oldest"], written - replay.rows)
        self._chunks, lost = [], []
        mine = self._mine(replay.num_envs)
        held = np.zeros(written - oldest, np.int64)  # records of every row
        for chunk in manifest["chunks"]:
            first, last = chunk.get("envs", [0, manifest["num_envs"]])
            both = range(max(first, mine.start), min(last, mine.stop))
            if chunk["stop"] <= oldest or not both:
                continue
            try:
                self._read_into(replay, chunk, oldest, both, first)
            except DamagedError as error:
                _log.warning("replay chunk %s is skipped: %s", chunk["file"], error)
                lost.append(chunk["file"])
                continue
            held[max(chunk["start"] - oldest, 0) : chunk["stop"] - oldest] += len(both)
            if range(first, last) == mine:
                self._chunks.append(dict(chunk))
        edges = np.flatnonzero(np.diff(held < replay.num_envs, prepend=False, append=False))
        holes = [(int(a) + oldest, int(b) + oldest) for a, b in edges.reshape(-1, 2)]
        replay.restore(written=written, oldest=oldest, holes=holes)
        if lost:
            gone = sum(stop - start for start, stop in holes)
            _log.warning("%d replay chunks were lost, %d of %d rows", len(lost), gone, written)
        return tuple(lost)

    def checker(self) -> Callable[[dict[str, Any]], bool]:
        """A function of a manifest's chunk: whether its file is intact; each is read once."""

        @cache
        def intact(chunk: str) -> bool:
            try:
                _read_checked(self.directory, json.loads(chunk))
            except DamagedError:
                return False
            return True

        return lambda chunk: intact(json.dumps(chunk))

    def prune(self, manifests: Iterable[dict[str, Any]]) -> None:
        """Delete the chunks that neither this run nor the manifests of its checkpoints need."""
        if not self.directory.is_dir() or self.writing():
            return  # a chunk being written has no name yet; the next prune deletes
        self._collect()
        manifests = [*manifests, {"chunks": self._chunks}]
        needed = {chunk["file"] for manifest in manifests for chunk in manifest["chunks"]}
        for folder in self._own_folders():
            for path in [*folder.glob("*.npz"), *folder.glob("*.tmp")]:
                if path.relative_to(self.directory).as_posix() not in needed:
                    path.unlink(missing_ok=True)
            if folder != self.directory:
                with contextlib.suppress(OSError):  # it is not empty
                    folder.rmdir()

    def _own_folders(self) -> list[Path]:
        """Folders in which this host deletes chunks: its own, and on the first all unused ones."""
        known = [self.directory, *self.directory.glob("envs-*")]
        if self._hosts.count == 1:
            return known
        count, each = self._hosts.count, self._num_envs
        used = [self.directory / _folder_of(range(i * each, (i + 1) * each)) for i in range(count)]
        own = used[self._hosts.index]
        return [own, *(f for f in known if f not in used)] if self._hosts.first else [own]

    def close(self) -> None:
        """Finish what is being written; safe to call twice."""
        self._collect()
        self._writer.shutdown()

    def _collect(self) -> None:
        """Add the chunk written in the background to the list; if it failed, drop it."""
        job, self._job = self._job, None
        if job is None:
            return
        try:
            self._chunks.append(job.result())
        except OSError as error:
            _log.debug("a replay chunk could not be written ahead", exc_info=error)
            self._ahead = False

    def _write_new_rows(self, replay: Replay) -> None:
        """Extend :attr:`_chunks` to the newest row; it stays valid when a write fails."""
        self._chunks = [c for c in self._chunks if c["stop"] > replay.oldest]
        size = _chunk_rows(replay)
        start, small = self._chunks[-1]["stop"] if self._chunks else 0, 0
        if self._chunks and replay.written > start:
            last = self._chunks[-1]
            held = any(low <= last["start"] and last["stop"] < high for low, high in replay.spans())
            if held and last["stop"] - last["start"] < _SMALL * size:
                start, small = last["start"], 1
        for low, high in replay.spans():
            for first in range(max(low, start), high, size):
                stop = min(first + size, high)
                chunk = self._write(_copy_rows(replay, first, stop), first, stop)
                self._chunks = [*self._chunks[: len(self._chunks) - small], chunk]
                small = 0

    def _write(self, rows: dict[str, np.ndarray], start: int, stop: int) -> dict[str, Any]:
        """One chunk file; returns its entry in a manifest."""
        buffer = io.BytesIO()
        plain = isinstance(rows["image"], np.ndarray)
        (np.savez if plain else np.savez_compressed)(buffer, allow_pickle=False, **rows)
        # Release the view before the buffer: Python 3.13 raises if a write failed in between.
        with buffer.getbuffer() as data:
            found, size = sha256(data).hexdigest(), len(data)
            name = f"{start:012d}-{stop:012d}-{found[:12]}.npz"
            mine, more = self._mine(rows["action"].shape[1]), {}
            if self._hosts.count > 1:
                name = f"{_folder_of(mine)}/{name}"
                more = {"envs": [mine.start, mine.stop]}
            write_atomic(self.directory / name, data)
        return {"file": name, "start": start, "stop": stop, "bytes": size, "sha256": found, **more}

    def _mine(self, num_envs: int) -> range:
        """The environments of this host, which has ``num_envs``."""
        first = self._hosts.index * num_envs
        return range(first, first + num_envs)

    def _read_into(
        self, replay: Replay, chunk: dict[str, Any], oldest: int, envs: range, first_env: int
    ) -> None:
        """Copy rows of one chunk, from ``oldest`` on, into the replay, for some environments.

        Those of the chunk begin with ``first_env``.
        """
        ours = slice(envs.start - self._mine(replay.num_envs).start, None)
        ours = slice(ours.start, ours.start + len(envs))
        theirs = slice(envs.start - first_env, envs.stop - first_env)
        data = _read_checked(self.directory, chunk)
        first = max(chunk["start"], oldest)
        index = np.arange(first, chunk["stop"]) % replay.rows
        with np.load(io.BytesIO(data), allow_pickle=False) as rows:
            for name in COLUMNS:
                column = rows[name][first - chunk["start"] :]
                if len(envs) == replay.num_envs:
                    replay.columns[name][index] = column[:, theirs]
                else:
                    replay.columns[name][index, ours] = column[:, theirs]


def _folder_of(envs: range) -> str:
    """The folder of the chunks of some environments, which are those of one host of several."""
    return f"envs-{envs.start:05d}-{envs.stop:05d}"


def _read_checked(directory: Path, chunk: dict[str, Any]) -> bytes:
    """The bytes of one chunk file; DamagedError if it is missing, truncated or altered."""
    try:
        data = (directory / chunk["file"]).read_bytes()
    except OSError as error:
        raise DamagedError(f"it cannot be read: {first_line(error)}") from error
    if len(data) != chunk["bytes"]:
        raise DamagedError(f"it has {len(data)} bytes, not {chunk['bytes']}")
    if sha256(data).hexdigest() != chunk["sha256"]:
        raise DamagedError("its digest does not match")
    return data


def _chunk_rows(replay: Replay) -> int:
    size = (replay.num_envs, replay.num_envs)
    row = Replay.nbytes_needed(*size, replay.image_shape, replay.action_sizes)
    return max(1, _CHUNK_BYTES // row)


def _copy_rows(replay: Replay, start: int, stop: int) -> dict[str, np.ndarray]:
    """A copy, so that the ring buffer may advance while it is written; images may be compressed."""
    index = np.arange(start, stop) % replay.rows
    return {name: column.take(index, axis=0) for name, column in replay.columns.items()}
