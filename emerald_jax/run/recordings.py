"""The recorded frames of a run, read from its replay on disk (``replay_files``), and data sets.

A *data set*, on which several models train and are compared, is a directory of chunks with
``dataset.json`` (where the play came from, and a manifest). That file is written last: a directory
without it is not a data set.
"""

from __future__ import annotations

import json
from contextlib import closing
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple
from zipfile import BadZipFile

import numpy as np

from emerald_jax.replay import COLUMNS, Replay, ReplayError
from emerald_jax.run.directory import DATASET_FILE, REPLAY_DIR, write_atomic
from emerald_jax.run.replay_files import ReplayFiles

FORMAT = 1


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
        folder = Path(run) / REPLAY_DIR
        # Where several hosts record, the environments of the first one are shown.
        self._chunks = _covering(folder) or _covering(min(folder.glob("envs-*"), default=folder))
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
