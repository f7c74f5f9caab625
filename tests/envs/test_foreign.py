"""Environments of other people: whatever they hand over or do ends well, or in one line."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
from pathlib import Path

import gymnasium
import jax
import numpy as np
import pytest
from gymnasium.spaces import Box, Discrete
from PIL import Image

from emerald_jax.config import EnvsConfig
from emerald_jax.envs import (
    EnvError,
    EnvSpec,
    Episode,
    VectorEnv,
    check_env,
    make_vector_env_of,
    spec_of,
)
from emerald_jax.envs.base import (
    CRAFTER_ACHIEVEMENTS,
    Outcome,
    achievement_names,
    check_same_spec,
    is_crafter_like,
)
from emerald_jax.envs.guards import plain_extra
from emerald_jax.envs.gym import _warn_once
from emerald_jax.envs.playing import endless_notice, is_whole, play_episodes, random_policy

INLINE = EnvsConfig(count=1, image_size=8, workers="inline")
WORKERS = EnvsConfig(count=2, image_size=8, workers="process", processes=1)
BOTH = pytest.mark.parametrize("envs", [INLINE, WORKERS], ids=["inline", "workers"])


class Plain(gymnasium.Env):
    """Episodes of three steps; frame t is 40 t everywhere. Reward 1."""

    def __init__(self):
        self.observation_space = Box(0, 255, (8, 8, 3), np.uint8)
        self.action_space = Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t = 0
        return self.observe(), {}

    def step(self, action):
        self.t += 1
        return self.observe(), self.reward(), self.t == 3, False, self.info()

    def observe(self):
        return np.full((8, 8, 3), 40 * self.t, np.uint8)

    def reward(self):
        return 1.0

    def info(self):
        return {}


def plays(factory, envs=INLINE, steps=8, **changes):
    """The records of ``steps`` steps, and the closed vector environment."""
    for name, value in changes.items():
        factory = type("Changed", (factory,), {name: value})
    env = make_vector_env_of("mine", factory, envs, seed=0)
    try:
        records = [env.reset()]
        records += [env.step(np.zeros(env.num_envs, int)) for _ in range(steps)]
    finally:
        env.close()
    return records, env


def refused(factory, message, envs=INLINE, **changes):
    """``message`` is the only line, in a run and in check-env; nothing is logged before it."""
    for name, value in changes.items():
        factory = type("Changed", (factory,), {name: value})
    with pytest.raises(EnvError, match=message) as caught:
        plays(factory, envs)
    assert "\n" not in str(caught.value)
    (finding,) = check_env(factory, envs, steps=6)
    assert re.search(message, finding)


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
    assert len(CRAFTER_ACHIEVEMENTS) == 22
    assert set(__import__("crafter").constants.achievements) == CRAFTER_ACHIEVEMENTS
    assert not is_crafter_like("my_module:make_env", ["a", "b"])
    assert not is_crafter_like("craftier", ["a", "b"])
    assert is_crafter_like("crafter", ["a"])
    assert is_crafter_like("craftax:Craftax-Pixels-v1", ["a"])
    assert is_crafter_like("my_module:make_env", [*CRAFTER_ACHIEVEMENTS, "fly"])


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
            reward = np.array([np.nan if self._tracker.newest.is_last[0] else 1, np.nan])
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


# Environments that never end.


class Endless(Plain):
    def step(self, action):
        self.t = (self.t + 1) % 6
        return self.observe(), 1.0, False, False, {}


def test_an_episode_that_does_not_end_is_cut_counted_and_mentioned(caplog):
    env = make_vector_env_of("mine", Endless, EnvsConfig(count=2, image_size=8), seed=0)
    played = list(play_episodes(env, 5, random_policy(2, 2, 0), max_steps=50))
    env.close()
    assert [(e.env, e.score, e.length, e.terminal) for e in played] == [
        (0, 50.0, 50, False),
        (1, 50.0, 50, False),
    ]
    assert all(is_whole(e) and e.extra == {"capped": 50} for e in played)
    lines = [r.getMessage() for r in caplog.records]
    assert lines[0].startswith("mine has no time limit: evaluation cuts an episode after 50 steps")
    assert lines[1] == "mine: environment 0: no end after 50 steps: the episode is cut and counts"
    assert len(lines) == 3


def test_the_limit_has_a_default_and_spares_environments_that_end(monkeypatch, caplog):
    monkeypatch.setattr("emerald_jax.envs.playing.MAX_STEPS", 20)
    env = make_vector_env_of("mine", Endless, INLINE, seed=0)
    assert [e.length for e in play_episodes(env, 3, random_policy(2, 1, 0))] == [20]
    caplog.clear()
    env = make_vector_env_of("mine", Plain, INLINE, seed=0)
    assert [e.length for e in play_episodes(env, 9, random_policy(2, 1, 0))] == [3] * 9
    limited = EnvsConfig(count=1, image_size=8, workers="inline", time_limit=30)
    env = make_vector_env_of("mine", Endless, limited, seed=0)
    assert [e.length for e in play_episodes(env, 2, random_policy(2, 1, 0))] == [30, 30]
    assert caplog.records == []


def test_the_notice_of_a_missing_limit():
    spec = EnvSpec(name="x", image_shape=(4, 4, 3), num_actions=2)
    assert "x has no time limit: evaluation cuts an episode after 30,000" in endless_notice(spec)
    assert endless_notice(EnvSpec(**{**vars(spec), "time_limit": 9})) == ""


# What environments do to the process.


@BOTH
def test_an_environment_may_use_jax(envs):
    class Jax(Plain):
        def observe(self):
            import jax.numpy as jnp

            assert {d.platform for d in jax.devices()} == {"cpu"}
            frame = jnp.full((8, 8, 3), 40) * np.int32(self.t)  # copies to the device
            return np.array(frame, np.uint8)

    with jax.transfer_guard("disallow"):
        records, env = plays(Jax, envs)
    assert (records[2].image == 80).all()
    assert env.faults == 0


class Parent(Plain):
    def __init__(self):
        super().__init__()
        import multiprocessing

        process = multiprocessing.get_context("fork").Process(target=abs, args=(1,))
        process.start()
        process.join()


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning", "ignore:.*fork.*:RuntimeWarning")
def test_an_environment_that_starts_processes_is_pointed_to_inline():
    assert plays(Parent, INLINE)[1].faults == 0
    with pytest.raises(EnvError) as caught:
        plays(Parent, WORKERS)
    assert str(caught.value) == (
        "mine: environment 0 could not start: the factory of mine raised AssertionError: daemonic "
        "processes are not allowed to have children; --envs.workers inline runs it in the training "
        "process"
    )


def test_a_factory_that_no_worker_can_receive_is_pointed_to_inline():
    lock = threading.Lock()

    class Locked(Plain):
        def observe(self):
            with lock:
                return super().observe()

    assert plays(Locked, INLINE)[1].faults == 0
    with pytest.raises(EnvError, match=r"cannot be sent to a worker.*lock.*--envs.workers inline"):
        plays(Locked, WORKERS)


def test_the_working_directory_stays_ours(tmp_path, monkeypatch):
    class Roaming(Plain):
        def __init__(self):
            super().__init__()
            Path(tmp_path, "assets").mkdir(exist_ok=True)
            Path(tmp_path, "assets", "level").touch()
            os.chdir(tmp_path / "assets")

        def observe(self):
            assert Path("level").exists()  # it finds its own files again
            return super().observe()

    (tmp_path / "ours").mkdir()
    monkeypatch.chdir(tmp_path / "ours")
    monkeypatch.setattr("emerald_jax.envs.guards._CHANGED", [])
    assert plays(Roaming)[1].faults == 0
    assert Path.cwd() == tmp_path / "ours"


def test_our_signal_handlers_stay_ours():
    class Handy(Plain):
        def __init__(self):
            super().__init__()
            signal.signal(signal.SIGTERM, signal.SIG_IGN)

        def observe(self):
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            return super().observe()

    before = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)]
    assert plays(Handy)[1].faults == 0
    assert [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)] == before


CHATTY = """
import os
from tests.envs.test_foreign import INLINE, WORKERS, Plain, plays

class Chatty(Plain):
    def observe(self):
        print("a frame of", os.getppid())
        return super().observe()

for envs in (INLINE, WORKERS):
    plays(Chatty, envs)
print("the result")
"""


def test_what_an_environment_prints_is_not_our_output():
    root = str(Path(__file__).parents[2])
    ran = subprocess.run(
        [sys.executable, "-c", CHATTY],
        cwd=root,
        env=os.environ | {"PYTHONPATH": root},
        capture_output=True,
        text=True,
        check=True,
    )
    assert ran.stdout == "the result\n"
    # Inline and in a worker, whose parent is the fork server.
    assert len(set(re.findall("a frame of [0-9]+", ran.stderr))) == 2


@BOTH
def test_one_that_raises_when_it_is_closed_is_forgiven(envs, caplog):
    _warn_once.cache_clear()

    class Sticky(Plain):
        def close(self):
            raise AttributeError("no viewer")

    assert plays(Sticky, envs)[1].faults == 0
    (line,) = {r.getMessage() for r in caplog.records}
    assert line == "mine: close() raised AttributeError: no viewer; ignored"
    assert check_env(Sticky, envs, steps=6) == ()


def test_one_whose_spec_raises_is_forgiven():
    class Odd(Plain):
        @property
        def spec(self):
            raise RuntimeError("not registered")

    assert plays(Odd)[1].spec.time_limit == 0


def needs_level(level):
    raise NotImplementedError


def leaves():
    sys.exit("no licence")


def without_spaces():
    env = Plain()
    del env.observation_space
    return env


@pytest.mark.parametrize(
    ("factory", "message"),
    [
        (needs_level, "the factory of .* raised TypeError: .*missing 1 required positional arg.*"),
        (lambda: 1 / 0, "the factory of .* raised ZeroDivisionError: division by zero"),
        (leaves, "the factory of .* raised SystemExit: no licence"),
        (without_spaces, "raised AttributeError: .*observation_space"),
    ],
)
def test_one_that_cannot_be_made_is_refused_in_one_line(factory, message):
    with pytest.raises(EnvError, match=message) as caught:
        make_vector_env_of("mine", factory, WORKERS, seed=0)
    assert "\n" not in str(caught.value)
    assert "Traceback" in caught.value.__notes__[0]
    assert re.search(message, check_env(factory, INLINE)[0])


@BOTH
def test_one_that_exits_in_a_step_is_replaced(envs):
    class Leaving(Plain):
        def reward(self):
            if self.t == 2:
                sys.exit(3)
            return 1.0

    records, env = plays(Leaving, envs, steps=2)
    assert [e.fault for e in records[2].episodes] == ["raised SystemExit: 3"] * env.num_envs


# Other interfaces and other forms.


def test_gyms_old_interface_is_refused_in_one_line(caplog):
    def old_reset(self, *, seed=None, options=None):
        self.t = 0
        return self.observe()

    def old_step(self, action):
        return self.observe(), 1.0, False, {}

    refused(Plain, r"returned uint8 \[8, 8, 3\] from reset, which must return", reset=old_reset)

    def older_reset(self):
        return old_reset(self)

    refused(Plain, r"unexpected keyword argument 'seed' in reset, which", reset=older_reset)
    refused(Plain, r"returned 4 values from step, which must.*old inter", step=old_step)
    assert caplog.records == []
    old = type("Old", (Plain,), {"step": old_step})
    gymnasium.register("emerald-test/Old-v0", old, max_episode_steps=7)
    try:
        (finding,) = check_env("gym:emerald-test/Old-v0", INLINE, steps=6)
        assert "not enough values to unpack" in finding
        assert "port the environment from Gym's old interface" in finding
    finally:
        del gymnasium.registry["emerald-test/Old-v0"]
    assert caplog.records == []


@pytest.mark.parametrize(
    ("observation", "found"),
    [
        (None, "None"),
        (np.zeros(192, np.uint8), r"uint8 \[192\]"),
        (np.zeros((8, 8, 4), np.uint8), r"uint8 \[8, 8, 4\]"),
        (np.zeros((2, 8, 8, 3), np.uint8), r"uint8 \[2, 8, 8, 3\]"),
        ([[1, 2], [3]], "a list"),
        ({"image": 3}, "a dict"),
        ("pixels", "a str"),
    ],
)
def test_observations_that_are_no_image_are_refused(observation, found, caplog):
    message = f"environment 0 gave {found} as the observation, not"
    refused(Plain, message, observe=lambda self: observation)
    assert caplog.records == []


class Drawn(Plain):
    """Observes a vector; what it draws is to be shown."""

    render_mode = "rgb_array"
    drawn = None

    def __init__(self):
        super().__init__()
        self.observation_space = Box(0, 1, (3,))

    def observe(self):
        return np.zeros(3, np.float32)

    def render(self):
        return type(self).drawn


RENDER = EnvsConfig(count=1, image_size=8, workers="inline", image_key="render")
RED = np.full((8, 8, 3), (200, 0, 0), np.uint8)


@pytest.mark.parametrize(
    "drawn",
    [
        RED,
        np.concatenate([RED, np.full((8, 8, 1), 255, np.uint8)], 2),
        Image.fromarray(RED),
        Image.fromarray(RED).convert("RGBA"),
        [RED * 0, RED],
        RED.tolist(),
        np.moveaxis(RED, -1, 0),
    ],
    ids=["RGB", "RGBA", "PIL", "PIL RGBA", "frames", "nested list", "channels first"],
)
def test_renders_of_other_forms_are_shown(drawn):
    records, env = plays(Drawn, RENDER, drawn=drawn)
    assert (records[1].image == RED).all()
    assert env.faults == 0


@pytest.mark.parametrize(
    ("drawn", "message"),
    [
        (None, r"gave None as render\(\), not a grey or RGB image"),
        ([], r"gave a list as render\(\), not a grey or RGB image"),
        ("ascii art", r"gave a str as render\(\), not"),
        (RED.astype(int) * 2, r"gave int64 numbers as render\(\), not uint8"),
        (RED / 255, r"gave float64 numbers as render\(\), not uint8"),
    ],
)
def test_renders_that_are_no_image_are_refused(drawn, message, caplog):
    refused(Drawn, message, RENDER, drawn=drawn)
    assert caplog.records == []


def test_actions_are_numpys_integers():
    seen = []

    class Curious(Plain):
        def step(self, action):
            seen.append(action)
            return super().step(action)

    plays(Curious, steps=3)
    assert [type(a) for a in seen] == [np.int64] * 3
    assert seen[0] in Discrete(2)


# Another environment under the same run.


def test_another_number_of_actions_or_another_shape_is_refused():
    before = EnvSpec(name="mine", image_shape=(8, 8, 3), num_actions=4)
    check_same_spec(before, EnvSpec(name="yours", image_shape=(8, 8, 3), num_actions=4))
    for changes, message in (
        ({"num_actions": 6}, "mine has 6 actions, this run was trained with 4: continue"),
        ({"image_shape": (16, 8, 3)}, "mine has 16x8x3 images, this run was trained with 8x8x3"),
    ):
        with pytest.raises(EnvError, match=message) as caught:
            check_same_spec(before, EnvSpec(**{**vars(before), **changes}))
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("deleted", [True, False])
def test_a_deleted_working_directory_does_not_matter(deleted, tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p])
    if deleted:
        (tmp_path / "here").rmdir()
    with pytest.raises(EnvError, match="unknown environment no_such_module:make"):
        spec_of("no_such_module:make", INLINE)
    assert plays(Plain)[1].faults == 0
