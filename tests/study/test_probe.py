"""The memory probe: only the first frame determines the last reward."""

from __future__ import annotations

import numpy as np
import pytest

from experiments.study.probe import NUM_ACTIONS, probe_replay
from experiments.study.worlds import whole_windows


@pytest.mark.parametrize("delay", [2, 5])
def test_an_episode_repeats_its_cue(delay):
    replay = probe_replay(delay, 400, 4, seed=0)
    windows = whole_windows(replay, 40, delay + 1, seed=0)
    np.testing.assert_array_equal(windows.is_first[:, 0], True)
    np.testing.assert_array_equal(windows.is_terminal[:, -1], True)
    assert not windows.is_first[:, 1:].any()
    assert not windows.is_terminal[:, :-1].any()
    red = windows.image[:, 0, 0, 0, 0] > 100
    assert 5 < red.sum() < 35, "both cues occur"
    np.testing.assert_array_equal(windows.reward[:, -1], np.where(red, 1, -1))
    assert not windows.reward[:, :-1].any()
    np.testing.assert_array_equal(windows.image[:, -1], windows.image[:, 0])
    # The grey frames between are independent of the cue.
    later = windows.image[:, 1:-1]
    np.testing.assert_array_equal(later, later[..., :1].repeat(3, -1))
    # One bar, from the middle on where the actions move it.
    bar = later[:, :, 0, :, 0] == 160
    assert (bar.sum(-1) == 1).all()
    moves = np.cumsum(2 * windows.action[:, 2:-1] - 1, axis=1)
    np.testing.assert_array_equal(bar.argmax(-1)[:, 1:], (2 + moves) % 4)
    assert (bar.argmax(-1)[:, 0] == 2).all()
    assert set(np.unique(windows.action[:, 1:])) == set(range(NUM_ACTIONS))
    assert (windows.action[:, 0] == -1).all()
