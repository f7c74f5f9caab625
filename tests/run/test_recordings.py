"""Recorded frames come back as they were stored, whatever files they lie in."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from emerald_jax.replay import Replay, ReplayError
from emerald_jax.run.recordings import Recordings
from tests.run_cases import ENVS, EPISODE, ROWS, record


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Replay]:
    run = tmp_path_factory.mktemp("recorded")
    replay = record(run / "replay", ROWS)
    for path in (run / "replay").iterdir():
        path.unlink()
    # Chunks that overlap, as those of several checkpoints do, and one inside another.
    for start, stop in ((0, 20), (0, 37), (30, ROWS)):
        rows = {name: column[start:stop] for name, column in replay.columns.items()}
        np.savez(run / "replay" / f"{start:012d}-{stop:012d}-abc.npz", allow_pickle=False, **rows)
    return run, replay


@pytest.fixture
def recordings(stored) -> Recordings:
    return Recordings(stored[0])


def test_every_frame_is_there(recordings: Recordings) -> None:
    assert (recordings.spans, recordings.num_envs) == ([(0, ROWS)], ENVS)
    assert len(recordings) == ROWS * ENVS


def test_clips_are_what_was_recorded_and_end_with_their_episode(recordings, stored) -> None:
    _, replay = stored
    for env in range(ENVS):
        for row in range(ROWS):
            clip = recordings.clip(env, row, 6)
            stop = row + replay.run(env, row, 6)
            assert (len(clip), clip.env, clip.row) == (stop - row, env, row)
            for name in ("image", "action", "reward", "is_first", "is_last", "is_terminal"):
                np.testing.assert_array_equal(
                    getattr(clip, name), replay.columns[name][row:stop, env]
                )


def test_before_ends_with_the_frame_asked_for(recordings, stored) -> None:
    _, replay = stored
    for row in range(ROWS):
        clip = recordings.before(1, row, 4)
        np.testing.assert_array_equal(clip.image[-1], replay.columns["image"][row, 1])
        assert 1 <= len(clip) <= 4
        assert not clip.is_first[1:].any()
        if len(clip) < 4:
            assert clip.is_first[0]


def test_drawn_clips_have_full_length_where_possible(recordings: Recordings) -> None:
    rng = np.random.default_rng(0)
    assert {len(recordings.draw(5, rng)) for _ in range(20)} == {5}
    # No episode has more frames than its steps and its first frame.
    assert len(recordings.draw(50, rng, tries=200)) == EPISODE + 1


def test_the_newest_columns(recordings, stored) -> None:
    _, replay = stored
    newest = recordings.newest(10**6)
    np.testing.assert_array_equal(newest["action"], replay.columns["action"][:ROWS])
    assert "image" not in newest


def test_what_is_not_recorded_is_refused(recordings: Recordings, tmp_path: Path) -> None:
    with pytest.raises(ReplayError, match=f"row {ROWS} is not recorded: the rows are 0 to 63"):
        recordings.clip(0, ROWS, 3)
    with pytest.raises(ReplayError, match="environment 2 is not recorded"):
        recordings.before(2, 5, 3)
    empty = Recordings(tmp_path)
    assert (len(empty), empty.num_envs) == (0, 0)
    with pytest.raises(ReplayError, match="no recorded frames"):
        empty.draw(3, np.random.default_rng(0))


def test_a_damaged_file_is_named(stored, tmp_path: Path) -> None:
    run, _ = stored
    (tmp_path / "replay").mkdir()
    for path in (run / "replay").iterdir():
        (tmp_path / "replay" / path.name).write_bytes(path.read_bytes()[:-200])
    with pytest.raises(ReplayError, match=r"recorded frames in .*\.npz cannot be read"):
        Recordings(tmp_path)
