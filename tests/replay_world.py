"""A fake world whose images encode their record, for the tests of the replay.

It writes (environment, row) into the pixels of every image, so a batch can be checked record by
record, on any path through the ring or the disk.
"""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np

from emerald_jax.replay import Replay, Sampler

SHAPE = (2, 2, 3)


class World:
    """E environments with given episode lengths in records, the last length repeated."""

    def __init__(self, lengths: list[list[int]]) -> None:
        self.lengths = [list(env) for env in lengths]
        self.row = 0
        self.age = [0] * len(lengths)

    def step(self) -> SimpleNamespace:
        """The next row; odd environments terminate, even ones reach a time limit."""
        num = len(self.lengths)
        age = np.array(self.age)
        last = np.array([a == env[0] - 1 for a, env in zip(self.age, self.lengths, strict=True)])
        code = self.row * num + np.arange(num)
        pixels = np.zeros((num, int(np.prod(SHAPE))), np.uint8)
        for byte in range(4):
            pixels[:, byte] = (code >> (8 * byte)) & 255
        for env in range(num):
            self.age[env] = 0 if last[env] else self.age[env] + 1
            if last[env] and len(self.lengths[env]) > 1:
                self.lengths[env].pop(0)
        self.row += 1
        return SimpleNamespace(
            image=pixels.reshape(num, *SHAPE),
            action=np.where(age == 0, -1, self.row % 5).astype(np.int32),
            reward=np.where(age == 0, 0, code).astype(np.float32),
            is_first=age == 0,
            is_last=last,
            is_terminal=last & (np.arange(num) % 2 == 1),
        )


def fill(replay: Replay, world: World, rows: int) -> None:
    for _ in range(rows):
        replay.append(world.step())


def records(batch, num_envs: int) -> tuple[np.ndarray, np.ndarray]:
    """Environment and row of every record, `[B, L]` each, read off the pixels."""
    pixels = batch.image.reshape(*batch.image.shape[:2], -1).astype(np.int64)
    code = sum(pixels[..., byte] << (8 * byte) for byte in range(4))
    return code % num_envs, code // num_envs


def distinct_share(
    sampler: type[Sampler], envs: int, lengths: list[list[int]], updates: int, seed: int
) -> list[float]:
    """Share of distinct records in each of the first batches of a run.

    Batches of 16 x 64, one per vector step, after 1024 records of prefill, as in the presets
    ``crafter`` (16 environments) and ``atari100k`` (one).

    Args:
        sampler: class.
        envs: environments.
        lengths: of their episodes, see :class:`World`.
        updates: batches.
        seed: of the sampler.
    """
    replay, world = Replay(envs * 4096, envs, SHAPE), World(lengths)
    fill(replay, world, max(1024 // envs, 64))
    drawn, found = sampler(replay, 16, 64, seed), []
    for _ in range(updates):
        env, row = records(drawn.sample(), envs)
        found.append(len(np.unique(env * 10**6 + row)) / env.size)
        fill(replay, world, 1)
    return found


def check_adjacency(batch, num_envs: int) -> None:
    """Every record without reset is the successor of the one before it, in the same episode."""
    env, row = records(batch, num_envs)
    joined = ~batch.reset[:, 1:]
    np.testing.assert_array_equal((env[:, 1:] == env[:, :-1])[joined], True)
    np.testing.assert_array_equal((row[:, 1:] - row[:, :-1])[joined], 1)
    assert not batch.is_first[:, 1:][joined].any()
    assert batch.reset[batch.is_first].all()
    # The columns travel with the image: reward is the record's code, action its row.
    code = row * num_envs + env
    np.testing.assert_array_equal(batch.reward, np.where(batch.is_first, 0, code))
    np.testing.assert_array_equal(batch.action, np.where(batch.is_first, -1, (row + 1) % 5))
    np.testing.assert_array_equal(batch.is_terminal, batch.is_last & (env % 2 == 1))
