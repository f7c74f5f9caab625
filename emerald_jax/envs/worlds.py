"""Worlds that are rendered: ViZDoom, MiniWorld, Memory Maze and DM Control, behind ``gym.py``.

None of them needs a display. ``envs.time_limit`` can shorten their episodes, not lengthen them.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import importlib
import importlib.util
import io
import logging
import math
import os
import shlex
import shutil
import sys
import tempfile
import weakref
from collections.abc import Callable, Iterable
from pathlib import Path
from types import ModuleType
from typing import Any

import gymnasium
import numpy as np
from gymnasium.envs.registration import EnvSpec as Registration

from emerald_jax.config import EnvsConfig
from emerald_jax.envs import gym
from emerald_jax.envs.base import EnvError, EnvSpec
from emerald_jax.envs.guards import describe
from emerald_jax.envs.host import HostVectorEnv

#: Frames per action in ViZDoom, which has 35 frames per second.
DOOM_SKIP = 4
#: Frames per action in DM Control, and frames after which every episode is truncated.
CONTROL_SKIP, CONTROL_FRAMES = 2, 1000
#: Steps of an episode of Memory Maze.
MAZE_STEPS = {"9x9": 1000, "11x11": 2000, "13x13": 3000, "15x15": 4000}


class World(gymnasium.Wrapper):
    """An environment whose spec has its own time limit, and whose actions have names.

    ViZDoom shows a black last frame, because the game is gone by then. ``blackout`` shows the frame
    before it instead, as in Atari games.
    """

    def __init__(
        self, env: gymnasium.Env, limit: float, names: Iterable[str], *, blackout: bool = False
    ):
        """``limit`` in steps of ``env``; 0 or infinite: there is none."""
        super().__init__(env)
        limit = math.ceil(limit) if math.isfinite(limit) else 0
        self._registration = Registration("World-v0", max_episode_steps=limit or None)
        self.action_names = tuple(name.lower() for name in names)
        self._blackout, self._shown = blackout, None

    @property
    def spec(self) -> Registration:
        """Gymnasium's spec, with the environment's own time limit."""
        return self._registration

    def reset(self, **arguments: Any) -> tuple[Any, dict[str, Any]]:
        """See :class:`gymnasium.Env`."""
        self._shown, info = self.env.reset(**arguments)
        return self._shown, info

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """See :class:`gymnasium.Env`."""
        observation, reward, terminated, truncated, info = self.env.step(action)
        if not (self._blackout and (terminated or truncated)):
            self._shown = observation
        return self._shown, reward, terminated, truncated, info


class Maze(gymnasium.Env):
    """Memory Maze with Gymnasium's interface.

    Observation: `[64, 64, 3]` uint8; the colour of the border is that of the object to find.
    Actions: 6. Reward: 1 for reaching that object; another one is to be found then.
    Truncated: after 1000 to 4000 steps, which is the only end of an episode.
    Seeds: decide every maze from the first reset on.
    Source: https://github.com/jurgisp/memory-maze (Pasukonis et al., 2022).
    """

    def __init__(self, make: Callable[..., Any]):
        """``make(seed=...)`` makes a task of the package."""
        self._make, self._maze = make, make(seed=0)
        actions = self._maze.action_spec()
        self.action_space = gymnasium.spaces.Discrete(int(actions.num_values))
        shape = self._maze.observation_spec().shape
        self.observation_space = gymnasium.spaces.Box(0, 255, shape, np.uint8)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict]:
        """Begin an episode in a new maze."""
        super().reset(seed=seed, options=options)
        if seed is not None:
            self._maze.close()
            self._maze = self._make(seed=seed)
        return self._maze.reset().observation, {}

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict]:
        """One action of a quarter of a second."""
        now = self._maze.step(int(action))
        died = now.last() and now.discount == 0
        return now.observation, now.reward, died, now.last() and not died, {}

    def close(self) -> None:
        """Release the renderer."""
        self._maze.close()


class Control(gymnasium.Env):
    """A task of the DM Control Suite, seen by its camera.

    Observation: `[size, size, 3]` uint8, from the first camera, in quadruped tasks the third.
    Actions: one number in [-1, 1] per actuator, held for ``skip`` frames.
    Reward: the sum over these frames, each 0 to 1.
    Terminated: where an episode ends with discount 0, which no task of the benchmark does.
    Truncated: after 1000 frames.
    Seeds: decide every episode from the first reset on.
    Source: https://github.com/google-deepmind/dm_control (Tassa et al., 2018).
    """

    def __init__(
        self, make: Callable[..., Any], size: int, *, skip: int, camera: int = 0, fast: bool = False
    ):
        """``make(seed=...)`` makes the task; ``fast``: coarse shadows, no smooth edges."""
        self._make, self._size, self._skip, self._camera = make, size, skip, camera
        self._fast = fast
        self._task = self._made(0)
        actions = self._task.action_spec()
        self.action_space = gymnasium.spaces.Box(
            actions.minimum, actions.maximum, actions.shape, actions.dtype.type
        )
        self.observation_space = gymnasium.spaces.Box(0, 255, (size, size, 3), np.uint8)

    def _made(self, seed: int) -> Any:
        task = self._make(seed=seed)
        if self._fast:
            # The renderer is made with the first image, by these numbers.
            quality = task.physics.model.vis.quality
            quality.shadowsize, quality.offsamples = 512, 0
        return task

    def _image(self) -> np.ndarray:
        return self._task.physics.render(self._size, self._size, camera_id=self._camera)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict]:
        """Begin an episode."""
        super().reset(seed=seed, options=options)
        if seed is not None:
            self._task.close()
            self._task = self._made(seed)
        self._task.reset()
        return self._image(), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict]:
        """One action, of which only the last frame is rendered."""
        total = 0.0
        for _ in range(self._skip):
            now = self._task.step(action)
            total += now.reward
            if now.last():
                break
        died = now.last() and now.discount == 0
        return self._image(), total, died, now.last() and not died, {}

    def close(self) -> None:
        """Release the renderer."""
        self._task.close()


def make_spec(name: str, game: str, envs: EnvsConfig) -> EnvSpec:
    """Spec of a world; see :mod:`emerald_jax.envs.worlds`."""
    return gym.make_spec(name, *_prepared(name, game, envs))


def make_env(
    name: str, game: str, envs: EnvsConfig, *, seed: int, generation: int = 0
) -> HostVectorEnv:
    """Start the worlds; see :mod:`emerald_jax.envs.worlds`."""
    return gym.make_env(name, *_prepared(name, game, envs), seed=seed, generation=generation)


def knows(game: str) -> bool:
    """Whether DM Control has such a task: DOMAIN-TASK, its episodes of 1000 frames."""
    domain, _, task = game.partition("-")
    known = control_suite(f"dmc:{game}").ALL_TASKS
    return (domain, task) in known and domain != "lqr"  # which has no time limit


def _prepared(name: str, game: str, envs: EnvsConfig) -> tuple[Callable[[], World], EnvsConfig]:
    """A factory of the world, and the settings that remain for the adapter of ``gym.py``."""
    family = name.partition(":")[0]
    package = "dm_control" if family == "dmc" else family
    if importlib.util.find_spec(package) is None:
        raise ModuleNotFoundError(name=package)
    if family == "memory_maze":
        gym.choose_renderer(name)
    if family == "dmc":
        control_suite(name)  # an error here is one line
    makers = {"vizdoom": make_doom, "miniworld": make_miniworld}
    makers |= {"memory_maze": make_memory_maze, "dmc": make_control}
    factory = functools.partial(makers[family], name, game, envs)
    if family in ("dmc", "vizdoom"):
        # The game itself repeats the action, and draws one of its frames.
        envs = dataclasses.replace(envs, frame_skip=0)
    if family == "miniworld" and envs.both_ends == "auto":
        # Its counter and a goal reached on the last step are independent.
        envs = dataclasses.replace(envs, both_ends="terminated")
    return factory, envs


def make_doom(name: str, game: str, envs: EnvsConfig) -> World:
    """One scenario of ViZDoom: a button per action, or none."""
    os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "1")
    skip = envs.frame_skip or DOOM_SKIP
    id_ = f"vizdoom.gymnasium_wrapper:Vizdoom{game}-v1"
    env = gym.make_registered(name, id_, envs, frame_skip=skip)
    doom = env.unwrapped.game
    names = ("noop", *(button.name for button in doom.get_available_buttons()))
    world = World(env, doom.get_episode_timeout() / skip, names, blackout=True)
    folder = Path(tempfile.mkdtemp(prefix="vizdoom-"))
    weakref.finalize(world, shutil.rmtree, folder, ignore_errors=True)
    doom.set_vizdoom_path(str(write_launcher(folder)))
    return world


def write_launcher(folder: Path) -> Path:
    """A script that starts the game, a process of its own, so that it leaves nothing behind.

    The game writes its settings into ``folder`` instead of the working directory, and the kernel
    ends it when the thread that started it ends, even one that was killed.
    """
    vizdoom = importlib.import_module("vizdoom")
    dies = "setpriv --pdeathsig KILL -- " if shutil.which("setpriv") else ""
    launcher = folder / "vizdoom.sh"
    lines = ("#!/bin/sh", f"cd {shlex.quote(str(folder))}", "")
    launcher.write_text("\n".join(lines) + f'exec {dies}{shlex.quote(vizdoom.exe_path)} "$@"\n')
    launcher.chmod(0o700)
    return launcher


def make_miniworld(name: str, game: str, envs: EnvsConfig) -> World:
    """One world of MiniWorld."""
    with contextlib.redirect_stdout(io.StringIO()):  # how many samples a pixel has
        if not os.environ.get("DISPLAY"):
            importlib.import_module("pyglet").options["headless"] = True
        env = gym.make_registered(name, f"miniworld:MiniWorld-{game}-v0", envs)
    world = env.unwrapped
    names = [action.name for action in world.actions][: world.action_space.n]
    return World(env, world.max_episode_steps, names)


def make_memory_maze(name: str, game: str, envs: EnvsConfig) -> World:
    """One size of Memory Maze."""
    del envs
    gym.choose_renderer(name)
    logging.getLogger("absl").addFilter(_is_news)
    # The package's own start imports the unmaintained gym; the tasks do not need it.
    spec = importlib.util.find_spec("memory_maze")
    sys.modules.setdefault("memory_maze", importlib.util.module_from_spec(spec))
    tasks = importlib.import_module("memory_maze.tasks")
    make = functools.partial(getattr(tasks, f"memory_maze_{game}"), image_only_obs=True)
    names = ("noop", "forward", "left", "right", "forward_left", "forward_right")
    return World(Maze(make), MAZE_STEPS[game], names)


def make_control(name: str, game: str, envs: EnvsConfig) -> World:
    """One task of DM Control."""
    suite = control_suite(name)
    logging.getLogger("absl").addFilter(_is_news)
    domain, _, task = game.partition("-")

    def make(seed: int) -> Any:
        return suite.load(domain, task, task_kwargs={"random": seed})

    skip, camera = envs.frame_skip or CONTROL_SKIP, 2 if domain == "quadruped" else 0
    control = Control(make, envs.image_size, skip=skip, camera=camera, fast=envs.fast_render)
    return World(control, CONTROL_FRAMES / skip, ())


def control_suite(name: str) -> ModuleType:
    """The package's suite; EnvError if its renderer cannot start."""
    gym.choose_renderer(name)
    try:
        return importlib.import_module("dm_control.suite")
    except ModuleNotFoundError:
        raise
    except Exception as error:  # such as ImportError: EGL is there, and no driver
        found = f"{os.environ.get('MUJOCO_GL', '')}: {describe(error).rstrip('.')}"
        message = f"{name} cannot render with MUJOCO_GL={found}; {gym.RENDERER_HELP}"
        raise EnvError(message) from error


def _is_news(record: logging.LogRecord) -> bool:
    """False for warnings about its own models that MuJoCo writes at every start."""
    return not any(line in record.getMessage() for line in ("no free joint", "settotalmass"))
