"""The store and its samplers, against a world whose images encode their record."""

from __future__ import annotations

import json
import tracemalloc
import zlib
from collections import Counter
from contextlib import closing
from itertools import pairwise

import numpy as np
import pytest

from emerald_jax.actions import ActionSpace
from emerald_jax.envs.base import VectorStep
from emerald_jax.replay import (
    COLUMNS,
    Replay,
    ReplayError,
    StreamSampler,
    WindowSampler,
    make_sampler,
    store,
)
from emerald_jax.replay.store import available_bytes
from emerald_jax.run.directory import CheckpointError
from emerald_jax.run.replay_files import ReplayFiles
from tests.replay_world import SHAPE, World, check_adjacency, distinct_share, fill, records

SAMPLERS = (StreamSampler, WindowSampler)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_batch_has_the_agreed_layout(sampler):
    replay = Replay(400, 4, SHAPE)
    fill(replay, World([[7], [90], [3], [11]]), 50)
    batch = sampler(replay, 5, 8, seed=0).sample()
    for name, dtype in COLUMNS.items():
        column = getattr(batch, name)
        assert column.shape == (5, 8, *(SHAPE if name == "image" else ())), name
        assert column.dtype == dtype, name
    assert batch.reset.dtype == bool


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_never_crosses_an_episode_unmarked_while_the_ring_turns(sampler):
    replay = Replay(3 * 40, 3, SHAPE)
    world = World([[5, 13, 1, 9], [200, 7], [1, 1, 2, 30]])
    fill(replay, world, 20)
    drawn = sampler(replay, 4, 16, seed=3)
    for _ in range(300):
        check_adjacency(drawn.sample(), 3)
        fill(replay, world, 1)
        assert len(replay) == 3 * min(world.row, 40)


def test_streams_visit_every_record_equally_often():
    """12 episodes of 1 to 400 records; reading n complete episodes visits a record n / 12 times.

    An episode's count is binomial, so the counts vary as n fair draws do; within
    an episode all records are read the same number of times, up to the unfinished reads at the end.
    """
    lengths = [[1, 17, 90, 3, 400], [250, 2, 259], [64, 64, 128, 255]]
    replay = Replay(3 * 511, 3, SHAPE)
    fill(replay, World(lengths), 511)
    assert replay.num_episodes == 12
    sampler = StreamSampler(replay, 8, 32, seed=1)
    visits: Counter[tuple[int, int]] = Counter()
    for _ in range(3000):
        env, row = records(sampler.sample(), 3)
        visits.update(zip(env.ravel().tolist(), row.ravel().tolist(), strict=True))
    per_episode = []
    for env, episodes in enumerate(lengths):
        edges = np.cumsum([0, *episodes])
        for start, stop in pairwise(edges.tolist()):
            counts = [visits[env, row] for row in range(start, stop)]
            # Complete reads: only the 8 slots' first and last episodes are read in part.
            assert max(counts) - min(counts) <= 2 * 8
            per_episode.append(np.mean(counts))
    mean = sum(per_episode) / 12
    assert sum(visits.values()) == 3000 * 8 * 32
    assert max(abs(count - mean) for count in per_episode) < 4 * mean**0.5


def test_a_chunk_continues_where_the_last_one_ended():
    replay = Replay(2 * 300, 2, SHAPE)
    fill(replay, World([[50, 37], [300]]), 300)
    sampler = StreamSampler(replay, 6, 16, seed=0)
    before = sampler.sample()
    joins = 0
    for _ in range(200):
        after = sampler.sample()
        (env0, row0), (env1, row1) = records(before, 2), records(after, 2)
        for slot in range(6):
            if before.is_last[slot, -1]:
                assert after.is_first[slot, 0]  # static store: every episode is complete
            if not after.reset[slot, 0]:
                assert env0[slot, -1] == env1[slot, 0]
                assert row0[slot, -1] + 1 == row1[slot, 0]
                joins += 1
            elif not before.is_last[slot, -1]:
                assert row0[slot, -1] == replay.written - 1  # only an open episode ends without one
        before = after
    assert joins > 0.5 * 200 * 6


def test_first_entry_is_in_the_middle_with_the_real_action():
    replay = Replay(1000, 1, SHAPE)
    fill(replay, World([[1000]]), 1000)
    batch = StreamSampler(replay, 64, 32, seed=0).sample()
    _, row = records(batch, 1)
    assert batch.reset[:, 0].all()
    # Only a slot that reached the newest record resets again, to the episode's start.
    np.testing.assert_array_equal(batch.reset[:, 1:], row[:, :-1] == 999)
    assert len(set(row[:, 0])) > 40
    # Uniform over all 1000 records: 64 draws lie below 100 in 6.4 +- 2.4 cases, as often above 900.
    assert 1 <= np.sum(row[:, 0] < 100) <= 15
    assert 1 <= np.sum(row[:, 0] >= 900) <= 15
    inside = row[:, 0] > 0
    assert not batch.is_first[inside, 0].any()
    assert (batch.action[inside, 0] >= 0).all()


def test_every_fourth_slot_reads_the_best_of_several_episodes():
    # Rewards are row numbers: 19 complete episodes, each better than the one before, and the first
    # half of a twentieth, whose return of 191 + ... + 194 is less than that of 181 + ... + 189.
    replay = Replay(1000, 1, SHAPE)
    fill(replay, World([[10]]), 195)
    assert replay.episode_return(0, 180) == sum(range(181, 190))  # a first frame has no reward
    assert replay.episode_return(0, 190) == sum(range(191, 195))
    sampler = StreamSampler(replay, 8, 10, seed=0, best_of=200)
    rows = np.stack([records(sampler.sample(), 1)[1] for _ in range(30)])  # [30, B, L]
    chosen, others = rows[:, ::4], np.delete(rows, [0, 4], axis=1)
    assert set(chosen.ravel()) == set(range(180, 190))
    assert set(others.ravel()) == set(range(195))


def test_a_slot_whose_next_record_was_overwritten_draws_again_with_reset():
    replay = Replay(64, 1, SHAPE)
    world = World([[10_000]])
    fill(replay, world, 64)
    sampler = StreamSampler(replay, 4, 8, seed=0)
    sampler.sample()
    fill(replay, world, 100)
    batch = sampler.sample()
    _, row = records(batch, 1)
    assert batch.reset[:, 0].all()
    assert not batch.is_first.any()
    assert (row[:, 0] >= replay.oldest).all()  # the episode's head is gone
    assert len(set(row[:, 0])) > 1  # anywhere in the rest, not only at its oldest record
    check_adjacency(batch, 1)


def test_an_episode_without_its_head_is_read_from_its_oldest_record():
    replay = Replay(64, 1, SHAPE)
    world = World([[100, 10_000]])
    fill(replay, world, 90)
    sampler = StreamSampler(replay, 1, 16, seed=0)
    rows = np.concatenate([records(sampler.sample(), 1)[1].ravel() for _ in range(8)])
    newest = np.flatnonzero(rows[:-1] == 89)
    assert len(newest) >= 1
    assert (rows[newest + 1] == 26).all()


@pytest.mark.parametrize(
    ("envs", "length"), [(1, 50), (1, 1000), (1, 10**6), (2, 10**6), (16, 10**6)]
)
def test_batches_of_streams_have_as_many_distinct_records_as_those_of_windows(envs, length):
    # Windows have 0.63 to 0.67 in the first 30 batches. Streams that entered their first episode
    # below L had 0.25 (one environment, 1000 records), 0.12 (one endless) and 0.22 (two endless).
    streams, windows = (
        np.mean([distinct_share(s, envs, [[length]] * envs, 30, seed) for seed in range(3)])
        for s in SAMPLERS
    )
    assert streams > 0.8 * windows


@pytest.mark.parametrize("chunk", [4, 8])
def test_slow_streams_read_all_of_an_episode_longer_than_the_ring(chunk):
    # Per batch 16 rows are written and each of 16 slots reads a quarter or a half as many: 4 or 8
    # reads per record on average. From the oldest record, only a quarter or a half were ever read.
    replay, world = Replay(256, 1, SHAPE), World([[10**6]])
    fill(replay, world, 256)
    sampler = StreamSampler(replay, 16, chunk, seed=0)
    reads = np.zeros(256 + 16 * 1000, int)
    for _ in range(1000):
        np.add.at(reads, records(sampler.sample(), 1)[1].ravel(), 1)
        fill(replay, world, 16)
    settled = reads[512:-512]  # records whose complete time in the ring was sampled
    assert abs(settled.mean() - chunk) < 0.1 * chunk
    assert np.mean(settled == 0) < 0.05


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_the_newest_and_the_oldest_record_are_drawn(sampler):
    replay = Replay(2 * 30, 2, SHAPE)
    world = World([[20], [77]])
    fill(replay, world, 95)
    drawn = sampler(replay, 4, 8, seed=0)
    rows = np.concatenate([records(drawn.sample(), 2)[1].ravel() for _ in range(200)])
    assert rows.max() == 94
    assert rows.min() == 65


def test_an_open_episode_is_read_once_per_visit_and_grows():
    replay = Replay(100, 1, SHAPE)
    world = World([[100]])
    fill(replay, world, 10)
    sampler = StreamSampler(replay, 1, 10, seed=0)
    first = sampler.sample()
    _, row = records(first, 1)
    ends = np.flatnonzero(row[0] == 9)
    assert all(first.reset[0, end + 1] for end in ends if end < 9)
    fill(replay, world, 5)
    seen = np.concatenate([records(sampler.sample(), 1)[1].ravel() for _ in range(3)])
    assert seen.max() == 14


def test_windows_are_uniform():
    """8 windows of 3 in 10 rows of one environment, two environments: 16 equally likely."""
    replay = Replay(20, 2, SHAPE)
    fill(replay, World([[4], [50]]), 17)
    sampler = WindowSampler(replay, 16, 3, seed=0)
    starts: Counter[tuple[int, int]] = Counter()
    for _ in range(1000):
        env, row = records(sampler.sample(), 2)
        starts.update(zip(env[:, 0].tolist(), row[:, 0].tolist(), strict=True))
    assert set(starts) == {(env, row) for env in range(2) for row in range(7, 15)}
    assert max(abs(count - 1000) for count in starts.values()) < 4 * 1000**0.5


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_same_seed_and_a_restored_state_give_the_same_batches(sampler):
    def run(steps: int, state: str | None = None, skip: int = 0) -> list:
        replay, world = Replay(60, 3, SHAPE), World([[5, 13], [200], [2, 30]])
        fill(replay, world, 10 + skip)
        drawn = sampler(replay, 3, 5, seed=7)
        if state:
            drawn.load_state_dict(json.loads(state))
        batches = []
        for _ in range(steps):
            batches.append(drawn.sample())
            fill(replay, world, 1)
        return [batches, json.dumps(drawn.state_dict())]

    full, _ = run(40)
    head, state = run(25)
    tail, _ = run(15, state, skip=25)
    for a, b in zip(full, head + tail, strict=True):
        for left, right in zip(a, b, strict=True):
            np.testing.assert_array_equal(left, right)


def test_a_saved_sampler_of_another_kind_or_size_is_refused():
    replay = Replay(60, 3, SHAPE)
    state = StreamSampler(replay, 4, 5, seed=0).state_dict()
    with pytest.raises(ReplayError, match=r"--replay\.sampler"):
        WindowSampler(replay, 4, 5, seed=0).load_state_dict(state)
    with pytest.raises(ReplayError, match=r"--replay\.batch"):
        StreamSampler(replay, 8, 5, seed=0).load_state_dict(state)


def test_restore_rebuilds_the_index_of_a_turned_ring():
    replay, world = Replay(3 * 25, 3, SHAPE), World([[5, 13, 1, 9], [200, 7], [1, 1, 2, 30]])
    fill(replay, world, 60)
    twin = Replay(3 * 25, 3, SHAPE)
    for name, column in replay.columns.items():
        twin.columns[name][:] = column
    twin.restore(written=replay.written, oldest=replay.oldest, holes=())
    for other in (replay, twin):
        fill(other, World([[4], [4], [4]]), 3)
    assert twin.num_episodes == replay.num_episodes
    a, b = (StreamSampler(r, 4, 16, seed=0) for r in (replay, twin))
    for _ in range(50):
        for left, right in zip(a.sample(), b.sample(), strict=True):
            np.testing.assert_array_equal(left, right)


@pytest.mark.parametrize("hole", [(0, 6), (20, 33), (52, 60), (0, 0)])
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_lost_rows_are_never_drawn_nor_joined_over(sampler, hole):
    replay, world = Replay(3 * 60, 3, SHAPE), World([[5, 13, 1, 9], [200, 7], [1, 1, 2, 30]])
    fill(replay, world, 60)
    lost = slice(*hole)
    replay.columns["image"][lost] = 255
    replay.restore(written=60, oldest=0, holes=[hole] if hole[1] else [])
    assert len(replay) == 3 * (60 - (hole[1] - hole[0]))
    drawn = sampler(replay, 4, 9, seed=3)
    for turn in range(150):
        check_adjacency(drawn.sample(), 3)
        if turn > 20:
            fill(replay, world, 1)
    assert len(replay) == 3 * 60
    assert not replay.holes


def test_an_episode_cut_without_an_end_is_closed_as_truncated():
    replay = Replay(30, 1, SHAPE)
    fill(replay, World([[100]]), 4)
    fill(replay, World([[100]]), 4)  # a resumed run: a new episode, the old one never ended
    assert replay.columns["is_last"][:8, 0].tolist() == [False] * 3 + [True] + [False] * 4
    assert not replay.columns["is_terminal"].any()
    assert replay.num_episodes == 2


def test_an_empty_or_too_short_store_is_reported():
    replay = Replay(60, 3, SHAPE)
    with pytest.raises(ReplayError, match="empty"):
        StreamSampler(replay, 2, 8, seed=0).sample()
    fill(replay, World([[5], [5], [5]]), 7)
    with pytest.raises(ReplayError, match=r"--replay\.prefill"):
        WindowSampler(replay, 2, 8, seed=0).sample()
    assert StreamSampler(replay, 2, 8, seed=0).sample().reset[:, 0].all()


def test_append_refuses_another_shape_or_type():
    replay = Replay(60, 3, SHAPE)
    step = World([[5]]).step()
    with pytest.raises(ReplayError, match="expects images"):
        replay.append(step)  # one environment would broadcast over three
    step = World([[5]] * 3).step()
    step.image = step.image.astype(np.float32)
    with pytest.raises(ReplayError, match="uint8"):
        replay.append(step)


def test_a_store_beyond_the_ram_is_refused_in_one_line(monkeypatch):
    monkeypatch.setattr(store, "available_bytes", lambda: 10**9)
    with pytest.raises(ReplayError, match=r"GiB.*--replay.capacity to (\d+) or less") as caught:
        Replay(1_000_000, 16, (64, 64, 3))
    message = str(caught.value)
    assert "\n" not in message
    fits = int(message.split("--replay.capacity to ")[1].split()[0])
    assert fits % 16 == 0
    assert 70_000 < fits < 10**9 / 12_300
    Replay(fits, 16, (64, 64, 3))
    with pytest.raises(ReplayError):
        Replay(fits + 16, 16, (64, 64, 3))
    with pytest.raises(ReplayError, match="at least 16"):
        Replay(15, 16, (64, 64, 3))


def test_available_memory_is_plausible():
    assert 2**20 < available_bytes() < 2**50


def test_append_neither_copies_nor_grows():
    replay, world = Replay(8 * 2000, 8, (32, 32, 3)), World([[50]] * 8)
    step = world.step()
    step.image = np.zeros((8, 32, 32, 3), np.uint8)
    pointers = {name: column.ctypes.data for name, column in replay.columns.items()}
    tracemalloc.start()
    for row in range(5000):
        step.is_first = np.full(8, row % 50 == 0)
        replay.append(step)
        if row == 2500:
            settled, _ = tracemalloc.get_traced_memory()
            tracemalloc.reset_peak()
    now, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    # The store is 49 MB; an append may allocate a few small arrays, and nothing may stay.
    assert peak - settled < 100_000
    assert now - settled < 20_000
    assert pointers == {name: column.ctypes.data for name, column in replay.columns.items()}
    needed = Replay.nbytes_needed(8 * 2000, 8, (32, 32, 3))
    assert needed == sum(c.nbytes for c in replay.columns.values()) + 8 * 2000


def test_vectors_of_actions_are_stored_sampled_and_read_back(tmp_path):
    rng, sizes = np.random.default_rng(0), (0, 3)
    replay = Replay(3 * 40, 3, SHAPE, sizes)
    assert Replay.nbytes_needed(9, 3, SHAPE, sizes) == Replay.nbytes_needed(9, 3, SHAPE) + 9 * 4
    given = ActionSpace(sizes).sample(rng, 30, 3)
    for t, action in enumerate(given):
        first = np.full(3, t % 10 == 0)
        action = np.where(first[:, None], np.nan, action).astype(np.float32)
        flag = np.zeros(3, bool)
        reward = np.zeros(3, np.float32)
        image = np.full((3, *SHAPE), t, np.uint8)
        replay.append(VectorStep(image, action, reward, first, flag, flag))
    for kind in (StreamSampler, WindowSampler):
        batch = kind(replay, 4, 6, 0).sample()
        assert (batch.action.shape, batch.action.dtype) == ((4, 6, 2), np.float32)
        np.testing.assert_array_equal(np.isnan(batch.action).all(-1), batch.is_first)
        times = batch.image[..., 0, 0, 0]
        known = ~batch.is_first
        matches = (given[times] == batch.action[:, :, None]).all(-1).any(-1)
        assert matches[known].all()
    with closing(ReplayFiles(tmp_path)) as files:
        manifest = files.save(replay)
        again = Replay(3 * 40, 3, SHAPE, sizes)
        assert files.load(manifest, again) == ()
        with pytest.raises(CheckpointError, match=r"has action_sizes \[0, 3\], this run \(\)"):
            files.load(manifest, Replay(3 * 40, 3, SHAPE))
    for name, column in replay.columns.items():
        np.testing.assert_array_equal(column, again.columns[name])
    step = VectorStep(*(column[0] for column in replay.columns.values()))
    with pytest.raises(ReplayError, match=r"expects actions \(3, 2\), got \(3,\)"):
        replay.append(step._replace(action=np.zeros(3, np.int32)))


# --------------------------------------------------------------------------- compressed images


def both(capacity: int, num_envs: int) -> tuple[Replay, Replay]:
    """A plain and a compressed store."""
    return Replay(capacity, num_envs, SHAPE), Replay(capacity, num_envs, SHAPE, compress=True)


@pytest.mark.parametrize("kind", ["streams", "windows"])
def test_a_compressed_store_gives_the_same_batches(kind):
    """While the ring fills and after it has gone round twice."""
    plain, compressed = both(60, 3)
    worlds = [World([[4, 7], [3], [25]]) for _ in range(2)]
    samplers = [make_sampler(kind, held, 4, 5, 0) for held in (plain, compressed)]
    for _ in range(9):
        for held, world in zip((plain, compressed), worlds, strict=True):
            fill(held, world, 6)
        for ours, theirs in zip(*(sampler.sample() for sampler in samplers), strict=True):
            np.testing.assert_array_equal(ours, theirs)
    np.testing.assert_array_equal(plain.columns["image"], compressed.columns["image"][:])


@pytest.mark.parametrize(
    "index", [3, (3, 1), slice(2, 5), np.array([4, 0, 4]), (slice(1, 9), 2), slice(4, 4)]
)
def test_compressed_images_are_indexed_as_arrays_are(index):
    plain, compressed = both(30, 3)
    for held in (plain, compressed):
        fill(held, World([[4]] * 3), 10)
    images, ours = plain.columns["image"], compressed.columns["image"]
    np.testing.assert_array_equal(ours[index], images[index])
    for value in (images[index] // 2, 7):
        ours[index], images[index] = value, value
        np.testing.assert_array_equal(ours[:], images)


def test_an_image_may_be_changed_after_it_was_stored():
    _, held = both(30, 3)
    image = np.full((3, *SHAPE), 5, np.uint8)
    held.columns["image"][0] = image
    image[:] = 0
    assert (held.columns["image"][0] == 5).all()


def test_rows_taken_for_the_disk_do_not_change():
    _, held = both(12, 3)
    fill(held, World([[4]] * 3), 4)
    taken, before = held.columns["image"].take(np.arange(4), axis=0), held.columns["image"][:]
    fill(held, World([[9]] * 3), 4)
    np.testing.assert_array_equal(np.asarray(taken), before)


def test_the_size_of_compressed_images_is_known():
    held = Replay(64, 1, (64, 64, 3), compress=True)
    blank = held.columns["image"].nbytes
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    held.columns["image"][0] = noise
    grown = held.columns["image"].nbytes - blank
    assert 0.99 * noise.size < grown < 1.01 * noise.size  # noise cannot be compressed
    assert Replay.nbytes_needed(64, 1, (64, 64, 3), compress=True) < 64 * noise.size / 5


def test_a_flipped_bit_in_memory_is_an_error():
    _, held = both(30, 3)
    fill(held, World([[4]] * 3), 10)
    images = held.columns["image"]
    data = bytearray(images.take(np.array([2]))._images[0, 0])
    data[-1] ^= 1
    images._images[2, 0] = bytes(data)
    with pytest.raises(zlib.error):
        images[2]
