"""Values of any form that environments hand over: extras, rewards, observations."""

import json
import re

import numpy as np
import pytest
from gymnasium.spaces import Box

from emerald_jax import scores
from emerald_jax.config import EnvsConfig
from emerald_jax.envs import (
    EnvError,
    EnvSpec,
    Episode,
    VectorEnv,
    check_env,
    make_vector_env_of,
)
from emerald_jax.envs.base import (
    Outcome,
    achievement_names,
    is_crafter_like,
)
from emerald_jax.envs.guards import plain_extra
from emerald_jax.envs.playing import is_whole, play_episodes, random_policy
from tests.envs.foreign import BOTH, INLINE, WORKERS, Plain, plays, refused

# What info["extra"] may hold.


@pytest.mark.parametrize(
    ("extra", "kept"),
    [
        ([1, 2], {"info": {"value": [1, 2]}}),
        (None, {}),
        ("won", {"info": {"value": "won"}}),
        (np.float32(2.5), {"info": {"value": 2.5}}),
        ({}, {}),
        ({"n": np.int64(3), "ok": np.bool_(True)}, {"info": {"n": 3, "ok": True}}),
        (
            {"a": np.arange(3), "b": {"c": (1, None)}},
            {"info": {"a": [0, 1, 2], "b": {"c": [1, None]}}},
        ),
        ({1: {2: {3}}}, {"info": {"1": {"2": [3]}}}),
        ({"x": float("nan"), "y": np.inf}, {"info": {"x": None, "y": None}}),
        ({"thing": object()}, {"info": {"thing": None}}),
        ({"image": np.zeros((64, 64, 3))}, {"info": {"image": None}}),
        # Our own names: they replace nothing and decide nothing.
        (
            {"score": 99, "length": 1, "fault": "none", "env": 7, "terminal": False, "step": 0},
            {
                "info": {
                    "score": 99,
                    "length": 1,
                    "fault": "none",
                    "env": 7,
                    "terminal": False,
                    "step": 0,
                }
            },
        ),
        ({"info": {"fault": "x"}, "capped": 1}, {"info": {"info": {"fault": "x"}, "capped": 1}}),
        # Achievements.
        ({"achievements": {"jump": 2}}, {"achievements": {"jump": 2}}),
        (
            {"achievements": {"jump": np.int32(2), "run": True}},
            {"achievements": {"jump": 2, "run": 1}},
        ),
        ({"achievements": ["jump"]}, {"info": {"achievements": ["jump"]}}),
        ({"achievements": None}, {"info": {"achievements": None}}),
        ({"achievements": 3}, {"info": {"achievements": 3}}),
        ({"achievements": {"jump": None}}, {"info": {"achievements": {"jump": None}}}),
        ({"achievements": {"jump": -1}}, {"info": {"achievements": {"jump": -1}}}),
        ({"achievements": {"jump": "yes"}}, {"info": {"achievements": {"jump": "yes"}}}),
        ({"achievements": {"jump": np.nan}}, {"info": {"achievements": {"jump": None}}}),
        ({"achievements": {}}, {}),
    ],
)
def test_extra_of_any_form(extra, kept):
    records, _ = plays(Plain, steps=3, info=lambda self: {"extra": extra})
    (episode,) = records[-1].episodes
    assert episode.extra == kept
    assert json.loads(json.dumps(episode.extra, allow_nan=False)) == kept
    assert (episode.score, episode.length, episode.terminal) == (3.0, 3, True)
    assert is_whole(episode)
    assert episode.fault == ""
    assert episode.achievements == kept.get("achievements", {})


class Rude:
    def __str__(self):
        raise RuntimeError("no text")


@pytest.mark.parametrize(
    ("extra", "line"),
    [
        ({"x": float("nan")}, "info[\"extra\"]['x'] holds nan: left out"),
        ({"x": object()}, "info[\"extra\"]['x'] holds a object, which JSON cannot hold: left out"),
        (
            {"x": np.zeros((64, 64))},
            "info[\"extra\"]['x'] holds an array of 4096 numbers: left out",
        ),
        ({"x": 10**5000}, "info[\"extra\"]['x'] holds a long number: left out"),
        ({"x": "y" * 10_000}, "info[\"extra\"]['x'] holds a long text: left out"),
        ({Rude(): 1}, 'info["extra"] cannot be read: RuntimeError: no text'),
        (
            {"x": list(range(2000))},
            "info[\"extra\"]['x'][...] holds more than 1000 values: left out",
        ),
    ],
)
def test_what_is_left_out_of_extra_is_named(extra, line):
    kept, warnings = plain_extra(extra)
    json.dumps(kept, allow_nan=False)
    assert list(warnings.values()) == [line]


def test_extra_that_contains_itself_is_cut():
    loop = {}
    loop["one"] = loop
    kept, warnings = plain_extra(loop)
    assert json.dumps(kept).count("one") == 21
    (line,) = warnings.values()
    assert "holds more than 20 levels: left out" in line
    loop["other"] = loop  # a million paths
    json.dumps(plain_extra(loop)[0])


@BOTH
def test_check_env_names_what_is_wrong_with_extra_and_a_run_logs_it_once(envs, caplog):
    changed = type("Listing", (Plain,), {"info": lambda self: {"extra": [1, 2]}})
    line = 'info["extra"] is a list, not a dict: kept under info.value'
    assert check_env(changed, envs, steps=9) == (line,)
    caplog.clear()
    _, env = plays(changed, envs, steps=20)
    assert [r.getMessage() for r in caplog.records] == [f"mine: environment 0: {line}"]
    assert env.faults == 0
    (line,) = check_env(
        type("Odd", (Plain,), {"info": lambda self: {"extra": {"achievements": ["a"]}}}), envs
    )
    assert line == (
        'info["extra"]["achievements"] is [\'a\'], not a dict of names and counts: kept under '
        "info, without success rates"
    )


def test_info_that_is_no_dict_is_ignored():
    for info in (None, [], 3):
        (episode,) = plays(Plain, steps=3, info=lambda self, i=info: i)[0][-1].episodes
        assert episode.extra == {}


def test_only_crafter_like_environments_have_a_crafter_score():
    def episode(**names):
        return Episode(env=0, score=0.0, length=1, terminal=True, extra={"achievements": names})

    changing = [episode(a=1), episode(b=0, a=2)]
    assert achievement_names(changing) == ["a", "b"]
    assert achievement_names([*changing, Episode(env=0, score=0.0, length=1, terminal=True)]) == []
    assert achievement_names([]) == []
    names = set(scores.crafter()["human_experts"]["rates"])
    assert len(names) == 22
    assert set(__import__("crafter").constants.achievements) == names
    assert not is_crafter_like("my_module:make_env", ["a", "b"])
    assert not is_crafter_like("craftier", ["a", "b"])
    assert is_crafter_like("crafter", ["a"])
    assert is_crafter_like("craftax:Craftax-Pixels-v1", ["a"])
    assert is_crafter_like("my_module:make_env", [*names, "fly"])


# Numbers that are not finite.


@pytest.mark.parametrize(
    ("reward", "envs"),
    [(r, INLINE) for r in (np.nan, np.inf, -np.inf, 1e39, np.float64(-4e38))] + [(np.nan, WORKERS)],
)
def test_a_reward_that_is_not_finite_is_a_fault(reward, envs, caplog):
    bad = type("Bad", (Plain,), {"reward": lambda self: reward if self.t == 2 else 1.0})
    records, env = plays(bad, envs, steps=2)
    line = f"gave the reward {float(reward)}: rewards must be finite float32 numbers"
    assert [e.fault for e in records[2].episodes] == [line] * env.num_envs
    assert all(np.isfinite(record.reward).all() for record in records)
    assert records[2].episodes[0].score == 1.0
    assert f"mine: environment 0 {line}" in caplog.records[0].getMessage()
    assert "Traceback" not in caplog.text
    (finding,) = check_env(bad, envs, steps=4)
    assert f"environment 0 {line}" in finding
    # In an evaluation: too many of them end it, in one line.
    env = make_vector_env_of("mine", bad, envs, seed=0)
    with pytest.raises(EnvError, match=re.escape(f"{line} (failure 11")) as caught:
        list(play_episodes(env, 4, random_policy(2, env.num_envs, 0)))
    assert "\n" not in str(caught.value)
    env.close()


@pytest.mark.parametrize("reward", [None, "much", [1, 2]])
def test_a_reward_that_is_no_number_is_refused(reward):
    message = f"environment 0 gave the reward {re.escape(repr(reward))}, not a number$"
    refused(Plain, message, reward=lambda self: reward)


def test_a_reward_of_a_device_environment_that_is_not_finite_is_an_error():
    class Device(VectorEnv):
        def _begin(self):
            return np.zeros((2, 4, 4, 3), np.uint8)

        def _send(self, actions):
            pass

        def _receive(self):
            no = np.zeros(2, bool)
            reward = np.array([np.nan if self.newest.is_last[0] else 1, np.nan])
            return Outcome(np.zeros((2, 4, 4, 3), np.uint8), reward, no, no)

    env = Device(EnvSpec(name="dev", image_shape=(4, 4, 3), num_actions=2), 2)
    env.reset()
    with pytest.raises(EnvError, match=r"^dev: environment 1 gave the reward nan: rewards must"):
        env.step(np.zeros(2, int))


def test_a_reward_may_be_an_array_of_one_number():
    records, env = plays(Plain, steps=3, reward=lambda self: np.array([1.5]))
    assert (records[-1].episodes[0].score, env.faults) == (4.5, 0)


# Observations outside their space.


@pytest.mark.parametrize(
    ("space", "value", "line"),
    [
        (Box(0, 1, (8, 8, 3)), 200.0, "holds 200 to 200, outside the bounds 0 to 1 of its space"),
        (Box(0, 1, (8, 8, 3)), -1.0, "holds -1 to -1, outside the bounds 0 to 1 of its space"),
        (Box(-1, 1, (8, 8)), 2.5, "holds 2.5 to 2.5, outside the bounds -1 to 1 of its space"),
        (Box(0, 9, (8, 8), np.int64), 10, "holds 10 to 10, outside the bounds 0 to 9"),
    ],
)
def test_bounds_that_are_left_are_named(space, value, line, caplog):
    class Outside(Plain):
        def __init__(self):
            super().__init__()
            self.observation_space = space

        def observe(self):
            return np.full(space.shape, value if self.t % 2 else space.low.min(), space.dtype)

    (finding,) = check_env(Outside, INLINE, steps=6)
    assert finding.startswith(f"the observation {line}")
    assert finding.endswith("of its space: cut to them; correct the observation_space")
    caplog.clear()
    records, env = plays(Outside)
    assert sum(line in r.getMessage() for r in caplog.records) == 1
    assert env.faults == 0
    assert records[1].image.max() == (0 if value < 0 else 255)


def test_numbers_within_their_bounds_are_not_warned_of(caplog):
    class Fine(Plain):
        def __init__(self):
            super().__init__()
            self.observation_space = Box(-1, 1, (8, 8, 3))

        def observe(self):
            return np.full((8, 8, 3), (-1, 0, 1.0000001, 0.5)[self.t], np.float32)

    records, _ = plays(Fine)
    assert [r.image.max() for r in records[:4]] == [0, 128, 255, 191]
    assert caplog.records == []


@pytest.mark.parametrize("size", [4, 8])
def test_uint8_under_a_space_of_fractions_is_shown_as_uint8(size):
    class Bytes(Plain):
        def __init__(self):
            super().__init__()
            self.observation_space = Box(0, 1, (8, 8, 3))

        def observe(self):
            return np.full((8, 8, 3), (30, 120, 200), np.uint8) // (1 + self.t)

    envs = EnvsConfig(count=1, image_size=size, workers="inline")
    records, _ = plays(Bytes, envs)
    assert records[0].image[0, 0, 0].tolist() == [30, 120, 200]
    assert records[1].image[0, 0, 0].tolist() == [15, 60, 100]
    if size == 4:
        (finding,) = check_env(Bytes, envs, steps=6)
        assert "is uint8, its space float32 from 0 to 1: shown as uint8" in finding


def test_fractions_under_a_space_of_bytes_are_found():
    def observe(self):
        return np.full((8, 8, 3), self.t / 3)

    findings = check_env(type("Fractions", (Plain,), {"observe": observe}), INLINE, steps=6)
    assert "the observation is float64, its space uint8 from 0 to 255" in findings[0]
