"""Rendered worlds: each part alone, and the real worlds where installed."""

import dataclasses
import importlib.util
import os
import signal
import sys
import types

import gymnasium
import numpy as np
import psutil
import pytest

from emerald_jax.config import EnvsConfig
from emerald_jax.envs import EnvError, check_env, make_vector_env, spec_of
from emerald_jax.envs.gym import choose_renderer
from emerald_jax.envs.playing import remark
from emerald_jax.envs.worlds import (
    Control,
    Maze,
    World,
    make_control,
    make_spec,
)

SMALL = EnvsConfig(count=2, image_size=16, time_limit=6, workers="inline")


def needs(package):
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"the extra of {package} is not installed")


class Blackout(gymnasium.Env):
    """Frame t is 40 t everywhere; the third and last is black and ends as in ViZDoom."""

    observation_space = gymnasium.spaces.Box(0, 255, (4, 4, 3), np.uint8)
    action_space = gymnasium.spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t = 1
        return np.full((4, 4, 3), 40, np.uint8), {}

    def step(self, action):
        self.t += 1
        over = self.t == 3
        return np.full((4, 4, 3), 0 if over else 40 * self.t, np.uint8), 1.0, over, over, {}


@pytest.mark.parametrize(("blackout", "last"), [(True, 80), (False, 0)])
def test_a_black_last_frame_is_replaced_by_the_one_before(blackout, last):
    env = World(Blackout(), 2, ("NOOP", "FIRE"), blackout=blackout)
    assert env.reset()[0][0, 0, 0] == 40
    assert [env.step(0)[0][0, 0, 0] for _ in range(2)] == [80, last]
    assert env.reset()[0][0, 0, 0] == 40


def test_a_world_knows_its_limit_and_the_names_of_its_actions():
    assert World(Blackout(), 74.2, ()).spec.max_episode_steps == 75
    for none in (0, float("inf")):
        assert World(Blackout(), none, ()).spec.max_episode_steps is None
    assert World(Blackout(), 0, ("NOOP", "FIRE")).action_names == ("noop", "fire")


class Task:
    """What Memory Maze's tasks have of dm_env; an episode of three steps ends as ``discount``."""

    made: list[int] = []  # noqa: RUF012
    discount = 1.0

    def __init__(self, seed):
        self.made.append(seed)

    def action_spec(self):
        return types.SimpleNamespace(num_values=6)

    def observation_spec(self):
        return types.SimpleNamespace(shape=(4, 4, 3))

    def reset(self):
        self.t = 0
        return types.SimpleNamespace(observation=np.zeros((4, 4, 3), np.uint8))

    def step(self, action):
        assert type(action) is int
        self.t += 1
        last = self.t == 3
        return types.SimpleNamespace(
            observation=np.full((4, 4, 3), self.t, np.uint8),
            reward=float(self.t),
            discount=self.discount if last else 1.0,
            last=lambda: last,
        )

    def close(self):
        pass


@pytest.mark.parametrize(("discount", "died"), [(1.0, False), (0.0, True)])
def test_a_maze_ends_by_its_clock_unless_the_discount_is_zero(discount, died):
    maze = Maze(type("Ending", (Task,), {"discount": discount}))
    maze.reset(seed=3)
    steps = [maze.step(np.int64(1))[1:4] for _ in range(3)]
    assert steps == [(1.0, False, False), (2.0, False, False), (3.0, died, not died)]


def test_only_a_seed_makes_new_mazes():
    Task.made.clear()
    maze = Maze(Task)
    for seed in (7, None, None):
        maze.reset(seed=seed)
    assert Task.made == [0, 7]


class Motion(Task):
    """What DM Control's tasks have: an image shows the number of frames since the last reset."""

    def action_spec(self):
        return types.SimpleNamespace(
            minimum=np.array([-1.0]), maximum=np.array([1.0]), shape=(1,), dtype=np.dtype(float)
        )

    @property
    def physics(self):
        return self

    def render(self, height, width, camera_id):
        return np.full((height, width, 3), 10 * camera_id + self.t, np.uint8)

    def step(self, action):
        assert action.shape == (1,)
        return super().step(1)


@pytest.mark.parametrize(("discount", "died"), [(1.0, False), (0.0, True)])
def test_an_action_of_dm_control_lasts_two_frames_and_the_clock_is_no_death(discount, died):
    env = Control(type("Ending", (Motion,), {"discount": discount}), 4, skip=2, camera=2)
    image, _ = env.reset(seed=3)
    assert image.shape == env.observation_space.shape
    assert image[0, 0, 0] == 20
    image, *rest, _ = env.step(env.action_space.sample())
    assert (image[0, 0, 0], *rest) == (22, 3.0, False, False)
    image, *rest, _ = env.step(env.action_space.sample())  # the episode ends after one frame
    assert (image[0, 0, 0], *rest) == (23, 3.0, died, not died)


def test_the_renderer_of_mujoco(monkeypatch):
    found = {"EGL": None, "OSMesa": "libOSMesa.so.8"}
    monkeypatch.setattr("ctypes.util.find_library", found.get)
    monkeypatch.setenv("MUJOCO_GL", "glfw")
    choose_renderer("memory_maze:9x9")
    assert os.environ["MUJOCO_GL"] == "glfw"
    for libraries, chosen in (({}, "osmesa"), ({"EGL": "libEGL.so.1"}, "egl")):
        monkeypatch.delenv("MUJOCO_GL")
        found.update(libraries)
        choose_renderer("memory_maze:9x9")
        assert os.environ["MUJOCO_GL"] == chosen
    monkeypatch.delenv("MUJOCO_GL")
    found.update(EGL=None, OSMesa=None)
    with pytest.raises(EnvError, match=r"no EGL and no OSMesa.*apt-get install libegl1"):
        choose_renderer("memory_maze:9x9")


@pytest.mark.parametrize(
    ("name", "package"),
    [
        ("vizdoom:Basic", "vizdoom"),
        ("miniworld:Hallway", "miniworld"),
        ("memory_maze:9x9", "memory_maze"),
        ("dmc:walker-walk", "dm_control"),
        ("dmc:humanoid-walk", "dm_control"),
    ],
)
def test_a_missing_package_gives_the_pip_line(monkeypatch, name, package):
    monkeypatch.setitem(sys.modules, package, None)
    extra = "dmc" if package == "dm_control" else package.replace("_", "-")
    with pytest.raises(EnvError, match=rf"pip install 'emerald-jax\[{extra}\]'"):
        spec_of(name, SMALL)


def test_doom_is_sound():
    needs("vizdoom")
    assert check_env("vizdoom:HealthGatheringSupreme", SMALL, steps=20) == ()


def test_a_time_out_of_doom_is_truncated_and_named(tmp_path, monkeypatch):
    needs("vizdoom")
    monkeypatch.chdir(tmp_path)
    assert "stored as truncated" in remark("vizdoom:Basic", SMALL)
    env = make_vector_env("vizdoom:Basic", EnvsConfig(count=1, image_size=16), seed=0)
    records = [env.reset(), *(env.step(np.array([0])) for _ in range(75))]
    env.close()
    # 300 frames, four per action.
    assert env.spec.time_limit == 75
    assert [t for t, record in enumerate(records) if record.is_last[0]] == [75]
    assert not records[75].is_terminal[0]
    assert (records[75].image == records[74].image).all()
    assert records[75].image.any()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's signal is Linux's")
def test_doom_ends_with_the_worker_that_started_it():
    needs("vizdoom")
    settings = EnvsConfig(count=1, image_size=16, workers="process", worker_timeout=60)
    env = make_vector_env("vizdoom:Basic", settings, seed=0)
    try:
        env.reset()
        worker = psutil.Process(env._groups[0].process.pid)
        games = worker.children(recursive=True)
        assert any("vizdoom" in game.name() for game in games)
        worker.send_signal(signal.SIGKILL)
        env.step(np.array([0]))  # noticed at once: the game does not keep the worker's pipe open
        assert env.faults == 1
        assert psutil.wait_procs(games, timeout=10)[1] == []
    finally:
        env.close()


def test_miniworld_is_sound_without_a_display(monkeypatch):
    needs("miniworld")
    monkeypatch.delenv("DISPLAY", raising=False)
    assert check_env("miniworld:Hallway", SMALL, steps=12) == ()
    spec = spec_of("miniworld:Hallway", EnvsConfig(image_size=16))
    assert (spec.num_actions, spec.time_limit) == (3, 250)
    assert spec.action_names == ("turn_left", "turn_right", "move_forward")
    assert spec_of("miniworld:RoomObjects", EnvsConfig(image_size=16)).time_limit == 0


@pytest.mark.slow
def test_memory_maze_is_sound():
    needs("memory_maze")
    settings = EnvsConfig(count=1, image_size=64, time_limit=4, workers="inline")
    assert check_env("memory_maze:9x9", settings, steps=10) == ()
    assert spec_of("memory_maze:11x11", EnvsConfig()).time_limit == 2000


@pytest.mark.parametrize("name", ["dmc:walker-walk", "dmc:cartpole-swingup"])
def test_dm_control_is_sound(name):
    needs("dm_control")
    assert check_env(name, SMALL, steps=14) == ()
    assert spec_of(name, EnvsConfig()).time_limit == 500
    assert spec_of(name, EnvsConfig(frame_skip=8)).time_limit == 125


@pytest.mark.parametrize("workers", ["inline", "process"])
def test_mujoco_of_gymnasium_renders_without_a_setting(monkeypatch, workers):
    needs("mujoco")
    monkeypatch.setenv("MUJOCO_GL", "")
    monkeypatch.delenv("MUJOCO_GL")
    settings = dataclasses.replace(SMALL, image_key="render", workers=workers, worker_timeout=60)
    assert check_env("gym:Reacher-v5", settings, steps=8) == ()
    assert os.environ["MUJOCO_GL"] in ("egl", "osmesa")
    assert spec_of("gym:Reacher-v5", settings).actions.sizes == (0, 0)


def test_an_episode_of_dm_control_is_truncated_after_1000_frames():
    needs("dm_control")
    settings = EnvsConfig(count=1, image_size=8, frame_skip=200)
    env = make_vector_env("dmc:pendulum-swingup", settings, seed=0)
    records = [env.reset(), *(env.step(np.zeros((1, 1), np.float32)) for _ in range(5))]
    env.close()
    assert [record.is_last[0] for record in records] == [False] * 5 + [True]
    assert not records[5].is_terminal[0]


def test_a_renderer_without_a_driver_is_one_line(monkeypatch):
    def fail(name):
        raise ImportError("Cannot initialize a headless EGL display.")

    monkeypatch.setattr("importlib.util.find_spec", lambda name: True)
    monkeypatch.setattr("importlib.import_module", fail)
    monkeypatch.setenv("MUJOCO_GL", "egl")
    with pytest.raises(EnvError, match=r"MUJOCO_GL=egl: .*EGL display.*apt-get install libegl1"):
        make_spec("dmc:walker-walk", "walker-walk", SMALL)


def test_other_tasks_of_dm_control_are_known_by_their_names():
    needs("dm_control")
    assert len(spec_of("dmc:humanoid-walk", EnvsConfig(image_size=16)).action_names) == 21
    for name in ("dmc:walker-wolk", "dmc:lqr-lqr_2_1"):
        with pytest.raises(EnvError, match="unknown environment"):
            spec_of(name, SMALL)


def test_fast_rendering_changes_shadows_and_edges_and_nothing_else():
    needs("dm_control")
    envs = [
        make_control("dmc:walker-walk", "walker-walk", EnvsConfig(fast_render=fast))
        for fast in (False, True)
    ]
    for seed in (3, 4):  # a seed makes a new task
        plain, fast = (env.reset(seed=seed)[0].astype(int) for env in envs)
        assert 0 < np.abs(plain - fast).mean() < 4
    for env in envs:
        env.close()
