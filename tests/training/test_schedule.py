"""Clocks of the loop: when a checkpoint, and when an update, is due."""

from __future__ import annotations

import dataclasses

import pytest

from emerald_jax.presets import get_preset
from emerald_jax.run.checkpoint import RETRY_S, SaveClock
from emerald_jax.training.loop import Pace


class Time:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.mark.parametrize("writing", [5.0, 60.0, 200.0])
def test_checkpoints_are_on_disk_one_interval_apart(writing: float) -> None:
    """What a kill loses at any moment: the age of the newest checkpoint that is on disk."""
    time = Time()
    clock = SaveClock(600, time)
    newest, began, ages, saves = time.now, 0.0, [], 0
    for _ in range(40_000):
        time.now += 0.1
        ages.append(time.now - newest)
        if began and time.now - began >= writing:
            clock.ended(True)
            newest, began, saves = began, 0.0, saves + 1
        elif not began and clock.due():
            clock.begun()
            began = time.now
    allowed = 600 if writing <= 60 else 600 + writing - 60  # the first write takes longer than told
    assert max(ages) <= allowed + 1
    assert max(ages[20_000:]) <= 601
    assert 4 <= saves <= 4000 / (600 - writing) + 1


def test_a_slow_disk_is_not_written_to_without_pause() -> None:
    time = Time()
    clock = SaveClock(10, time)
    clock.begun()
    time.now += 9
    clock.ended(True)
    clock.begun()
    time.now += 4.9
    assert not clock.due()
    time.now += 0.2
    assert clock.due()


@pytest.mark.parametrize("interval", [10.0, 600.0])
def test_a_failed_save_is_tried_again_soon(interval: float) -> None:
    time = Time()
    clock = SaveClock(interval, time)
    clock.begun()
    clock.ended(False)
    time.now += min(interval, RETRY_S) - 0.1
    assert not clock.due()
    time.now += 0.2
    assert clock.due()


def owed(pace: Pace, env_steps: int, updates: int) -> int:
    """Updates that are due, taken at once."""
    count = 0
    while pace.owes(env_steps, updates + count):
        count += 1
    return count


def test_another_pace_owes_nothing_for_the_past() -> None:
    config = get_preset("tiny")  # 4 x 8 records an update
    config = dataclasses.replace(config, train_ratio=8.0)
    pace = Pace(config)
    assert owed(pace, 64, 0) == 0
    assert owed(pace, 64 + 100, 0) == 100 * 8 // 32
    faster = Pace(dataclasses.replace(config, train_ratio=64.0))
    faster.restart(164, 25)
    assert owed(faster, 164, 25) == 0
    assert owed(faster, 168, 25) == 8
    early = Pace(config)
    early.restart(10, 0)
    assert owed(early, 64, 0) == 0
    assert owed(early, 68, 0) == 1
