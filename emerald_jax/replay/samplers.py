"""Sampling batches from the store: ``streams`` (the paper's) and ``windows``.

``streams`` is truncated back-propagation through time. Episodes are drawn uniformly and read
completely, so every record is read equally often at any episode length; drawing starts in
proportion to the length would read the middles of episodes more often.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np

from emerald_jax.replay.store import Replay, ReplayError
from emerald_jax.types import Batch


class Sampler:
    """Base of both samplers: batches of B sequences of L steps; ``rng`` draws, and is saved.

    Attributes:
        replay: the store to read; it may still be empty.
    """

    def __init__(self, replay: Replay, batch: int, length: int, seed: int) -> None:
        self.replay = replay
        self.batch = batch
        self.length = length
        self.rng = np.random.Generator(np.random.PCG64(seed))

    def sample(self) -> Batch:
        """One new batch of numpy arrays `[B, L, ...]`; ReplayError if too few records are held."""
        raise NotImplementedError

    def state_dict(self) -> dict[str, Any]:
        """The complete state that determines the next batches, JSON-compatible."""
        rng = self.rng.bit_generator.state
        # 128-bit words as hex, since JSON readers may round them.
        words = {name: hex(word) for name, word in rng["state"].items()}
        return {"kind": type(self).__name__, "rng": rng | {"state": words}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a :meth:`state_dict`; ReplayError if kind or batch size differ."""
        if state.get("kind") != type(self).__name__:
            raise ReplayError(
                f"the saved sampler is a {state.get('kind')}, this run's a {type(self).__name__}: "
                "keep --replay.sampler as it was"
            )
        words = {name: int(word, 16) for name, word in state["rng"]["state"].items()}
        self.rng.bit_generator.state = state["rng"] | {"state": words}

    def _empty(self) -> Batch:
        """An uninitialised batch to fill in place; ``reset`` is all False."""
        shape = (self.batch, self.length)
        columns = {
            name: np.empty(shape + column.shape[2:], column.dtype)
            for name, column in self.replay.columns.items()
        }
        return Batch(**columns, reset=np.zeros(shape, np.bool_))


class StreamSampler(Sampler):
    """Each of B slots reads an endless sequence of complete episodes in chunks of L.

    A slot continues where its last chunk ended (``reset`` False: the model keeps its memory of that
    slot). When the episode ends, also in the middle of a chunk, the slot draws the next one, with
    ``reset`` True. An unfinished episode is read up to its newest record. If the ring has
    overwritten an episode's head, it is read from its oldest record held, with ``is_first`` False
    and the record's real action.

    A slot enters its very first episode at a uniformly random record: with few long episodes all
    slots would otherwise read near-copies of one window for thousands of updates. A slot whose next
    record has been overwritten enters an episode in the same way: at the oldest record each time, a
    slow slot would never read most records.

    ``best_of``: every fourth slot draws this many episodes and reads the one with the highest
    return (the paper has 1). If all slots do it, the model forgets how games are lost: its dreams
    become too optimistic, and Breakout fell from 5.4 to 1.4 within 150 updates (one run, which also
    had raised learning rates).
    """

    def __init__(
        self, replay: Replay, batch: int, length: int, seed: int, best_of: int = 1
    ) -> None:
        super().__init__(replay, batch, length, seed)
        self.best_of = best_of
        self._env = np.zeros(batch, np.int64)
        self._row = np.full(batch, -1, np.int64)  # next row to read; -1: nothing read yet

    def sample(self) -> Batch:
        """The next chunk of every slot; see :meth:`Sampler.sample`."""
        out = self._empty()
        for slot in range(self.batch):
            filled = 0
            while filled < self.length:
                fresh = self._find_record(slot)
                env, row = int(self._env[slot]), int(self._row[slot])
                count = self.replay.run(env, row, self.length - filled)
                self.replay.copy(env, row, out, slot, filled, count)
                out.reset[slot, filled] = fresh
                self._row[slot] = row + count
                filled += count
        self.replay.finish()
        return out

    def state_dict(self) -> dict[str, Any]:
        """See :meth:`Sampler.state_dict`; each slot's next record is (env, row)."""
        return super().state_dict() | {"env": self._env.tolist(), "row": self._row.tolist()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """See :meth:`Sampler.load_state_dict`; a slot whose next record is gone draws again."""
        super().load_state_dict(state)
        if len(state["row"]) != self.batch:
            raise ReplayError(
                f"the saved sampler has {len(state['row'])} slots, this run {self.batch}: "
                "keep --replay.batch as it was"
            )
        self._env = np.array(state["env"], np.int64)
        self._row = np.array(state["row"], np.int64)

    def _find_record(self, slot: int) -> bool:
        """Choose the next record of ``slot``; True if it does not continue the record before."""
        env, row = int(self._env[slot]), int(self._row[slot])
        if self.replay.continues_at(env, row):
            return False
        draws = 1 if slot % 4 else self.best_of
        drawn = [self.replay.draw_episode(self.rng) for _ in range(draws)]
        env, start = drawn[0]
        if draws > 1:
            env, start = max(drawn, key=lambda episode: self.replay.episode_return(*episode))
        if row < self.replay.oldest:  # a new slot (-1), or its next record was overwritten
            start += int(self.rng.integers(self.replay.run(env, start, self.replay.rows)))
        self._env[slot], self._row[slot] = env, start
        return True


class WindowSampler(Sampler):
    """Independent windows of L records, uniform over all windows of all environments.

    A window may contain an episode boundary, but never crosses the ring's cursor or rows lost on
    disk. ``reset`` is True at its start and at boundaries.
    """

    def sample(self) -> Batch:
        """B windows; see :meth:`Sampler.sample`."""
        spans = self.replay.spans()
        room = np.array([max(0, stop - start - self.length + 1) for start, stop in spans], int)
        ends = np.cumsum(room)
        if not ends.size or not ends[-1]:
            raise ReplayError(
                f"the replay holds no {self.length} successive steps yet: increase --replay.prefill"
            )
        out = self._empty()
        picks = self.rng.integers(ends[-1] * self.replay.num_envs, size=self.batch)
        for sequence, (place, env) in enumerate(
            zip(*np.divmod(picks, self.replay.num_envs), strict=True)
        ):
            span = int(np.searchsorted(ends, place, side="right"))
            start = spans[span][0] + int(place - (ends[span] - room[span]))
            self.replay.copy(int(env), start, out, sequence, 0, self.length)
            out.reset[sequence] = self.replay.begins(int(env), start, start + self.length)
            out.reset[sequence, 0] = True
        self.replay.finish()
        return out


def make_sampler(
    kind: Literal["streams", "windows"],
    replay: Replay,
    batch: int,
    length: int,
    seed: int,
    best_of: int = 1,
) -> Sampler:
    """The sampler named by ``--replay.sampler``.

    Args:
        kind: ``streams`` or ``windows``; windows ignore ``best_of``.
        replay: the store to read.
        batch: sequences per batch, B.
        length: steps per sequence, L.
        seed: of all draws.
        best_of: episodes that every fourth slot chooses from.
    """
    if kind == "windows":
        return WindowSampler(replay, batch, length, seed)
    return StreamSampler(replay, batch, length, seed, best_of)
