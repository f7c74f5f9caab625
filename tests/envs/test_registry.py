import re
import subprocess
import sys
from pathlib import Path

import pytest

from emerald_jax.config import Config, ConfigError, EnvsConfig
from emerald_jax.envs import EnvError, check_env, list_envs, make_vector_env, register, spec_of
from emerald_jax.envs.registry import _OWN

ENVS = EnvsConfig(count=1)


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("carfter", "nearest: crafter"),
        ("Crafter", "nearest: crafter"),
        ("crafter:x", "nearest: crafter"),
        ("gymnax:Catch", "nearest: gymnax:Catch-bsuite"),
        ("Catch-bsuite", "nearest: gymnax:Catch-bsuite"),
        ("catch", "nearest: gymnax:Catch-bsuite"),
        ("gymnax:Brekout-MinAtar", "nearest: gymnax:Breakout-MinAtar"),
        ("gymnax", "known: atari:GAME, "),
        ("xyzzy", "known: atari:GAME, "),
        ("xyzzy:make_env", "vizdoom:GAME, my_module:make_env"),
        ("", "known: atari:GAME, "),
    ],
)
def test_unknown_names_point_to_the_nearest_known_one(name, nearest):
    for make in (spec_of, lambda n, e: make_vector_env(n, e, seed=0)):
        with pytest.raises(EnvError, match=r"^unknown environment") as caught:
            make(name, ENVS)
        assert nearest in str(caught.value)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "package", "module"),
    [("gymnax:Catch-bsuite", "gymnax", "gymnax"), ("crafter", "crafter", "crafter")],
)
def test_missing_package_gives_the_pip_line(monkeypatch, name, package, module):
    monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.delitem(sys.modules, "emerald_jax.envs.crafter", raising=False)
    with pytest.raises(EnvError, match=f"{package}, which is not installed: pip install {package}"):
        make_vector_env(name, ENVS, seed=0)


def test_listing_names_games_and_pip_lines():
    entries = {entry.name: entry for entry in list_envs()}
    assert entries["crafter"].available
    assert entries["gymnax:Catch-bsuite"].pip.startswith("pip install gymnax")


def test_importing_and_listing_stay_light():
    code = (
        "import sys; from emerald_jax.envs import list_envs; list_envs();"
        "heavy = {'jax', 'crafter', 'gymnax', 'gymnasium', 'ale_py', 'craftax'};"
        "print(sorted(heavy & set(sys.modules)))"
    )
    out = subprocess.run(
        [sys.executable, "-c", code],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=True,
    )
    assert out.stdout == "[]\n"


@pytest.fixture
def own(monkeypatch):
    """Names registered in a test are forgotten after it."""
    for name in list(_OWN):
        monkeypatch.delitem(_OWN, name)
    yield
    _OWN.clear()


def test_own_names(own, scripted_env):
    register("maze", scripted_env)
    register("mine:maze", scripted_env)
    assert check_env("maze", EnvsConfig(count=2, image_size=8)) == ()
    assert spec_of("mine:maze", EnvsConfig(image_size=4)).num_actions == 5
    assert [e.name for e in list_envs()][-2:] == ["maze", "mine:maze"]
    with pytest.raises(EnvError, match="unknown environment mazee; nearest: maze"):
        spec_of("mazee", ENVS)


@pytest.mark.parametrize("name", ["crafter", "crafter:mine", "gym:mine", "", "two words"])
def test_taken_names_are_refused(own, scripted_env, name):
    with pytest.raises(EnvError, match="cannot be registered"):
        register(name, scripted_env)
    with pytest.raises(EnvError, match="is a int, not callable"):
        register("maze", 3)


MODULE = """
import gymnasium
import numpy as np

class Maze(gymnasium.Env):
    observation_space = gymnasium.spaces.Box(0, 255, (6, 6), np.uint8)
    action_space = gymnasium.spaces.Discrete(2)
    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t = 0
        return self.draw(), {}
    def step(self, action):
        self.t += 1
        return self.draw(), 1.0, self.t == 5, False, {}
    def draw(self):
        return self.np_random.integers(256, size=(6, 6), dtype=np.uint8)

make_env = Maze
number = 5
"""


def test_importable_factories_from_where_the_command_is_called(tmp_path, monkeypatch):
    (tmp_path / "emerald_test_maze.py").write_text(MODULE)
    (tmp_path / "emerald_test_broken.py").write_text("1 / 0")
    (tmp_path / "emerald_test_needy.py").write_text("import no_such_package")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p])
    name = "emerald_test_maze:make_env"
    assert check_env(name, EnvsConfig(count=2, image_size=8), steps=20) == ()
    for wrong, message in {
        "emerald_test_maze:make_evn": "holds no factory make_evn; nearest: make_env",
        "emerald_test_maze:Maze.observation_space": "observation_space is a Box, not callable",
        "emerald_test_maze:number": "emerald_test_maze:number is a int, not callable",
        "emerald_test_maze:gymnasum": "holds no factory gymnasum",
        "emerald_test_broken:make_env": "raised ZeroDivisionError: division by zero",
        "emerald_test_needy:make_env": "No module named 'no_such_package'",
    }.items():
        with pytest.raises(EnvError, match=f"{re.escape(message)}$"):
            spec_of(wrong, ENVS)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"time_limit": -1}, r"envs.time_limit is -1: it must not be negative"),
        ({"frame_skip": -2}, r"envs.frame_skip is -2: it must not be negative"),
        ({"processes": -1}, r"envs.processes is -1: it must not be negative"),
        ({"processes": 2, "workers": "inline"}, r"envs.processes 2 goes unused"),
        ({"max_worker_failures": -1}, r"envs.max_worker_failures is -1"),
        ({"worker_timeout": 0.0}, r"envs.worker_timeout is 0.0: it must be positive"),
        ({"worker_timeout": float("nan")}, r"envs.worker_timeout is nan"),
    ],
)
def test_impossible_settings_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        Config(envs=EnvsConfig(**settings)).validate()
