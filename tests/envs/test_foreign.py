"""Environments of other people: whatever they hand over or do ends well, or in one line."""

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
    check_env,
    make_vector_env_of,
    spec_of,
)
from emerald_jax.envs.base import (
    check_same_spec,
)
from emerald_jax.envs.gym import _warn_once
from emerald_jax.envs.playing import endless_notice, is_whole, play_episodes, random_policy
from tests.envs.foreign import BOTH, INLINE, WORKERS, Plain, plays, refused

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
from tests.envs.foreign import INLINE, WORKERS, Plain, plays

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
