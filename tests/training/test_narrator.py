"""What a row of metrics says of real play."""

from __future__ import annotations

import numpy as np
import pytest

from emerald_jax.envs.base import EnvSpec, VectorStep
from emerald_jax.replay import Replay
from emerald_jax.training.narrator import RECENT_RECORDS, real_play

NAMES = ("noop", "left", "do")


def spec(names: tuple[str, ...] = NAMES) -> EnvSpec:
    return EnvSpec(name="game", image_shape=(2, 2, 3), num_actions=3, action_names=names)


def played(steps: list[tuple[int, float]], rows: int = 8) -> Replay:
    """Two environments that do the same; action -1 is a first frame."""
    replay = Replay(2 * rows, 2, (2, 2, 3))
    for action, reward in steps:
        first = np.full(2, action < 0)
        no = np.zeros(2, bool)
        replay.append(
            VectorStep(
                image=np.zeros((2, 2, 2, 3), np.uint8),
                action=np.full(2, action, np.int32),
                reward=np.full(2, reward, np.float32),
                is_first=first,
                is_last=no,
                is_terminal=no,
            )
        )
    return replay


def test_first_frames_are_no_steps() -> None:
    found = real_play(played([(-1, 0), (1, 1), (1, 0), (-1, 0), (2, 2)]), spec())
    assert found == pytest.approx(
        {"play/reward": 1, "actions/noop": 0, "actions/left": 2 / 3, "actions/do": 1 / 3}
    )


def test_without_a_step_there_is_nothing_to_tell() -> None:
    assert real_play(played([]), spec()) == {}
    assert real_play(played([(-1, 0)]), spec()) == {}


def test_actions_without_names_are_numbered() -> None:
    assert real_play(played([(-1, 0), (2, 0)]), spec(()))["actions/2"] == 1


def test_only_the_newest_records_count() -> None:
    # The ring has gone round, and it holds more than is looked at.
    rows = RECENT_RECORDS // 2
    old, new = [(0, 5.0)] * rows, [(1, 0.0), (2, 1.0)] * (rows // 2)
    found = real_play(played([(-1, 0), *old, *new], rows=rows + 100), spec())
    assert found["play/reward"] == pytest.approx(0.5)
    assert (found["actions/noop"], found["actions/left"]) == (0, 0.5)
