"""A steered dream begins at the chosen frame and follows every action, also in Gymnasium."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from emerald_jax.agent import Agent
from emerald_jax.config import ConfigError
from emerald_jax.look.play_session import CONTEXT, DreamEnv, DreamSession, Picture
from emerald_jax.replay import ReplayError
from emerald_jax.run.recordings import Recordings
from emerald_jax.run.weights import load
from tests.model_cases import little_optimisation
from tests.run_cases import NUM_ACTIONS


@pytest.fixture(scope="module", autouse=True)
def _quickly() -> Iterator[None]:
    """Compile the programs of this file with little optimisation."""
    with little_optimisation():
        yield


@pytest.fixture(scope="module")
def agent(run: Path) -> Agent:
    return load(run)


@pytest.fixture(scope="module")
def shared(agent: Agent, run: Path) -> DreamSession:
    """Compiled once; each test begins its own dream."""
    return DreamSession(agent, Recordings(run), seed=3)


def fresh(shared: DreamSession, seed: int) -> DreamSession:
    """Another session that shares the compiled programs."""
    session = DreamSession(shared.agent, shared.recordings, seed=seed)
    session._read, session._step = shared._read, shared._step
    return session


def test_a_dream_begins_with_a_recorded_frame(shared: DreamSession) -> None:
    picture = shared.begin_recorded(1, 20)
    assert (picture.step, picture.action, picture.real) == (0, -1, None)
    assert picture.frame.shape == (16, 16, 3)
    assert picture.frame.dtype == np.uint8
    assert (picture.confidence == 1).all()
    # The frame is read with its past, and shown as `imagine` reconstructs it.
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


def test_the_policy_chooses_without_a_given_action(shared: DreamSession) -> None:
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


def test_the_real_environment_runs_next_to_the_dream(shared: DreamSession) -> None:
    session = fresh(shared, 2)
    first = session.begin_real()
    assert session.beside
    assert first.real.shape == (16, 16, 3)
    pictures = [session.step(1) for _ in range(12)]
    # Catch's ball falls under any action, and the episode ends after nine steps.
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


def test_invalid_requests_are_refused(shared: DreamSession) -> None:
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


def test_a_run_without_recordings_is_refused(agent: Agent, tmp_path: Path) -> None:
    session = DreamSession(agent, Recordings(tmp_path))
    with pytest.raises(ReplayError, match="begin from the real environment"):
        session.begin_recorded()


@pytest.fixture(scope="module")
def dream_env(shared: DreamSession) -> DreamEnv:
    """A dream environment that shares the compiled programs."""
    env = DreamEnv(shared.agent, shared.recordings, horizon=6, render_mode="rgb_array")
    env.session._read, env.session._step = shared._read, shared._step
    return env


def episode(env: DreamEnv, **start: object) -> tuple[list[np.ndarray], list[float], list[bool]]:
    """Frames, rewards and ends of six steps that alternate between two actions."""
    frames, rewards, ends = [env.reset(**start)[0]], [], []
    for step in range(6):
        frame, reward, terminated, truncated, info = env.step(step % 2)
        assert terminated == (info["cont"] < 0.5)
        assert info["confidence"].shape == (4, 4)
        np.testing.assert_array_equal(env.render(), frame)
        frames.append(frame)
        rewards.append(reward)
        ends.append(truncated)
    return frames, rewards, ends


def test_gymnasium_accepts_the_dream(dream_env: DreamEnv) -> None:
    check_env(dream_env, skip_render_check=True)


def test_a_seed_repeats_the_dream(dream_env: DreamEnv) -> None:
    frames, rewards, ends = episode(dream_env, seed=4)
    assert ends == [False] * 5 + [True]
    again = episode(dream_env, seed=4)
    np.testing.assert_array_equal(frames, again[0])
    assert (rewards, ends) == again[1:]
    # Without a seed the next episode is another one, and it is repeated with its predecessor.
    second = episode(dream_env)[0]
    assert (np.array(second) != np.array(frames)).any()
    episode(dream_env, seed=4)
    np.testing.assert_array_equal(episode(dream_env)[0], second)


def test_a_dream_begins_at_a_given_start(dream_env: DreamEnv) -> None:
    recorded, info = dream_env.reset(seed=1, options={"env": 1, "row": 20})
    assert (info["confidence"] == 1).all()
    clip = dream_env.session.recordings.before(1, 20, CONTEXT)
    start = {"image": clip.image, "action": clip.action}
    given, _ = dream_env.reset(seed=1, options=start)
    np.testing.assert_array_equal(given, recorded)


def test_a_low_probability_to_continue_terminates(
    dream_env: DreamEnv, monkeypatch: pytest.MonkeyPatch
) -> None:
    dream_env.reset(seed=1)
    picture = dream_env.session.step(0)
    for cont, terminated in ((0.49, True), (0.5, False)):
        monkeypatch.setattr(
            dream_env.session, "step", lambda action, c=cont: picture._replace(cont=c)
        )
        assert dream_env.step(0)[2] is terminated


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"row": 3}, "options must be image and action, or env and row"),
        ({"image": np.zeros((1, 8, 8, 3), np.uint8), "action": [-1]}, "a start is image"),
        ({"image": np.zeros((1, 16, 16, 3)), "action": [-1]}, "a start is image"),
        ({"image": np.zeros((0, 16, 16, 3), np.uint8), "action": []}, "a start is image"),
    ],
)
def test_a_bad_start_is_one_line(dream_env: DreamEnv, options: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as error:
        dream_env.reset(options=options)
    assert "\n" not in str(error.value)


def test_bad_settings_of_a_dream_are_refused(shared: DreamSession) -> None:
    for settings in ({"horizon": 0}, {"context": 0}, {"steps": 49}, {"render_mode": "human"}):
        with pytest.raises(ConfigError):
            DreamEnv(shared.agent, shared.recordings, **settings)
    with pytest.raises(ConfigError, match="reset it first"):
        DreamEnv(shared.agent, shared.recordings).step(0)
