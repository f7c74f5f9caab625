"""Actions of every kind at the environment: converted, recorded, checked."""

from __future__ import annotations

from contextlib import closing
from dataclasses import replace
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.spaces import Box, Dict, Discrete, MultiBinary, MultiDiscrete, Text, Tuple

from emerald_jax.actions import ActionSpace
from emerald_jax.config import EnvsConfig
from emerald_jax.envs import EnvError, check_env, make_vector_env_of, register, spec_of
from emerald_jax.envs.base import check_same_spec
from emerald_jax.envs.gym import ImageEnv
from emerald_jax.envs.playing import play_randomly
from tests.action_worlds import Match, Steer, mixed, multi

SMALL = EnvsConfig(count=2, image_size=16, workers="inline")


class MineLike(gymnasium.Env):
    """MineRL's interface: a dict of actions, and a dict of observations with the image ``pov``."""

    observation_space = Dict(
        pov=Box(0, 255, (36, 64, 3), np.uint8),
        compass=Dict(angle=Box(-180, 180, (), np.float32)),
        inventory=Dict(dirt=Box(0, 2304, (), np.int64)),
    )
    action_space = Dict(
        attack=Discrete(2),
        camera=Box(-180, 180, (2,), np.float32),
        forward=Discrete(2),
        hotbar=Dict(slot=Discrete(9, start=1), drop=MultiBinary(2)),
    )

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[dict, dict]:
        super().reset(seed=seed)
        self.view, self.dirt, self.taken = np.zeros(2), 0, []
        return self._observe(), {}

    def step(self, action: dict) -> tuple[dict, float, bool, bool, dict]:
        assert self.action_space.contains(action), action
        self.taken.append(action)
        self.view = np.clip(self.view + action["camera"] / 10, -90, 90)
        dug = int(action["attack"]) * int(abs(self.view[0]) < 45)
        self.dirt += dug
        return self._observe(), float(dug), self.dirt >= 5, False, {}

    def _observe(self) -> dict:
        image = np.full((36, 64, 3), 90, np.uint8)
        image[int(18 + self.view[0] / 6), int(32 + self.view[1] / 4)] = (255, 200, 40)
        angle, dirt = np.float32(self.view[1]), np.int64(self.dirt)
        return {"pov": image, "compass": {"angle": angle}, "inventory": {"dirt": dirt}}


def wrapped(space: gymnasium.Space) -> ImageEnv:
    class Env(Match):
        def step(self, action: Any) -> tuple:
            self.taken = action
            return self._image(), 0.0, False, False, {}

        def reset(self, *, seed: int | None = None, options: Any = None) -> tuple:
            return self._image(), {}

        def _image(self) -> np.ndarray:
            return np.zeros((16, 16, 3), np.uint8)

    return ImageEnv(Env(space), "mine", EnvsConfig(image_size=16))


@pytest.mark.parametrize(
    ("space", "vector", "own"),
    [
        (Box(-3, 5, (2,), np.float32), [-1, 0.5], np.array([-3, 3], np.float32)),
        (Box(0, 1, (1, 2), np.float64), [0, 1], np.array([[0.5, 1]])),
        (Box(0, 10, (2,), np.int64), [0.1, 1], np.array([6, 10])),
        (Box(np.float32([0, -1]), np.float32([8, 1])), [0, 0], np.array([4, 0], np.float32)),
        (MultiDiscrete([3, 4]), [2, 0], np.array([2, 0])),
        (MultiDiscrete([[2, 3]], start=[[5, 0]]), [1, 2], np.array([[6, 2]])),
        (MultiBinary(3), [1, 0, 1], np.array([1, 0, 1], np.int8)),
    ],
    ids=str,
)
def test_vectors_become_the_environments_own_arrays(space, vector, own) -> None:
    env = wrapped(space)
    env.reset()
    env.step(np.array(vector, np.float32))
    assert env.unwrapped.taken.dtype == space.dtype
    np.testing.assert_allclose(env.unwrapped.taken, own, rtol=1e-6)
    assert space.contains(env.unwrapped.taken)


def test_nested_actions_keep_their_names_and_places() -> None:
    space = Dict(
        a=Dict(jump=MultiBinary(1), turn=Box(-9, 9, (), np.float32)),
        b=Tuple((Discrete(3, start=-1), Box(0, 2, (2,), np.float32))),
    )
    env = wrapped(space)
    expected = {"a jump": 2, "a turn": 0, "b 1": 3, "b 2 1": 0, "b 2 2": 0}
    assert env.entries == list(expected.items())
    env.step(np.array([1, -0.5, 2, -1, 0.25], np.float32))
    taken = env.unwrapped.taken
    assert space.contains(taken)
    assert (taken["a"]["jump"], taken["a"]["turn"]) == ([1], -4.5)
    assert taken["b"][0] == 1
    np.testing.assert_allclose(taken["b"][1], [0, 1.25])


@pytest.mark.parametrize("space", [MultiDiscrete([4]), Dict(x=Discrete(4)), Tuple([Discrete(4)])])
def test_a_single_category_is_a_discrete_action(space) -> None:
    env = wrapped(space)
    assert env.action_space == Discrete(4)
    env.step(np.int64(3))
    assert space.contains(env.unwrapped.taken)


@pytest.mark.parametrize(
    ("space", "message"),
    [
        (Box(-np.inf, 1, (3,)), r"takes Box\[3\] float32: give it finite bounds"),
        (Dict(say=Text(9)), "takes Text.* as 'say' of an action; supported are Discrete"),
        (Dict(), "which has no entries"),
    ],
)
def test_other_actions_are_refused_in_one_line(space, message) -> None:
    with pytest.raises(EnvError, match=message) as caught:
        wrapped(space)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("factory", [Steer, multi, mixed, MineLike])
def test_every_rule_is_kept(factory) -> None:
    register("mine", factory)
    for workers in ("inline", "process"):
        assert check_env("mine", replace(SMALL, workers=workers, time_limit=20), steps=60) == ()
    spec, episodes = play_randomly("mine", replace(SMALL, time_limit=20), 4)
    assert len(episodes) == 4
    assert spec.num_actions == 0
    assert len(spec.action_names) == len(spec.action_sizes)


def test_minerls_interface() -> None:
    register("mine", MineLike)
    spec = spec_of("mine", SMALL)
    assert dict(zip(spec.action_names, spec.action_sizes, strict=True)) == {
        "attack": 2,
        "camera 1": 0,
        "camera 2": 0,
        "forward": 2,
        "hotbar slot": 9,
        "hotbar drop 1": 2,
        "hotbar drop 2": 2,
    }
    with closing(make_vector_env_of("mine", MineLike, SMALL, seed=0)) as env:
        record = env.reset()
        assert record.image.shape == (2, 16, 16, 3)
        record = env.step(np.array([[1, 0, 0.5, 0, 8, 0, 0], [0] * 7], np.float32))
        np.testing.assert_array_equal(record.reward, [1, 0])
        np.testing.assert_array_equal(record.action[0], [1, 0, 0.5, 0, 8, 0, 0])


def test_records_hold_what_the_environment_was_given() -> None:
    with closing(make_vector_env_of("steer", Steer, SMALL, seed=0)) as env:
        record = env.reset()
        assert record.action.dtype == np.float32
        assert np.isnan(record.action).all()
        for _ in range(8):
            record = env.step(np.full((2, 1), 1.5))  # cut to 1
            np.testing.assert_array_equal(record.action, 1)
        assert record.is_last.all()
        record = env.step(np.full((2, 1), np.nan))  # ignored: an episode begins
        assert record.is_first.all()
        assert np.isnan(record.action).all()
        with pytest.raises(EnvError, match=r"of environment 0 is not in \[-1 … 1\]"):
            env.step(np.full((2, 1), np.nan))
        with pytest.raises(EnvError, match=r"actions must be \[2, 1\] numbers, got int64 \(2,\)"):
            env.step(np.zeros(2, int))


def test_a_run_is_not_continued_with_other_actions() -> None:
    spec = spec_of("tests.action_worlds:mixed", SMALL)
    check_same_spec(replace(spec, action_sizes=[0, 3]), spec)  # as read from JSON
    with pytest.raises(
        EnvError, match="takes actions of 1 number and 1 category of 3 classes, thi"
    ):
        check_same_spec(replace(spec, action_sizes=(0, 4)), spec)
    with pytest.raises(EnvError, match=r"takes actions of .*, this run was trained with 5 actions"):
        check_same_spec(replace(spec, action_sizes=(), num_actions=5), spec)
    with pytest.raises(EnvError, match="takes move, press, this run was trained with press, move"):
        check_same_spec(replace(spec, action_names=["press", "move"]), spec)
    assert spec.actions == ActionSpace((0, 3))
