"""The replay on disk: an exact copy comes back, and lost chunks become holes."""

from __future__ import annotations

import json
import logging

import numpy as np
import pytest

from emerald_jax.replay import Replay, StreamSampler, WindowSampler
from emerald_jax.run import replay_files
from emerald_jax.run.checkpoint import Store
from emerald_jax.run.directory import CheckpointError
from emerald_jax.run.replay_files import ReplayFiles
from tests.replay_world import SHAPE, World, check_adjacency, fill, records

LENGTHS = [[5, 13, 1, 9], [200, 7], [1, 1, 2, 30]]
TREE = {"x": np.arange(5.0)}


STORE = {"compress": False}


@pytest.fixture(autouse=True, params=[False, True], ids=["plain", "compressed"])
def small_chunks(request, monkeypatch):
    """16 rows a chunk, so that small replays have many; both kinds of stores."""
    monkeypatch.setattr(replay_files, "_chunk_rows", lambda replay: 16)
    monkeypatch.setitem(STORE, "compress", request.param)


def make_replay(rows: int = 100) -> Replay:
    return Replay(3 * rows, 3, SHAPE, **STORE)


def assert_same(a: Replay, b: Replay) -> None:
    """Same rows, same index, same samples."""
    assert (a.written, a.oldest, a.num_episodes) == (b.written, b.oldest, b.num_episodes)
    index = np.arange(a.oldest, a.written) % a.rows
    for name, column in a.columns.items():
        np.testing.assert_array_equal(column[index], b.columns[name][index], err_msg=name)
    for kind in (StreamSampler, WindowSampler):
        left, right = (kind(replay, 4, 9, seed=0) for replay in (a, b))
        for _ in range(5):
            for x, y in zip(left.sample(), right.sample(), strict=True):
                np.testing.assert_array_equal(x, y)


def save(files: ReplayFiles, replay: Replay) -> dict:
    """The manifest, after a round trip through JSON."""
    return json.loads(json.dumps(files.save(replay)))


@pytest.mark.parametrize("rows", [3, 16, 77, 130, 450])
def test_round_trip_of_filling_and_turned_rings(tmp_path, rows):
    files, replay, world = ReplayFiles(tmp_path), make_replay(), World(LENGTHS)
    while world.row < rows:
        fill(replay, world, min(25, rows - world.row))
        files.advance(replay)
        manifest = save(files, replay)
    twin = make_replay()
    assert ReplayFiles(tmp_path).load(manifest, twin) == ()
    assert len(twin) == 3 * min(rows, 100)
    assert len(twin) == len(replay)
    if rows >= 16:
        assert_same(replay, twin)


def test_saving_writes_new_rows_only_and_leaves_few_files(tmp_path):
    files, replay, world = ReplayFiles(tmp_path), make_replay(1000), World(LENGTHS)
    fill(replay, world, 320)
    files.save(replay)
    before = {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    assert len(before) == 20
    for _ in range(64):  # one row a save: small last chunks are merged
        fill(replay, world, 1)
        manifest = save(files, replay)
        files.prune([manifest])
    after = {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    assert before.items() <= after.items()
    assert len(manifest["chunks"]) == len(after) < 20 + 64 / 3


def test_writing_ahead_leaves_little_to_save(tmp_path, monkeypatch):
    files, replay, world = ReplayFiles(tmp_path), make_replay(1000), World(LENGTHS)
    for _ in range(200):
        fill(replay, world, 1)
        files.advance(replay)
        if files._job is not None:
            files._job.exception()  # a fast disk
    calls = []
    write = ReplayFiles._write
    monkeypatch.setattr(
        ReplayFiles, "_write", lambda self, *a: calls.append(a[1:]) or write(self, *a)
    )
    manifest = save(files, replay)
    assert calls == [(192, 200)]
    twin = make_replay(1000)
    ReplayFiles(tmp_path).load(manifest, twin)
    assert_same(replay, twin)
    files.close()
    files.close()


def test_twenty_resumes_leave_contents_and_size_right(tmp_path):
    """Each time: load, add rows, save, and add rows that no checkpoint lists, as after a kill."""
    replay, world = make_replay(), World([[7], [50], [3]])
    manifest = None
    for _ in range(20):
        files = ReplayFiles(tmp_path)
        if manifest is not None:
            replay = make_replay()
            files.load(manifest, replay)
            world.row = replay.written  # a world on a device is resumed at the same point
            world.age = [(world.row % 7), (world.row % 50), (world.row % 3)]
        fill(replay, world, 30)
        manifest = save(files, replay)
        files.prune([manifest])
        fill(replay, world, 9)
        files.advance(replay)
        files.save(replay)  # the checkpoint of these rows is never written
        files.close()
    straight = make_replay()
    fill(straight, World([[7], [50], [3]]), 600)
    resumed = make_replay()
    files = ReplayFiles(tmp_path)
    files.load(manifest, resumed)
    assert_same(straight, resumed)
    files.prune([manifest])
    held = sum(chunk["stop"] - chunk["start"] for chunk in manifest["chunks"])
    assert 100 <= held < 100 + 16
    assert len(list(tmp_path.iterdir())) == len(manifest["chunks"])


@pytest.mark.parametrize("harm", ["flip", "truncate", "remove", "swap"])
def test_a_harmed_chunk_is_skipped_named_and_never_joined_over(tmp_path, harm, caplog):
    files, replay, world = ReplayFiles(tmp_path), make_replay(), World(LENGTHS)
    fill(replay, world, 90)
    manifest = save(files, replay)
    rng = np.random.default_rng(0)
    for number, chunk in enumerate(manifest["chunks"]):
        path = tmp_path / chunk["file"]
        intact = path.read_bytes()
        if harm == "remove":
            path.unlink()
        elif harm == "truncate":
            path.write_bytes(intact[: rng.integers(len(intact))])
        elif harm == "swap":
            path.write_bytes((tmp_path / manifest["chunks"][number - 1]["file"]).read_bytes())
        else:
            place = int(rng.integers(8 * len(intact)))
            flipped = bytearray(intact)
            flipped[place // 8] ^= 1 << (place % 8)
            path.write_bytes(flipped)
        hurt, again = make_replay(), ReplayFiles(tmp_path)
        caplog.clear()
        assert again.load(manifest, hurt) == (chunk["file"],)
        assert chunk["file"] in caplog.text
        assert len(hurt) == 3 * (90 - (chunk["stop"] - chunk["start"]))
        assert hurt.holes == [(chunk["start"], chunk["stop"])]
        path.write_bytes(intact)

        # Saved and loaded again, the hole stays until the ring overwrites it.
        sampler = StreamSampler(hurt, 4, 9, seed=0)
        for _ in range(20):
            batch = sampler.sample()
            check_adjacency(batch, 3)
            _, rows = records(batch, 3)
            assert not ((rows >= chunk["start"]) & (rows < chunk["stop"])).any()
        twin = make_replay()
        second = save(again, hurt)
        ReplayFiles(tmp_path).load(second, twin)
        assert twin.holes == hurt.holes
        assert_same(hurt, twin)


def test_rows_after_a_lost_tail_do_not_continue_the_episode_before_it(tmp_path):
    files, replay, world = ReplayFiles(tmp_path), make_replay(), World([[500]] * 3)
    fill(replay, world, 40)
    manifest = save(files, replay)
    (tmp_path / manifest["chunks"][-1]["file"]).unlink()
    for _ in range(2):
        hurt, again = make_replay(), ReplayFiles(tmp_path)
        again.load(manifest, hurt)
        assert hurt.holes == [(32, 40)]
        fill(hurt, world, 10)
        assert hurt.num_episodes >= 6
        manifest = save(again, hurt)
    sampler = WindowSampler(hurt, 8, 5, seed=0)
    for _ in range(30):
        check_adjacency(sampler.sample(), 3)


def test_everything_lost_leaves_an_empty_store_that_can_be_filled(tmp_path):
    files, replay, world = ReplayFiles(tmp_path), make_replay(), World(LENGTHS)
    fill(replay, world, 40)
    manifest = save(files, replay)
    for path in tmp_path.iterdir():
        path.unlink()
    hurt = make_replay()
    assert len(ReplayFiles(tmp_path).load(manifest, hurt)) == len(manifest["chunks"])
    assert len(hurt) == 0
    fill(hurt, world, 20)
    check_adjacency(StreamSampler(hurt, 4, 9, seed=0).sample(), 3)


@pytest.mark.parametrize("rows", [40, 300])
def test_another_capacity_takes_the_newest_rows(tmp_path, rows):
    files, replay, world = ReplayFiles(tmp_path), make_replay(), World(LENGTHS)
    for _ in range(5):
        fill(replay, world, 50)
        manifest = save(files, replay)
    other = make_replay(rows)
    ReplayFiles(tmp_path).load(manifest, other)
    assert len(other) == 3 * min(rows, 100)
    sampler = StreamSampler(other, 4, 9, seed=0)
    for _ in range(20):
        check_adjacency(sampler.sample(), 3)
        fill(other, world, 3)


def test_other_environments_or_images_are_refused(tmp_path):
    files, replay = ReplayFiles(tmp_path), make_replay()
    fill(replay, World(LENGTHS), 40)
    manifest = save(files, replay)
    with pytest.raises(CheckpointError, match="has num_envs 3, this run 4"):
        files.load(manifest, Replay(400, 4, SHAPE))
    with pytest.raises(CheckpointError, match="image_shape"):
        files.load(manifest, Replay(400, 3, (4, 4, 3)))


def test_a_full_disk_warns_and_the_next_save_is_complete(tmp_path, monkeypatch, caplog):
    files, replay, world = ReplayFiles(tmp_path), make_replay(), World(LENGTHS)
    fill(replay, world, 20)
    files.save(replay)
    with monkeypatch.context() as patch:

        def fail(*_):
            raise OSError(28, "No space left on device")

        patch.setattr(replay_files, "write_atomic", fail)
        fill(replay, world, 20)
        files.advance(replay)
        files.prune([])  # deletes no chunk that is needed
        assert files.save(replay) is None
        assert [r.levelno for r in caplog.records] == [logging.WARNING]
        assert "No space left on device" in caplog.text
        files.advance(replay)
    twin = make_replay()
    ReplayFiles(tmp_path).load(save(files, replay), twin)
    assert_same(replay, twin)


def test_a_point_joins_parameters_and_replay(tmp_path):
    world, replay = World(LENGTHS), make_replay()
    with Store(tmp_path, keep=2) as store:
        for step in range(1, 8):
            fill(replay, world, 30)
            store.advance(replay)
            sampler = StreamSampler(replay, 4, 9, seed=step)
            assert store.save(step, TREE, {"sampler": sampler.state_dict()}, replay)
        assert store.wait()
        assert store.steps() == [6, 7]
    fill(replay, world, 5)
    twin = make_replay()
    with Store(tmp_path, keep=2) as store:
        restored = store.restore(TREE, twin)
        assert restored.step == 7
        assert restored.lost == ()
        again = StreamSampler(twin, 4, 9, seed=0)
        again.load_state_dict(restored.metadata["sampler"])
        check_adjacency(again.sample(), 3)
        assert (twin.written, twin.oldest) == (210, 110)
        older = make_replay()
        assert store.restore(TREE, older, step=6).step == 6
        assert older.written == 180
        # Resumed from the older one: the newer is moved aside, and its chunks are deleted.
        assert store.save(7, TREE, {}, older)
        assert store.wait()
        assert store.save(8, TREE, {}, older)
    names = {path.name for path in (tmp_path / "replay").iterdir()}
    assert all(int(name.split("-")[1]) <= 180 for name in names)
    with pytest.raises(CheckpointError, match="cannot be written in"):
        Store("/proc/nowhere")


def test_a_checkpoint_without_a_replay_fills_none(tmp_path):
    with Store(tmp_path) as store:
        assert store.save(1, TREE, {})
        assert store.wait()
        assert store.restore(TREE).step == 1
        with pytest.raises(CheckpointError, match=r"checkpoint 1 in .* has no replay"):
            store.restore(TREE, make_replay())
