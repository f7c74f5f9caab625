"""The replay on disk: chunks of rows that are written once and never changed, and their frames.

A chunk is one ``.npz`` of the columns of successive rows, named by its rows and digest, readable
with plain ``numpy.load``. A *manifest* (JSON values, part of a checkpoint's metadata) lists the
chunks of one checkpoint with their SHA-256, so replay and parameters are one consistent point.
Rows written after the last checkpoint are in no manifest, so a resumed run does not see them.

A row is a vector step; actions, rewards and images are aligned as in ``replay/store.py``.

A *data set*, on which several models train and are compared, is a directory of chunks with
``dataset.json`` (where the play came from, and a manifest). That file is written last: a directory
without it is not a data set.
"""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from functools import cache, lru_cache
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple
from zipfile import BadZipFile

import numpy as np

from emerald_jax.replay import COLUMNS, Replay, ReplayError
from emerald_jax.run.directory import (
    DATASET_FILE,
    REPLAY_DIR,
    CheckpointError,
    DamagedError,
    first_line,
    write_atomic,
)

_log = logging.getLogger(__name__)

#: Size of a full chunk; two of them are in memory while one is written or read.
_CHUNK_BYTES = 32 * 2**20
#: A last chunk smaller than this share of a full one is merged with the rows that follow it, so
#: that frequent checkpoints do not leave thousands of files.
_SMALL = 0.25
FORMAT = 1


class ReplayFiles:
    """The chunks in one directory: saves and loads a replay. Not thread-safe, like the replay."""

    def __init__(self, directory: str | Path) -> None:
        """Nothing is read or written yet; the directory is made at the first write."""
        self.directory = Path(directory)
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
        manifest |= {"num_envs": replay.num_envs, "image_shape": list(replay.image_shape)}
        manifest |= {"action_sizes": list(replay.action_sizes)} if replay.action_sizes else {}
        return {**manifest, "chunks": [dict(chunk) for chunk in self._chunks]}

    def load(self, manifest: dict[str, Any], replay: Replay) -> tuple[str, ...]:
        """Fill an empty replay, whose capacity may differ, with one chunk in memory at a time.

        A chunk that is missing, truncated or altered is skipped with a warning; its rows become a
        hole, at which episodes are cut. Returns the file names of such chunks. CheckpointError if
        the manifest is of other environments or images.
        """
        for name in ("num_envs", "image_shape", "action_sizes"):
            theirs, ours = manifest.get(name, []), getattr(replay, name)
            if theirs != (ours if name == "num_envs" else list(ours)):
                raise CheckpointError(
                    f"the replay in {self.directory} has {name} {theirs}, this run {ours}: use "
                    "the settings it was saved with"
                )
        written = manifest["written"]
        oldest = max(manifest["oldest"], written - replay.rows)
        self._chunks, lost = [], []
        for chunk in manifest["chunks"]:
            if chunk["stop"] <= oldest:
                continue
            try:
                self._read_into(replay, chunk, oldest)
            except DamagedError as error:
                _log.warning("replay chunk %s is skipped: %s", chunk["file"], error)
                lost.append(chunk["file"])
                continue
            self._chunks.append(dict(chunk))
        # Chunks never span a hole.
        ends = [oldest, *(chunk["stop"] for chunk in self._chunks)]
        starts = [*(chunk["start"] for chunk in self._chunks), written]
        holes = [(low, high) for low, high in zip(ends, starts, strict=True) if low < high]
        replay.restore(written=written, oldest=oldest, holes=holes)
        if lost:
            gone = sum(stop - start for start, stop in holes)
            _log.warning("%d replay chunks were lost, %d of %d rows", len(lost), gone, written)
        return tuple(lost)

    def checker(self) -> Callable[[dict[str, Any]], bool]:
        """A function of a manifest's chunk: whether its file is intact; each is read once."""

        @cache
        def intact(*items: tuple[str, Any]) -> bool:
            try:
                _read_checked(self.directory, dict(items))
            except DamagedError:
                return False
            return True

        return lambda chunk: intact(*chunk.items())

    def prune(self, manifests: Iterable[dict[str, Any]]) -> None:
        """Delete the chunks that neither this run nor the manifests of its checkpoints need."""
        if not self.directory.is_dir() or self.writing():
            return  # a chunk being written has no name yet; the next prune deletes
        self._collect()
        manifests = [*manifests, {"chunks": self._chunks}]
        needed = {chunk["file"] for manifest in manifests for chunk in manifest["chunks"]}
        for path in [*self.directory.glob("*.npz"), *self.directory.glob("*.tmp")]:
            if path.name not in needed:
                path.unlink(missing_ok=True)

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
            write_atomic(self.directory / name, data)
        return {"file": name, "start": start, "stop": stop, "bytes": size, "sha256": found}

    def _read_into(self, replay: Replay, chunk: dict[str, Any], oldest: int) -> None:
        """Copy the rows of one chunk, from ``oldest`` on, into the replay."""
        data = _read_checked(self.directory, chunk)
        first = max(chunk["start"], oldest)
        index = np.arange(first, chunk["stop"]) % replay.rows
        with np.load(io.BytesIO(data), allow_pickle=False) as rows:
            for name in COLUMNS:
                replay.columns[name][index] = rows[name][first - chunk["start"] :]


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


class Clip(NamedTuple):
    """Successive records of one environment, all of one episode.

    Attributes:
        image: `[T, height, width, 3]` uint8.
        action: `[T]` or `[T, A]`, the action that led into each image; none on first frames.
        reward: `[T]` float32, the reward that came with each image.
        is_first, is_last, is_terminal: `[T]` bool.
        env: index of the environment.
        row: row of the first record.
    """

    image: np.ndarray
    action: np.ndarray
    reward: np.ndarray
    is_first: np.ndarray
    is_last: np.ndarray
    is_terminal: np.ndarray
    env: int
    row: int

    def __len__(self) -> int:
        """The number of frames T (of a NamedTuple it would be that of fields)."""
        return len(self.action)


class _Chunk(NamedTuple):
    start: int
    stop: int
    path: Path


class Recordings:
    """The recorded frames of a run, with two chunks in memory at most.

    Attributes:
        num_envs: number of environments; 0 when nothing is recorded.
        spans: ranges `(start, stop)` of recorded rows, oldest first.
    """

    def __init__(self, run: str | Path) -> None:
        """List the chunks of a run directory and read one of them."""
        self._chunks = _covering(Path(run) / REPLAY_DIR)
        self._read = lru_cache(maxsize=2)(_read_chunk)
        self.spans = _join([(c.start, c.stop) for c in self._chunks])
        self.num_envs = self._read(self._chunks[-1].path)["action"].shape[1] if self._chunks else 0

    def __len__(self) -> int:
        """Frames recorded, over all environments."""
        return sum(stop - start for start, stop in self.spans) * self.num_envs

    def clip(self, env: int, row: int, length: int) -> Clip:
        """Up to ``length`` records from ``row`` on, fewer where the episode or the recording ends.

        Args:
            env: index of the environment.
            row: row of the first record.
            length: at least 1.

        Raises:
            ReplayError: when that frame is not recorded, or its file cannot be read.
        """
        columns = self._rows(env, row, row + length)
        border = np.flatnonzero(columns["is_first"][1:])
        stop = int(border[0]) + 1 if border.size else len(columns["action"])
        return Clip(**{name: x[:stop] for name, x in columns.items()}, env=env, row=row)

    def before(self, env: int, row: int, length: int) -> Clip:
        """Up to ``length`` records of one episode that end with ``row``; errors as :meth:`clip`."""
        start = max(self._span(row)[0], row - length + 1)
        first = self._rows(env, start, row + 1)["is_first"]
        begins = np.flatnonzero(first)
        start += int(begins[-1]) if begins.size else 0
        return self.clip(env, start, row - start + 1)

    def draw(self, length: int, rng: np.random.Generator, tries: int = 32) -> Clip:
        """The longest of some randomly placed clips of at most ``length`` records.

        Args:
            length: at least 1.
            rng: of the choice.
            tries: number of clips drawn; the search ends at the first of full length.

        Raises:
            ReplayError: when nothing is recorded.
        """
        if not self._chunks:
            raise ReplayError("the run holds no recorded frames")
        best: Clip | tuple[()] = ()
        rows = np.concatenate([np.arange(*span) for span in self.spans])
        for _ in range(tries):
            # The newest chunk is in memory already: try it first.
            newest = rows if best else rows[rows >= self._chunks[-1].start]
            row, env = int(rng.choice(newest)), int(rng.integers(self.num_envs))
            best = max(best, self.clip(env, row, length), key=len)
            if len(best) >= length:
                break
        return best

    def newest(self, frames: int) -> dict[str, np.ndarray]:
        """Columns ``[rows, E]`` without the images, of about the newest ``frames`` records."""
        if not self._chunks:
            raise ReplayError("the run holds no recorded frames")
        names = [name for name in COLUMNS if name != "image"]
        rows, kept, upto = 0, [], self._chunks[-1].stop
        for chunk in reversed(self._chunks):
            columns, stop = self._read(chunk.path), min(chunk.stop, upto) - chunk.start
            kept.append({name: columns[name][:stop] for name in names})
            rows, upto = rows + stop, chunk.start
            if rows * self.num_envs >= frames:
                break
        return {name: np.concatenate([k[name] for k in reversed(kept)]) for name in names}

    def _span(self, row: int) -> tuple[int, int]:
        for start, stop in self.spans:
            if start <= row < stop:
                return start, stop
        known = ", ".join(f"{start} to {stop - 1}" for start, stop in self.spans) or "none"
        raise ReplayError(f"row {row} is not recorded: the rows are {known}")

    def _rows(self, env: int, start: int, stop: int) -> dict[str, np.ndarray]:
        """Columns of rows ``[start, stop)`` of one environment, up to the end of the recording."""
        if not 0 <= env < self.num_envs:
            raise ReplayError(
                f"environment {env} is not recorded: choose one below {self.num_envs}"
            )
        stop = min(stop, self._span(start)[1])
        pieces = []
        for chunk in self._chunks:
            low, high = max(start, chunk.start), min(stop, chunk.stop)
            if low < high:
                columns = self._read(chunk.path)
                span = slice(low - chunk.start, high - chunk.start)
                pieces.append({name: columns[name][span, env] for name in COLUMNS})
                start = high
        return {name: np.concatenate([piece[name] for piece in pieces]) for name in COLUMNS}


def _covering(directory: Path) -> list[_Chunk]:
    """Chunks in the order of their rows; of two that start at the same row, the longer one."""
    found = []
    for path in directory.glob("*.npz"):
        start, _, rest = path.stem.partition("-")
        stop = rest.partition("-")[0]
        if start.isdigit() and stop.isdigit():
            found.append(_Chunk(int(start), int(stop), path))
    chosen: list[_Chunk] = []
    for chunk in sorted(found, key=lambda c: (c.start, -c.stop)):
        if not chosen or chunk.stop > chosen[-1].stop:
            chosen.append(chunk)
    return chosen


def _join(spans: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Merge ranges that touch or overlap; the starts rise, and so do the stops."""
    joined: list[tuple[int, int]] = []
    for start, stop in spans:
        touches = joined and start <= joined[-1][1]
        joined.append((joined.pop()[0] if touches else start, stop))
    return joined


def _read_chunk(path: Path) -> dict[str, np.ndarray]:
    try:
        # Opened here, as NumPy does not close a file with an unknown format.
        with path.open("rb") as file, np.load(file, allow_pickle=False) as columns:
            return {name: columns[name] for name in COLUMNS}
    except (OSError, ValueError, KeyError, BadZipFile) as error:
        raise ReplayError(f"the recorded frames in {path} cannot be read: {error}") from error


class DataSet(NamedTuple):
    """Recorded play in memory: ``facts`` about its origin as JSON values, and the records."""

    facts: dict[str, Any]
    replay: Replay


def write_dataset(folder: str | Path, replay: Replay, facts: dict[str, Any]) -> Path:
    """Write a data set into a new directory; returns its manifest's path.

    Raises ReplayError where there is one already, or where it cannot be written.
    """
    folder = Path(folder)
    refuse_dataset(folder)
    with closing(ReplayFiles(folder)) as files:
        chunks = files.save(replay)
    if chunks is None:
        raise ReplayError(f"the data set cannot be written to {folder}: is the disk full?")
    text = json.dumps({"format": FORMAT, **facts, "replay": chunks}, indent=1) + "\n"
    write_atomic(folder / DATASET_FILE, text.encode())
    return folder / DATASET_FILE


def refuse_dataset(folder: Path) -> None:
    """Raise ReplayError rather than write over a data set or into a file."""
    if (folder / DATASET_FILE).exists():
        raise ReplayError(f"{folder} already holds a data set: choose another --out")
    if folder.exists() and not folder.is_dir():
        raise ReplayError(f"{folder} is a file: choose another --out")


def read_dataset(folder: str | Path, into: Replay | None = None) -> DataSet:
    """Load a data set, into an empty replay of its size; every chunk is checked by its digest.

    Raises ReplayError if there is none, another version wrote it, or a chunk is missing or changed.
    """
    folder = Path(folder)
    try:
        facts = json.loads((folder / DATASET_FILE).read_text(encoding="utf-8"))
        found, manifest = facts.pop("format"), facts.pop("replay")
        count, rows = manifest["num_envs"], manifest["written"] - manifest["oldest"]
    except FileNotFoundError as error:
        raise ReplayError(f"{folder} is not a data set: it has no {DATASET_FILE}") from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ReplayError(f"{folder / DATASET_FILE} cannot be read: {error}") from error
    if found != FORMAT:
        raise ReplayError(f"{folder} is a data set of format {found}, this version reads {FORMAT}")
    if into is None:
        into = Replay(
            rows * count, count, manifest["image_shape"], manifest.get("action_sizes", ())
        )
    replay = into
    with closing(ReplayFiles(folder)) as files:
        lost = files.load(manifest, replay)
    if lost:
        raise ReplayError(f"{folder} is damaged ({lost[0]}): record or copy it again")
    return DataSet(facts, replay)
