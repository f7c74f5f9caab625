"""The replay store: a preallocated ring of records in host memory, numpy, uint8 images.

With ``replay.compress`` every image is compressed by itself (:class:`CompressedImages`).

One *row* is one vector step: a record of each of E environments. Rows are numbered 0, 1, 2, … over
the life of a run; row t is stored at index ``t % rows``, so the newest ``rows`` rows are kept. Row
numbers stay valid after the oldest rows have been overwritten, also on disk.

Columns are aligned as in ``types.py``: action, reward and flags *led into* the image. An episode of
n steps is therefore n + 1 records, and its final frame has its own record.

Episode boundary: a record *continues* the record of the row before it unless it is ``is_first``, is
in the first row of the run, or follows rows that were lost on disk (a hole). The records between
two boundaries that are still held form one episode. ``Batch.reset`` is True at every record of a
sampled sequence that does not continue the record before it.

Not thread-safe: append and sample from one thread.
"""

from __future__ import annotations

import contextlib
import math
import os
import zlib
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from emerald_jax.actions import ActionSpace
from emerald_jax.envs.base import VectorStep
from emerald_jax.types import Batch

#: Columns of a record, in the order of ``Batch``, with the type of one value; an action that is a
#: vector is float32 `[A]`.
COLUMNS = {
    "image": np.uint8,
    "action": np.int32,
    "reward": np.float32,
    "is_first": np.bool_,
    "is_last": np.bool_,
    "is_terminal": np.bool_,
}

#: Share of the available RAM that the store may use; the rest is for JAX, batches and workers.
_RAM_SHARE = 0.9
#: Size of a compressed image as a share of the plain one: the largest of four Atari games (own
#: measurement; the others are far smaller).
EXPECTED_SHARE = 1 / 6
#: Bytes that Python needs for a compressed image in addition to its content.
_OBJECT_BYTES = 48
#: Threads that compress and decompress; zlib releases Python's lock.
_THREADS = 4


class ReplayError(RuntimeError):
    """The store cannot be created or used in this way; the message names the remedy."""


class CompressedImages:
    """Images `[rows, E, height, width, 3]` uint8, each compressed by itself, without loss.

    Indexed and assigned like a NumPy array along its first two axes. Threads compress what was
    assigned while the caller continues, and decompress what is read. Like the replay, it is used
    from one thread; what :meth:`take` returns may be read in another.

    Attributes:
        shape, dtype: as those of an array.
    """

    dtype = np.dtype(np.uint8)

    def __init__(self, rows: int, num_envs: int, image_shape: Sequence[int]) -> None:
        self.shape = (rows, num_envs, *image_shape)
        blank = zlib.compress(bytes(int(np.prod(image_shape))), 1)
        # An array of objects costs the garbage collector nothing, unlike a list.
        self._images = np.full((rows, num_envs), blank, object)
        self._content = rows * num_envs * len(blank)
        self._pool = ThreadPoolExecutor(min(_THREADS, len(os.sched_getaffinity(0))), "replay")
        self._writing: list[tuple[Any, list[Future[bytes]]]] = []
        self._reading: list[Future[None]] = []

    @property
    def nbytes(self) -> int:
        """Bytes of all images as they are held now."""
        self._collect()
        return self._content + self._images.size * _OBJECT_BYTES

    def __getitem__(self, index: Any) -> np.ndarray:
        """The images of one or two indices, decompressed."""
        self._collect()
        chosen = np.asarray(self._images[index], object)
        images = np.empty((chosen.size, *self.shape[2:]), np.uint8)
        for part in np.array_split(np.arange(chosen.size), min(_THREADS, 1 + chosen.size // 8)):
            self._read(chosen.ravel()[part], images[part[0] : part[-1] + 1] if part.size else [])
        self.finish()
        return images.reshape(*chosen.shape, *self.shape[2:])

    def __setitem__(self, index: Any, images: np.ndarray) -> None:
        """Begin to compress a copy of ``images``, which are broadcast to the indices."""
        self._collect()
        shape = (*np.shape(self._images[index]), *self.shape[2:])
        images = np.broadcast_to(np.asarray(images, np.uint8), shape).reshape(-1, *self.shape[2:])
        jobs = [self._pool.submit(zlib.compress, image.tobytes(), 1) for image in images]
        self._writing.append((index, jobs))

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        """All images, decompressed."""
        return self[:].astype(dtype or np.uint8, copy=False)

    def read(self, index: Any, out: np.ndarray) -> None:
        """Begin to decompress images to ``out``; it is complete after :meth:`finish`."""
        self._collect()
        self._read(self._images[index].copy(), out)

    def finish(self) -> None:
        """Wait for what is read; zlib.error if an image has changed in memory."""
        reading, self._reading = self._reading, []
        for job in reading:
            job.result()

    def take(self, rows: np.ndarray, axis: int = 0) -> CompressedImages:
        """Rows as they are now, still compressed; later assignments do not change them."""
        self._collect()
        taken = object.__new__(CompressedImages)
        taken.__dict__ |= {**self.__dict__, "_writing": [], "_reading": []}
        taken._images = self._images.take(rows, axis)
        taken.shape = (*taken._images.shape, *self.shape[2:])
        return taken

    def _read(self, compressed: np.ndarray, out: np.ndarray) -> None:
        self._reading.append(self._pool.submit(_decompress, compressed, out))

    def _collect(self) -> None:
        """Store what the threads have compressed."""
        writing, self._writing = self._writing, []
        for index, jobs in writing:
            before = np.asarray(self._images[index], object)
            images = np.empty(len(jobs), object)
            images[:] = [job.result() for job in jobs]
            self._content += sum(map(len, images)) - sum(map(len, before.flat))
            self._images[index] = images.reshape(before.shape)[()]


def _decompress(compressed: np.ndarray, images: np.ndarray) -> None:
    """Decompress `[n]` to `[n, height, width, 3]`."""
    for data, image in zip(compressed, images, strict=True):
        plain = zlib.decompress(data, bufsize=image.size)
        image[...] = np.frombuffer(plain, np.uint8).reshape(image.shape)


class Replay:
    """A ring of the newest rows, with an index of their episodes.

    Attributes:
        rows: capacity in rows, ``capacity // num_envs``.
        num_envs: environments E, records per row.
        columns: name -> `[rows, E, ...]` arrays, see :data:`COLUMNS`. Memory is mapped as it fills.
            ``image`` may be :class:`CompressedImages`.
        written: total rows written; row ``written - 1`` is the newest.
        oldest: the oldest row still held.
        action_sizes: of a vector of actions, see ``emerald_jax/actions.py``; empty: discrete.
        holes: `(start, stop)` rows inside ``[oldest, written)`` that were lost, in order.
    """

    def __init__(
        self,
        capacity: int,
        num_envs: int,
        image_shape: Sequence[int],
        action_sizes: Sequence[int] = (),
        *,
        compress: bool = False,
    ) -> None:
        """Allocate the store.

        Args:
            capacity: records kept, over all environments.
            num_envs: environments E.
            image_shape: `(height, width, 3)`.
            action_sizes: :attr:`EnvSpec.action_sizes`.
            compress: hold the images compressed, without loss.

        Raises:
            ReplayError: if it holds no row, or does not fit into the available RAM.
        """
        if capacity < num_envs or num_envs < 1:
            raise ReplayError(
                f"--replay.capacity {capacity} is less than one record for each of {num_envs} "
                f"environments: set it to at least {max(1, num_envs)}"
            )
        check_fits(capacity, num_envs, image_shape, action_sizes, compress=compress)
        self.rows = capacity // num_envs
        self.num_envs = num_envs
        self.image_shape, self.action_sizes = tuple(image_shape), tuple(action_sizes)
        # np.zeros maps pages on first use, so memory grows with the data.
        self.columns: dict[str, np.ndarray] = {
            name: np.zeros((self.rows, num_envs, *shape), dtype)
            for name, (shape, dtype) in _values(image_shape, action_sizes).items()
            if not (compress and name == "image")
        }
        if compress:
            self.columns["image"] = CompressedImages(self.rows, num_envs, image_shape)
        self._begins = np.zeros((self.rows, num_envs), np.bool_)
        self.restore(written=0, oldest=0, holes=())

    @staticmethod
    def nbytes_needed(
        capacity: int,
        num_envs: int,
        image_shape: Sequence[int],
        action_sizes: Sequence[int] = (),
        *,
        compress: bool = False,
    ) -> int:
        """Bytes of RAM that a full store needs; compressed, the :data:`EXPECTED_SHARE` of it."""
        values = _values(image_shape, action_sizes)
        sizes = {
            name: math.prod(shape) * np.dtype(dtype).itemsize
            for name, (shape, dtype) in values.items()
        }
        if compress:
            sizes["image"] = int(sizes["image"] * EXPECTED_SHARE) + _OBJECT_BYTES
        return capacity // num_envs * num_envs * (sum(sizes.values()) + 1)

    def __len__(self) -> int:
        """Records held, over all environments."""
        return sum(stop - start for start, stop in self.spans()) * self.num_envs

    @property
    def num_episodes(self) -> int:
        """Episodes held, over all environments, including open and partly overwritten ones."""
        return int(self._counts.sum())

    def append(self, step: VectorStep) -> None:
        """Write one row over the oldest; ReplayError if image or action has another shape."""
        if step.image.shape != (self.num_envs, *self.image_shape) or step.image.dtype != np.uint8:
            raise ReplayError(
                f"the replay expects images {(self.num_envs, *self.image_shape)} uint8, "
                f"got {step.image.shape} {step.image.dtype}"
            )
        if step.action.shape != self.columns["action"].shape[1:]:
            wanted = self.columns["action"].shape[1:]
            raise ReplayError(f"the replay expects actions {wanted}, got {step.action.shape}")
        row = self.written
        slot = row % self.rows
        begins = np.asarray(step.is_first, np.bool_)
        lost = self.holes[-1][1] if self.holes else -1
        if row in (self.oldest, lost):  # the row before is not held
            begins = np.ones_like(begins)
        else:
            # An episode without an end (its environment crashed or was restarted) was truncated.
            self.columns["is_last"][(row - 1) % self.rows] |= step.is_first
        for name, column in self.columns.items():
            column[slot] = getattr(step, name)
        self._begins[slot] = begins
        for env in np.flatnonzero(begins):
            self._close_episode(env, row)
            self._open[env] = row
        self.written = row + 1
        self._forget(max(self.oldest, self.written - self.rows))
        self._counts = self._closed_counts + (self._open >= 0)

    def restore(self, *, written: int, oldest: int, holes: Sequence[tuple[int, int]]) -> None:
        """Index rows that were copied into :attr:`columns` directly, as a load from disk does.

        Rows ``[oldest, written)``, except those of ``holes`` (`(start, stop)` rows, in order), must
        already be at their index; rows beyond the capacity are dropped.
        """
        self.written = written
        self.oldest = max(oldest, written - self.rows, 0)
        self.holes = [(max(a, self.oldest), b) for a, b in holes if b > self.oldest]
        self._closed: list[deque[tuple[int, int]]] = [deque() for _ in range(self.num_envs)]
        self._closed_counts = np.zeros(self.num_envs, np.int64)
        self._open = np.full(self.num_envs, -1, np.int64)
        self._begins[:] = False
        for start, stop in self.holes:  # for a reader inside a hole the episode ends there
            self._begins[np.arange(start, stop) % self.rows] = True
        for start, stop in self.spans():
            index = np.arange(start, stop) % self.rows
            first = self.columns["is_first"][index]
            self.columns["is_last"][index[:-1]] |= first[1:]
            first[0] = True
            self._begins[index] = first
            for env in range(self.num_envs):
                for row in np.flatnonzero(first[:, env]) + start:
                    self._close_episode(env, int(row))
                    self._open[env] = row
                if stop < written:
                    self._close_episode(env, stop)
        self._counts = self._closed_counts + (self._open >= 0)

    def spans(self) -> list[tuple[int, int]]:
        """Rows held, as `(start, stop)` ranges without a hole, oldest first."""
        edges = [self.oldest, *(edge for hole in self.holes for edge in hole), self.written]
        pairs = zip(edges[::2], edges[1::2], strict=True)
        return [(start, stop) for start, stop in pairs if stop > start]

    def draw_episode(self, rng: np.random.Generator) -> tuple[int, int]:
        """Draw one of the episodes held, each with equal probability; ReplayError if there is none.

        Returns the environment and the episode's first row that is still held.
        """
        ends = np.cumsum(self._counts)
        if not ends[-1]:
            raise ReplayError("the replay is empty: append records before sampling")
        pick = int(rng.integers(ends[-1]))
        env = int(np.searchsorted(ends, pick, side="right"))
        pick -= int(ends[env] - self._counts[env])
        closed = self._closed[env]
        start = closed[pick][0] if pick < len(closed) else int(self._open[env])
        return env, max(start, self.oldest)

    def episode_return(self, env: int, start: int) -> float:
        """Sum of an episode's rewards from row ``start`` to its end, or to its newest record."""
        limit = 128  # most episodes are short; a search over all rows takes milliseconds
        while (count := self.run(env, start, limit)) == limit:
            limit *= 8
        rows = np.arange(start, start + count) % self.rows
        return float(self.columns["reward"][rows, env].sum())

    def continues_at(self, env: int, row: int) -> bool:
        """Whether ``row`` is held and continues the row before it."""
        held = self.oldest <= row < self.written
        return bool(held and not self._begins[row % self.rows, env])

    def run(self, env: int, start: int, limit: int) -> int:
        """Number of records of the episode from row ``start`` on, at most ``limit``."""
        stop = min(start + limit, self.written)
        border = self._begins[np.arange(start + 1, stop) % self.rows, env]
        return int(border.argmax()) + 1 if border.any() else stop - start

    def begins(self, env: int, start: int, stop: int) -> np.ndarray:
        """`[stop - start]` bool, True where a record does not continue the one before it."""
        return self._begins[np.arange(start, stop) % self.rows, env]

    def copy(self, env: int, start: int, out: Batch, sequence: int, at: int, count: int) -> None:
        """Copy ``count`` held records from row ``start`` on to ``out[sequence, at:]``.

        Images are complete after :meth:`finish`.
        """
        while count:
            index = start % self.rows
            piece = min(count, self.rows - index)
            for name, column in self.columns.items():
                target = getattr(out, name)[sequence, at : at + piece]
                if isinstance(column, CompressedImages):
                    column.read((slice(index, index + piece), env), target)
                else:
                    target[...] = column[index : index + piece, env]
            start, at, count = start + piece, at + piece, count - piece

    def finish(self) -> None:
        """Wait for the images of all :meth:`copy` so far."""
        if isinstance(self.columns["image"], CompressedImages):
            self.columns["image"].finish()

    def _close_episode(self, env: int, stop: int) -> None:
        """End the open episode of ``env``, if any, before row ``stop``."""
        if self._open[env] >= 0:
            self._closed[env].append((int(self._open[env]), stop))
            self._closed_counts[env] += 1
            self._open[env] = -1

    def _forget(self, oldest: int) -> None:
        """Drop episodes and holes that end before row ``oldest``."""
        self.oldest = oldest
        if self.holes and self.holes[0][0] < oldest:
            self.holes = [(max(a, oldest), b) for a, b in self.holes if b > oldest]
        for env, closed in enumerate(self._closed):
            while closed and closed[0][1] <= oldest:
                closed.popleft()
                self._closed_counts[env] -= 1


def _values(image_shape: Sequence[int], action_sizes: Sequence[int]) -> dict[str, tuple]:
    """Shape and type of one value of each column."""
    shapes, dtypes = {"image": tuple(image_shape)}, dict(COLUMNS)
    if action_sizes:
        space = ActionSpace(tuple(action_sizes))
        shapes["action"], dtypes["action"] = space.shape, space.dtype
    return {name: (shapes.get(name, ()), dtype) for name, dtype in dtypes.items()}


def check_fits(
    capacity: int, num_envs: int, *shapes: Sequence[int], compress: bool = False, stores: int = 1
) -> None:
    """ReplayError if so many ``stores`` would not fit into the available RAM once they are full."""
    needed = Replay.nbytes_needed(capacity, num_envs, *shapes, compress=compress)
    allowed = int(_RAM_SHARE * available_bytes()) // stores
    if needed <= allowed:
        return
    per_row = Replay.nbytes_needed(num_envs, num_envs, *shapes, compress=compress)
    fits = allowed // per_row * num_envs
    way_out = "" if compress else ", or --replay.compress"
    way_out += ", or give fewer --seeds" if stores > 1 else ""
    each = f"for each of {stores} seeds" if stores > 1 else "are available"
    raise ReplayError(
        f"a replay of {capacity} records needs {needed / 2**30:.1f} GiB of RAM and "
        f"{allowed / 2**30:.1f} GiB {each}: set --replay.capacity to {fits} or less{way_out}"
    )


def available_bytes() -> int:
    """Bytes of RAM that this process can use without swapping or being killed. Never negative.

    In a container the kernel's figure is that of the complete machine, while the control group sets
    the limit. The result is the minimum of both, over our control group and its parents.
    """
    left = [psutil.virtual_memory().available]
    left += [room for group in _our_groups() if (room := _room(group)) is not None]
    return max(0, min(left))


def _our_groups() -> list[Path]:
    """Directories of our memory control group and its parents, versions 1 and 2."""
    try:
        lines = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:  # no Linux, or a sandbox without /proc
        return []
    groups: list[Path] = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "" or "memory" in controllers.split(","):
            root = Path("/sys/fs/cgroup", "memory" if controllers else "")
            here = root / path.lstrip("/")
            groups += [here, *(p for p in here.parents if p.is_relative_to(root))]
    return groups


def _room(group: Path) -> int | None:
    """Bytes left under one group's limit; None without a limit, or if it cannot be read."""
    left = None
    v1 = ("memory.limit_in_bytes", "memory.usage_in_bytes")
    for limit, usage in (("memory.max", "memory.current"), v1):
        # Absent, unreadable, or the word "max".
        with contextlib.suppress(OSError, ValueError):
            left = int((group / limit).read_text()) - int((group / usage).read_text())
            stat = dict(x.split(" ", 1) for x in (group / "memory.stat").read_text().splitlines())
            # Cached files, which the kernel drops first when the group needs memory.
            return left + int(stat.get("total_inactive_file", stat.get("inactive_file", 0)))
    return left
