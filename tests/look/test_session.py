"""Steering a dream: it begins where it is told to, and every action counts."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from emerald_jax.agent.agent import Agent
from emerald_jax.config import ConfigError
from emerald_jax.look.play_session import CONTEXT, DreamSession, Picture
from emerald_jax.replay import ReplayError
from emerald_jax.run.recordings import Recordings
from emerald_jax.run.weights import load
from tests.model_cases import little_optimisation
from tests.run_cases import NUM_ACTIONS


@pytest.fixture(scope="module", autouse=True)
def _quickly() -> Iterator[None]:
    """Programs of this file are compiled with little optimisation."""
    with little_optimisation():
        yield


@pytest.fixture(scope="module")
def agent(run: Path) -> Agent:
    return load(run)


@pytest.fixture(scope="module")
def shared(agent: Agent, run: Path) -> DreamSession:
    """Compiled once; each test begins a dream of its own."""
    return DreamSession(agent, Recordings(run), seed=3)


def fresh(shared: DreamSession, seed: int) -> DreamSession:
    """Another session that shares the compiled programs."""
    session = DreamSession(shared.agent, shared.recordings, seed=seed)
    session._see, session._step = shared._see, shared._step
    return session


def test_a_dream_begins_with_a_recorded_frame(shared: DreamSession) -> None:
    picture = shared.begin_recorded(1, 20)
    assert (picture.step, picture.action, picture.real) == (0, -1, None)
    assert picture.frame.shape == (16, 16, 3)
    assert picture.frame.dtype == np.uint8
    assert (picture.confidence == 1).all()
    # It is the reconstruction of that frame, read with its past, as `imagine` shows it.
    clip = shared.recordings.before(1, 20, CONTEXT)
    assert 1 < len(clip) <= CONTEXT
    with pytest.raises(ReplayError, match="row 999 is not recorded"):
        shared.begin_recorded(1, 999)


def test_the_same_seed_and_actions_dream_the_same(shared: DreamSession) -> None:
    def dream(seed: int, actions: list[int]) -> list[Picture]:
        session = fresh(shared, seed)
        session.begin_recorded(0, 12)
        return [session.step(action) for action in actions]

    one, two, other = dream(1, [0, 1, 2, 1]), dream(1, [0, 1, 2, 1]), dream(1, [0, 1, 0, 1])
    assert [p.step for p in one] == [1, 2, 3, 4]
    assert [p.action for p in one] == [0, 1, 2, 1]
    for a, b in zip(one, two, strict=True):
        np.testing.assert_array_equal(a.frame, b.frame)
    np.testing.assert_array_equal(one[1].frame, other[1].frame)
    assert (one[2].frame != other[2].frame).any()
    assert (one[0].frame != dream(2, [0])[0].frame).any()
    assert all((p.confidence > 0).all() and (p.confidence <= 1).all() for p in one)
    assert all(0 < p.cont < 1 for p in one)


def test_the_policy_chooses_when_nobody_does(shared: DreamSession) -> None:
    session = fresh(shared, 5)
    session.begin_recorded(0, 12)
    taken = [session.step(None).action for _ in range(12)]
    assert set(taken) <= set(range(NUM_ACTIONS))
    assert len(set(taken)) > 1


def test_temperature_changes_the_draw_without_compiling_again(shared: DreamSession) -> None:
    compiled = shared._step._cache_size()
    sure = {}
    for temperature in (0.05, 1.0):
        session = fresh(shared, 1)
        session.configure(temperature=temperature)
        session.begin_recorded(0, 12)
        sure[temperature] = np.mean([session.step(0).confidence.mean() for _ in range(4)])
    assert sure[0.05] > 0.95 > sure[1.0]
    assert shared._step._cache_size() == max(compiled, 1)


def test_the_real_environment_goes_beside(shared: DreamSession) -> None:
    session = fresh(shared, 2)
    first = session.begin_real()
    assert session.beside
    assert first.real.shape == (16, 16, 3)
    pictures = [session.step(1) for _ in range(12)]
    # Catch's ball falls, whatever is done, and the episode ends with its ninth step.
    assert (pictures[0].real != first.real).any()
    over = [p.real_over for p in pictures]
    assert over == sorted(over)
    assert over[-1]
    assert abs(pictures[-1].real_reward) == 1
    again = session.begin_real()
    assert not again.real_over
    assert session.begin_recorded().real is None
    session.close()
    session.close()


def test_what_cannot_be_is_refused(shared: DreamSession) -> None:
    session = fresh(shared, 1)
    with pytest.raises(ConfigError, match="has not begun"):
        session.step(0)
    session.begin_recorded(0, 12)
    with pytest.raises(ConfigError, match="action 3 does not exist"):
        session.step(3)
    with pytest.raises(ConfigError, match="decoding steps must lie in 0 … 48, not 49"):
        session.configure(steps=49)
    with pytest.raises(ConfigError, match=r"temperature must lie in 0\.05 … 4\.0, not 0"):
        session.configure(temperature=0.0)


def test_a_run_without_recordings_says_so(agent: Agent, tmp_path: Path) -> None:
    session = DreamSession(agent, Recordings(tmp_path))
    with pytest.raises(ReplayError, match="begin from the real environment"):
        session.begin_recorded()
