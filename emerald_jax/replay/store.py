"""The replay store and its two samplers: host memory, numpy, uint8 images, one copy, never more.

One *row* is one vector step: a record of each of E environments. Rows are numbered 0, 1, 2, … for
the whole life of a run; row t lies at index ``t % rows`` of a preallocated ring, so the newest
``rows`` are kept and row numbers stay meaningful after the oldest have gone, on disk too.

Alignment, for all columns: action, reward, ``is_last`` and ``is_terminal`` of a record are those
that *led into* its image; ``is_first`` marks an episode's first frame, where the action is -1 and
the reward 0. So an episode of n steps is n + 1 records, its final frame is a record of its own, and
a time limit (``is_last`` alone) is never confused with an end of the world (``is_terminal``).

Episode boundary: a record *continues* the record of the row before it unless it is ``is_first``,
is the first row ever, or follows rows that were lost on disk (a hole). Records between two such
boundaries are one episode here, without what the ring has overwritten. Wherever a sampled sequence
puts a record behind one that it does not continue, ``Batch.reset`` is True.

Nothing here is thread-safe: append and sample from one thread.

How much host memory this process may still take.

Inside a container the kernel's "available" figure is the whole machine's; the limit that kills us
is the control group's. Both are read, the smaller one counts.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import psutil

from emerald_jax.types import Batch

#: Columns of a record, in the order of ``Batch``, with the type of one value.
COLUMNS = {
    "image": np.uint8,
    "action": np.int32,
    "reward": np.float32,
    "is_first": np.bool_,
    "is_last": np.bool_,
    "is_terminal": np.bool_,
}

#: Share of the available RAM the store may take; the rest is for JAX, batches and workers.
_RAM_SHARE = 0.9


class ReplayError(RuntimeError):
    """The store cannot be made or cannot be used this way; the message says what to do."""


class Record(Protocol):
    """One row: ``envs.base.VectorStep``, or anything with these arrays, each `[E, ...]`."""

    image: np.ndarray
    action: np.ndarray
    reward: np.ndarray
    is_first: np.ndarray
    is_last: np.ndarray
    is_terminal: np.ndarray


class Replay:
    """A ring of the newest rows and an index of the episodes in them.

    Attributes:
        rows: rows the ring holds, ``capacity // num_envs``.
        num_envs: environments E, records per row.
        columns: name -> `[rows, E, ...]` arrays, see :data:`COLUMNS`. Memory is mapped as it fills.
        written: rows ever written; row ``written - 1`` is the newest.
        oldest: the oldest row still held.
        holes: `(start, stop)` rows inside ``[oldest, written)`` that were lost, in order.
    """

    def __init__(self, capacity: int, num_envs: int, image_shape: Sequence[int]) -> None:
        """Reserve the store.

        Args:
            capacity: records kept, over all environments.
            num_envs: environments E.
            image_shape: `(height, width, 3)`.

        Raises:
            ReplayError: if it holds no row, or would not fit into the RAM that is available.
        """
        if capacity < num_envs or num_envs < 1:
            raise ReplayError(
                f"--replay.capacity {capacity} holds no record of each of {num_envs} environments: "
                f"set it to at least {max(1, num_envs)}"
            )
        _check_fits(capacity, num_envs, image_shape)
        self.rows = capacity // num_envs
        self.num_envs = num_envs
        self.image_shape = tuple(image_shape)
        # zeros, not full: untouched pages stay unmapped, memory grows with the data.
        self.columns: dict[str, np.ndarray] = {
            name: np.zeros((self.rows, num_envs, *(image_shape if name == "image" else ())), dtype)
            for name, dtype in COLUMNS.items()
        }
        self._begins = np.zeros((self.rows, num_envs), np.bool_)
        self.restore(written=0, oldest=0, holes=())

    @staticmethod
    def nbytes_needed(capacity: int, num_envs: int, image_shape: Sequence[int]) -> int:
        """Bytes of RAM a full store takes."""
        scalars = sum(np.dtype(t).itemsize for n, t in COLUMNS.items() if n != "image")
        return capacity // num_envs * num_envs * (int(np.prod(image_shape)) + scalars + 1)

    def __len__(self) -> int:
        """Records held, over all environments."""
        return sum(stop - start for start, stop in self.spans()) * self.num_envs

    @property
    def num_episodes(self) -> int:
        """Episodes held, over all environments, open and cut ones included."""
        return int(self._counts.sum())

    def append(self, step: Record) -> None:
        """Write one row over the oldest.

        Args:
            step: :class:`Record` of each environment, typically ``envs.base.VectorStep``.

        Raises:
            ReplayError: if the image is not `[E, height, width, 3]` uint8.
        """
        if step.image.shape != (self.num_envs, *self.image_shape) or step.image.dtype != np.uint8:
            raise ReplayError(
                f"the replay takes images {(self.num_envs, *self.image_shape)} uint8, "
                f"got {step.image.shape} {step.image.dtype}"
            )
        row = self.written
        slot = row % self.rows
        begins = np.asarray(step.is_first, np.bool_)
        if not self._continues(row):
            begins = np.ones_like(begins)
        else:
            # An episode that never ended (a crashed or resumed environment) was cut, not finished.
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
        """Index rows that were put into :attr:`columns` by hand, as a load from disk does.

        Rows ``[oldest, written)`` must already lie at their index, those of ``holes`` excepted.

        Args:
            written: as the attribute.
            oldest: oldest row that was saved; rows the ring cannot hold are left out.
            holes: `(start, stop)` rows to leave out, in order.
        """
        self.written = written
        self.oldest = max(oldest, written - self.rows, 0)
        self.holes = [(max(a, self.oldest), b) for a, b in holes if b > self.oldest]
        self._closed: list[deque[tuple[int, int]]] = [deque() for _ in range(self.num_envs)]
        self._closed_counts = np.zeros(self.num_envs, np.int64)
        self._open = np.full(self.num_envs, -1, np.int64)
        self._begins[:] = False
        for start, stop in self.holes:  # a reader that stands in a hole must see its episode end
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
        """Rows held, as `(start, stop)` stretches without a hole, oldest first."""
        edges = [self.oldest, *(edge for hole in self.holes for edge in hole), self.written]
        pairs = zip(edges[::2], edges[1::2], strict=True)
        return [(start, stop) for start, stop in pairs if stop > start]

    def draw_episode(self, rng: np.random.Generator) -> tuple[int, int]:
        """One of the episodes held, each equally likely.

        Args:
            rng: consumed once.

        Returns:
            The environment and the episode's first row that is still held.

        Raises:
            ReplayError: if the store is empty.
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
        limit = 128  # most episodes are short: looking for their end in all rows takes milliseconds
        while (count := self.run(env, start, limit)) == limit:
            limit *= 8
        rows = np.arange(start, start + count) % self.rows
        return float(self.columns["reward"][rows, env].sum())

    def continues_at(self, env: int, row: int) -> bool:
        """Whether a reader that has read up to ``row`` (exclusive) may go on with it now."""
        held = self.oldest <= row < self.written
        return bool(held and not self._begins[row % self.rows, env])

    def run(self, env: int, start: int, limit: int) -> int:
        """Records from row ``start`` on that belong to its episode, at most ``limit``."""
        stop = min(start + limit, self.written)
        border = self._begins[np.arange(start + 1, stop) % self.rows, env]
        return int(border.argmax()) + 1 if border.any() else stop - start

    def begins(self, env: int, start: int, stop: int) -> np.ndarray:
        """`[stop - start]` bool: the record does not continue the one before it."""
        return self._begins[np.arange(start, stop) % self.rows, env]

    def copy(self, env: int, start: int, out: Batch, sequence: int, at: int, count: int) -> None:
        """Copy ``count`` records of one environment into ``out[sequence, at:]``, not ``reset``.

        Args:
            env: environment.
            start: first row; all rows must be held.
            out: :class:`Batch` of numpy arrays, written in place.
            sequence: index into the batch.
            at: step of the sequence to begin at.
            count: records to copy.
        """
        while count:
            index = start % self.rows
            piece = min(count, self.rows - index)
            for name, column in self.columns.items():
                getattr(out, name)[sequence, at : at + piece] = column[index : index + piece, env]
            start, at, count = start + piece, at + piece, count - piece

    def _continues(self, row: int) -> bool:
        """Whether the row before ``row`` is held, so that a record of ``row`` can continue it."""
        lost = self.holes[-1][1] if self.holes else -1
        return row > self.oldest and row != lost

    def _close_episode(self, env: int, stop: int) -> None:
        """The open episode of ``env``, if any, ends before row ``stop``."""
        if self._open[env] >= 0:
            self._closed[env].append((int(self._open[env]), stop))
            self._closed_counts[env] += 1
            self._open[env] = -1

    def _forget(self, oldest: int) -> None:
        """Drop what lies wholly before row ``oldest``; episodes cut by it begin there."""
        self.oldest = oldest
        if self.holes and self.holes[0][0] < oldest:
            self.holes = [(max(a, oldest), b) for a, b in self.holes if b > oldest]
        for env, closed in enumerate(self._closed):
            while closed and closed[0][1] <= oldest:
                closed.popleft()
                self._closed_counts[env] -= 1


def _check_fits(capacity: int, num_envs: int, image_shape: Sequence[int]) -> None:
    """Refuse a store that the RAM at hand cannot hold once it is full."""
    needed = Replay.nbytes_needed(capacity, num_envs, image_shape)
    allowed = int(_RAM_SHARE * available_bytes())
    if needed <= allowed:
        return
    per_row = Replay.nbytes_needed(num_envs, num_envs, image_shape)
    fits = allowed // per_row * num_envs
    raise ReplayError(
        f"a replay of {capacity} records needs {needed / 2**30:.1f} GiB of RAM and "
        f"{allowed / 2**30:.1f} GiB can be taken: set --replay.capacity to {fits} or less"
    )


_CGROUP_ROOT = Path("/sys/fs/cgroup")


def available_bytes() -> int:
    """Bytes of RAM that can be taken without swapping or being killed by a control group.

    Returns:
        The smallest of the machine's available memory and what is left under each memory limit of
        our control group and its parents. Never negative.
    """
    left = [psutil.virtual_memory().available]
    left += [room for group in _our_groups() if (room := _room(group)) is not None]
    return max(0, min(left))


def _our_groups() -> list[Path]:
    """Folders of our memory control group and of all its parents, versions 1 and 2."""
    try:
        lines = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:  # no Linux, or a sandbox without /proc
        return []
    groups: list[Path] = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            root = _CGROUP_ROOT
        elif "memory" in controllers.split(","):
            root = _CGROUP_ROOT / "memory"
        else:
            continue
        here = root / path.lstrip("/")
        groups += [here, *(p for p in here.parents if p.is_relative_to(root))]
    return groups


def _room(group: Path) -> int | None:
    """Bytes left under one group's limit; None when it has none or cannot be read."""
    for limit, usage in (
        ("memory.max", "memory.current"),
        ("memory.limit_in_bytes", "memory.usage_in_bytes"),
    ):
        try:
            allowed = int((group / limit).read_text())
            used = int((group / usage).read_text())
        except (OSError, ValueError):  # absent, unreadable, or the word "max"
            continue
        return allowed - used + _reclaimable(group)
    return None


def _reclaimable(group: Path) -> int:
    """Bytes of cached files that the kernel drops first when the group needs memory."""
    try:
        lines = (group / "memory.stat").read_text().splitlines()
    except OSError:
        return 0
    facts = dict(line.split(" ", 1) for line in lines if " " in line)
    return int(facts.get("total_inactive_file", facts.get("inactive_file", 0)))
