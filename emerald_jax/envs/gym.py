"""Any Gymnasium environment with an image observation; actions of every kind.

Images are resized by area: every new pixel is the mean of the part of the old image that it
covers. (Pillow's BOX filter differs from that at ratios that are not integers.)
"""

from __future__ import annotations

import contextlib
import ctypes.util
import functools
import logging
import math
import os
import sys
import traceback
from collections.abc import Iterator
from itertools import islice
from typing import Any

import gymnasium
import numpy as np
from gymnasium.spaces import Box, Dict, Discrete, MultiBinary, MultiDiscrete, Tuple
from gymnasium.wrappers import TimeLimit

from emerald_jax.actions import ActionSpace
from emerald_jax.config import EnvsConfig
from emerald_jax.envs.base import BOTH_ENDS, EnvError, EnvSpec, square_spec
from emerald_jax.envs.guards import FaultError, checked_reward, describe, env_code, with_notes
from emerald_jax.envs.host import HostVectorEnv, gymnasium_space, make_host_vector_env
from emerald_jax.envs.workers import EnvFactory

_LOG = logging.getLogger(__name__)


@functools.lru_cache(maxsize=32)
def area_weights(old: int, new: int) -> np.ndarray:
    """Share of each old pixel in each new one along one axis, `[new, old]` float32; rows sum to 1.

    With more new pixels than old ones, old pixels are repeated and blended at their seams.
    """
    edges = np.arange(new + 1) * (old / new)
    pixels = np.arange(old)
    covered = np.minimum(edges[1:, None], pixels + 1) - np.maximum(edges[:-1, None], pixels)
    weights = (np.clip(covered, 0, None) * (new / old)).astype(np.float32)
    weights.flags.writeable = False
    return weights


def resize_area(image: np.ndarray, size: int) -> np.ndarray:
    """`[height, width, channels]` numbers resized to `[size, size, channels]` float32."""
    height, width, channels = image.shape
    rows = area_weights(height, size) @ image.reshape(height, -1).astype(np.float32)
    return np.matmul(area_weights(width, size), rows.reshape(size, width, channels))


RENDER = "render"
RENDERER_HELP = "on Debian and Ubuntu: apt-get install libegl1 libgl1 libgl1-mesa-dri"
_CORRECT = "correct the observation_space"
_STEP = ("observation", "reward", "terminated", "truncated", "info")
#: Errors of Gymnasium's own wrappers, and of Python, with an environment of the old kind.
_OLD_SIGNS = ("values to unpack", "unexpected keyword argument 'seed'")


class ImageEnv(gymnasium.Wrapper):
    """Any environment with images, shown as a square RGB image.

    Observation: `[size, size, 3]` uint8. Grey images become RGB, an alpha channel is dropped,
    channels may come first or last; uint8 is shown as it is, other numbers are scaled by the bounds
    of their space and cut to them, with a warning; every image is resized by area, so its aspect
    ratio may change. Renders may also be PIL images, or lists of frames, of which the last counts.
    Actions: a discrete action is counted from 0, wherever the environment's own begin, and given to
    it as ``np.int64``. All others are vectors (see ``emerald_jax/actions.py``) in the order of the
    environment's space: an entry per category, and per number of a Box, whose bounds become -1 and
    1. They are repeated for ``envs.frame_skip`` frames.
    Reward: the sum over the frames of an action.
    Terminated and info: the last frame's.
    Truncated: the last frame's, or after ``envs.time_limit`` steps of the agent. Where the
    environment sets both, ``envs.both_ends`` decides, with a warning.
    Source: a Gymnasium id or a user's factory, https://gymnasium.farama.org.
    """

    def __init__(self, env: gymnasium.Env, name: str, envs: EnvsConfig):
        """Check the spaces of ``env``; EnvError without an image or usable actions."""
        super().__init__(env)
        self.entries = list(_entries(name, env.action_space))
        if not self.entries:
            raise EnvError(f"{name} takes {_short(env.action_space)}, which has no entries")
        actions = ActionSpace(tuple(size for _, size in self.entries))
        self._key, self._image = _find_image(name, env, envs.image_key)
        self._size, self._skip, self._limit = envs.image_size, envs.frame_skip or 1, envs.time_limit
        self._steps, self._both_ends = 0, envs.both_ends
        self._warnings: dict[str, str] = {}
        self.observation_space = Box(0, 255, (self._size, self._size, 3), np.uint8)
        self.action_space = gymnasium_space(actions)

    def reset(self, **kwargs: Any) -> tuple[np.ndarray, dict[str, Any]]:
        """First image of an episode."""
        self._steps = 0
        observation, info = self._ask("reset", ("observation", "info"), **kwargs)
        return self._convert(observation), info

    def step(
        self, action: int | np.ndarray
    ) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """One action, repeated for ``frame_skip`` frames or until the episode ends."""
        total = 0.0
        taken = own_action(self.env.action_space, iter(np.ravel(action).tolist()))
        for _ in range(self._skip):
            observation, reward, terminated, truncated, info = self._ask("step", _STEP, taken)
            total += checked_reward(reward)
            if terminated or truncated:
                break
        self._steps += 1
        if terminated and truncated:
            terminated = self._is_death()
        truncated = bool(truncated) or self._steps == self._limit
        return self._convert(observation), total, bool(terminated), truncated, info

    def _is_death(self) -> bool:
        """Whether an end that is terminated and truncated at once counts as terminated.

        An environment that says both itself, as ViZDoom does, was stopped by its clock. A counter
        around it knows nothing of the world: there, ``terminated`` is the world's own.
        """
        death = self._both_ends == "terminated"
        if self._both_ends == "auto":
            death = _counted_out(self.env)
        self._warnings[BOTH_ENDS] = (
            f"an episode ended terminated and truncated at once: stored as "
            f"{'terminated' if death else 'truncated'} (envs.both_ends decides)"
        )
        return death

    def _ask(self, method: str, wanted: tuple[str, ...], *args: Any, **kwargs: Any) -> Any:
        """Call a method of the environment, which must return as many values as ``wanted``."""
        try:
            answer = getattr(self.env, method)(*args, **kwargs)
            if isinstance(answer, tuple | list) and len(answer) == len(wanted):
                return answer
            found = f"returned {_form(answer)} from {method}"
        except (ValueError, TypeError) as error:
            if not any(sign in str(error) for sign in _OLD_SIGNS):
                raise
            found = f"raised {describe(error)} in {method}"
        port = "port the environment from Gym's old interface to Gymnasium's"
        raise FaultError.interface(f"{found}, which must return ({', '.join(wanted)}): {port}")

    def take_warnings(self) -> dict[str, str]:
        """Warnings since the last call, kind -> line."""
        warnings, self._warnings = self._warnings, {}
        return warnings

    def _convert(self, observation: Any) -> np.ndarray:
        """The square RGB image of an observation."""
        image = self._image_of(observation)
        if image.shape[:2] != (self._size, self._size) or image.dtype != np.uint8:
            low, high = self._bounds_of(image)
            image = (resize_area(image, self._size) - low) * (255 / (high - low))
            image = np.clip(np.rint(image), 0, 255).astype(np.uint8)
        return np.repeat(image, 3, axis=2) if image.shape[2] == 1 else image

    def _shown(self, observation: Any) -> Any:
        """The newest rendered frame, or the observation's entry under the key."""
        if self._key == RENDER:
            frame = self.env.render()
            if isinstance(frame, list) and frame and hasattr(frame[-1], "__array_interface__"):
                return frame[-1]  # of a list of frames, not of rows
            return frame
        try:
            return observation[self._key] if self._key else observation
        except (KeyError, TypeError, IndexError) as error:
            raise FaultError.interface(
                f"gave {_form(observation)} as the observation, without {self._key!r}"
            ) from error

    def _image_of(self, observation: Any) -> np.ndarray:
        """`[height, width, 1 or 3]` numbers; FaultError if the observation is not an image."""
        rendered, shown = self._key == RENDER, self._shown(observation)
        what, channels = ("render()", (1, 3, 4)) if rendered else ("the observation", (1, 3))
        try:
            image = np.asarray(shown)
        except Exception:  # such as lists of different lengths
            image = np.empty(0)
        shape = image.shape
        if image.ndim == 2:
            image = image[:, :, None]
        elif _channels_first(shape):
            image = np.moveaxis(image, 0, -1)
        if image.ndim != 3 or image.shape[2] not in channels or image.dtype.kind not in "buif":
            raise FaultError.interface(f"gave {_form(shown)} as {what}, not a grey or RGB image")
        if not rendered and shape != self._image.shape:
            form = f"{what} is {list(shape)}"
            self._warnings["shape"] = f"{form}, its space {list(self._image.shape)}"
        if rendered and image.dtype != np.uint8:
            if image.dtype.kind not in "iu" or image.min() < 0 or image.max() > 255:
                raise FaultError.interface(f"gave {image.dtype} numbers as {what}, not uint8")
            image = image.astype(np.uint8)
        return image[:, :, :3] if image.shape[2] == 4 else image

    def _bounds_of(self, image: np.ndarray) -> tuple[float, float]:
        """The numbers that are shown as black and as white; warns of numbers outside them."""
        low, high = _range(self._image)
        given, declared = image.dtype, self._image.dtype
        if given == declared == np.uint8:
            return low, high
        form = f"the observation is {given}, its space {declared} from {low:g} to {high:g}"
        if given == np.uint8 and high <= 1:
            self._warnings["bounds"] = f"{form}: shown as uint8; {_CORRECT}"
            return 0.0, 255.0
        if (given.kind == "f") != (declared.kind == "f"):
            self._warnings["type"] = f"{form}; {_CORRECT}"
        least, most = float(image.min()), float(image.max())
        if not math.isfinite(most - least):
            raise FaultError(f"gave an observation of {least:g} to {most:g}: not finite")
        slack = 1e-3 * (high - low)
        if least < low - slack or most > high + slack:
            form = f"the observation holds {least:g} to {most:g}"
            outside = f"outside the bounds {low:g} to {high:g} of its space"
            self._warnings["bounds"] = f"{form}, {outside}: cut to them; {_CORRECT}"
        return low, high


def _entries(name: str, space: gymnasium.Space, path: str = "") -> Iterator[tuple[str, int]]:
    """Name and number of classes (0: a number) of every entry of an action; EnvError if it has
    another kind of entry.
    """
    if isinstance(space, Dict | Tuple):
        inner = space.items() if isinstance(space, Dict) else enumerate(space.spaces, 1)
        for key, part in inner:
            yield from _entries(name, part, f"{path} {key}".strip())
        return
    if isinstance(space, Discrete):
        sizes = [int(space.n)]
    elif isinstance(space, MultiDiscrete):
        sizes = np.ravel(space.nvec).tolist()
    elif isinstance(space, MultiBinary):
        sizes = [2] * math.prod(space.shape)
    elif isinstance(space, Box) and np.isfinite([space.low, space.high]).all():
        sizes = [0] * math.prod(space.shape)
    else:
        where = f" as {path!r} of an action" if path else ""
        bounds = ": give it finite bounds" if isinstance(space, Box) else ""
        known = "Discrete, MultiDiscrete, MultiBinary, bounded Box, and Dict or Tuple of them"
        raise EnvError(f"{name} takes {_short(space)}{where}{bounds}; supported are {known}")
    word = path or "action"
    numbered = [word] if len(sizes) == 1 else [f"{word} {i}" for i in range(1, len(sizes) + 1)]
    yield from zip(numbered, sizes, strict=True)


def own_action(space: gymnasium.Space, entries: Iterator[float]) -> Any:
    """The action of ``space`` with these entries, which are used up in the order of the space."""
    if isinstance(space, Dict):
        return {key: own_action(part, entries) for key, part in space.items()}
    if isinstance(space, Tuple):
        return tuple(own_action(part, entries) for part in space.spaces)
    if isinstance(space, Discrete):
        return np.int64(space.start + round(next(entries)))
    values = np.array(list(islice(entries, math.prod(space.shape)))).reshape(space.shape)
    if isinstance(space, Box):
        low, high = space.low.astype(np.float64), space.high.astype(np.float64)
        values = np.clip(low + (values + 1) / 2 * (high - low), low, high)
    if space.dtype.kind in "iu":
        values = np.rint(values)
    if isinstance(space, MultiDiscrete):
        values = values + space.start
    return np.asarray(values, space.dtype)  # an array even where the shape is empty


def make_spec(name: str, game: str | EnvFactory, envs: EnvsConfig) -> EnvSpec:
    """Spec of an environment, made once to read its spaces; EnvError if it is unsuitable.

    ``game`` is a factory or Gymnasium's id, such as ``ALE/Pong-v5`` or, with the package that
    registers it, ``minigrid:MiniGrid-Empty-5x5-v0``.
    """
    with env_code():
        env = make_image_env(name, game, envs)
        if envs.image_key == RENDER:
            _draw(name, env)
        limit = 0 if envs.time_limit else math.ceil(_registered_limit(env) / (envs.frame_skip or 1))
        names = getattr(env.env, "action_names", ())
        try:
            env.close()
        except (Exception, SystemExit) as error:
            _warn_once(f"{name}: close() raised {describe(error)}; ignored")
    entries, sizes = zip(*env.entries, strict=True)
    actions = ActionSpace(sizes)
    return square_spec(name, envs, actions, limit, names if actions.discrete else entries)


def make_env(
    name: str, game: str | EnvFactory, envs: EnvsConfig, *, seed: int, generation: int = 0
) -> HostVectorEnv:
    """Start the environments; see :func:`make_spec`."""
    spec = make_spec(name, game, envs)
    factory = functools.partial(make_image_env, name, game, envs)
    return make_host_vector_env(spec, factory, envs, seed=seed, generation=generation)


def make_image_env(name: str, game: str | EnvFactory, envs: EnvsConfig) -> ImageEnv:
    """One wrapped environment; see :func:`make_spec`."""
    if envs.image_key == RENDER or not isinstance(game, str):
        _let_pygame_draw()
    if isinstance(game, str):
        env = make_registered(name, game, envs)
    else:
        try:
            env = game()
        except (Exception, SystemExit) as error:
            raise _raised(f"the factory of {name}", error) from error
    if not isinstance(env, gymnasium.Env):
        raise EnvError(f"the factory of {name} made a {type(env).__name__}, not a gymnasium.Env")
    try:
        if env.render_mode and hasattr(env.unwrapped, "mujoco_renderer"):
            choose_renderer(name)  # its renderer starts with the first image
        return ImageEnv(env, name, envs)
    except Exception as error:
        with contextlib.suppress(Exception, SystemExit):
            env.close()
        if isinstance(error, EnvError):
            raise
        raise _raised(name, error) from error


def choose_renderer(name: str) -> None:
    """Choose how MuJoCo renders where MUJOCO_GL does not; EnvError if there is no library for it.

    EGL uses the GPU, or the CPU by Mesa's driver. Elsewhere than on Linux MuJoCo chooses.
    """
    if "MUJOCO_GL" in os.environ or sys.platform != "linux":
        return
    for kind, library in (("egl", "EGL"), ("osmesa", "OSMesa")):
        if ctypes.util.find_library(library):
            os.environ["MUJOCO_GL"] = kind
            return
    raise EnvError(f"{name} cannot render: there is no EGL and no OSMesa library; {RENDERER_HELP}")


def _let_pygame_draw() -> None:
    """Let pygame start without a sound card, and on Linux without a screen."""
    os.environ.setdefault("SDL_AUDIODRIVER", "dummy")
    if sys.platform == "linux" and not {"DISPLAY", "WAYLAND_DISPLAY"} & os.environ.keys():
        os.environ.setdefault("SDL_VIDEODRIVER", "dummy")


def _draw(name: str, env: ImageEnv) -> None:
    """Draw one image; EnvError if that fails, such as without pygame or without a driver."""
    try:
        env.reset(seed=0)
    except (Exception, SystemExit) as error:
        with contextlib.suppress(Exception, SystemExit):
            env.close()
        raise _raised(name, error) from error


@functools.cache
def _warn_once(line: str) -> None:
    _LOG.warning("%s", line)


def _raised(what: str, error: BaseException) -> EnvError:
    """An exception of the user's code as an error in one line, its traceback in a note."""
    fault = FaultError.of(error)
    return with_notes(EnvError(f"{what} {fault}{_renderer_hint(error)}"), fault)


def _renderer_hint(error: BaseException) -> str:
    """How to install a renderer, if MuJoCo's own modules raised: they only start it."""
    frames = traceback.walk_tb(error.__traceback__)
    if not any(str(frame.f_globals.get("__name__")).startswith("mujoco.") for frame, _ in frames):
        return ""
    return f" (MUJOCO_GL is {os.environ.get('MUJOCO_GL', 'not set')}; {RENDERER_HELP})"


def _counted_out(env: gymnasium.Env) -> bool:
    """Whether a TimeLimit around the environment has just reached its limit."""
    while isinstance(env, gymnasium.Wrapper):
        if isinstance(env, TimeLimit) and env._elapsed_steps >= env._max_episode_steps:
            return True
        env = env.env
    return False


def _registered_limit(env: ImageEnv) -> int:
    """Steps after which the environment cuts an episode by its spec; 0 without a limit."""
    try:
        return int(getattr(env.env.spec, "max_episode_steps", 0) or 0)
    except Exception as error:  # the user's property may raise anything
        _warn_once(f"{type(env.unwrapped).__name__}: spec raised {describe(error)}; ignored")
        return 0


def make_registered(name: str, game: str, envs: EnvsConfig, **more: Any) -> gymnasium.Env:
    """An environment of Gymnasium's registry; ``more`` are arguments of its constructor."""
    limit = {"max_episode_steps": -1} if envs.time_limit else {}
    render = {"render_mode": "rgb_array"} if envs.image_key == RENDER else {}
    try:
        return gymnasium.make(game, disable_env_checker=True, **limit, **render, **more)
    except gymnasium.error.UnregisteredEnv as error:
        hint = "" if ":" in game else f"; name the package that registers it: gym:PACKAGE:{game}"
        raise EnvError(f"{name} is not registered: {_line(error).rstrip('.')}{hint}") from error
    except ModuleNotFoundError as error:
        missing = error.name or game.partition(":")[0]
        raise ModuleNotFoundError(str(error), name=missing) from error
    except (Exception, SystemExit) as error:  # constructors may raise anything
        hint = _renderer_hint(error)
        raise EnvError(f"gymnasium cannot make {name}: {_line(error)}{hint}") from error


def _find_image(name: str, env: gymnasium.Env, key: str) -> tuple[str, Box]:
    """Key of the image in an observation, and the image's space; EnvError without exactly one."""
    space = env.observation_space
    if key == RENDER:
        if env.render_mode != "rgb_array":
            raise EnvError(
                f"{name} must be made with render_mode rgb_array for envs.image_key {RENDER!r}"
            )
        return key, Box(0, 255, (2, 2, 3), np.uint8)
    if isinstance(space, Dict):
        images = [k for k, entry in space.items() if _is_image(entry)]
        choices = f"set envs.image_key to one of {', '.join(images)}"
        if not images:
            choices = "it holds no grey or RGB image"
        if key and key not in images:
            raise EnvError(f"{name} has no image {key!r}: {choices}")
        if not key and len(images) != 1:
            raise EnvError(f"{name} observes a dict: {choices}")
        key = key or images[0]
        space = space[key]
    elif key:
        raise EnvError(f"{name} observes {_short(space)}, no dict: leave envs.image_key empty")
    if not _is_image(space):
        raise EnvError(
            f"{name} observes {_short(space)}, not a grey or RGB image: other observations are not "
            f"supported (envs.image_key {RENDER!r} shows the result of env.render())"
        )
    if not np.isfinite(_range(space)).all():
        raise EnvError(f"{name} observes an image without bounds: give its Box finite low and high")
    return key, space


def _form(value: Any) -> str:
    """A short description of a value."""
    if value is None:
        return "None"
    if isinstance(value, tuple):
        return f"{len(value)} values"
    if hasattr(value, "shape") and hasattr(value, "dtype"):
        return f"{value.dtype} {list(value.shape)}"
    return f"a {type(value).__name__}"


def _is_image(space: gymnasium.Space) -> bool:
    """A grey or RGB image, its channels first, last, or none."""
    shape = space.shape if isinstance(space, Box) else ()
    if len(shape) == 3:
        *shape, channels = (*shape[1:], shape[0]) if _channels_first(shape) else shape
        if channels not in (1, 3):
            return False
    return len(shape) == 2 and min(shape) > 1


def _channels_first(shape: tuple[int, ...]) -> bool:
    return len(shape) == 3 and shape[0] in (1, 3) and shape[2] not in (1, 3)


def _range(space: Box) -> tuple[float, float]:
    """The numbers that are shown as black and as white."""
    if space.dtype == np.uint8:
        return 0.0, 255.0
    low, high = float(space.low.min()), float(space.high.max())
    return low, max(high, low + 1e-6)


def _short(space: gymnasium.Space) -> str:
    """A short description of a space; the bounds of a Box can fill a page."""
    return f"Box{list(space.shape)} {space.dtype}" if isinstance(space, Box) else _line(space)[:80]


def _line(thing: object) -> str:
    return " ".join(str(thing).split())
