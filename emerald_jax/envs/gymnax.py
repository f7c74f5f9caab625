"""Environments of the gymnax package, stepped on the device, with their grids drawn as images."""

from __future__ import annotations

import colorsys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from emerald_jax.config import EnvsConfig
from emerald_jax.envs.base import EnvError, EnvSpec, Outcome, square_spec
from emerald_jax.envs.device import DeviceVectorEnv


class GymnaxVectorEnv(DeviceVectorEnv):
    """E copies of one gymnax environment with a grid observation and discrete actions.

    Observation: the grid as an RGB image (:func:`render_grid`); values are scaled by the bounds of
    the observation space.
    Actions, reward and termination: the environment's own.
    Truncated: after ``envs.time_limit`` steps, or else by the environment's own limit.
    Seeds: see :class:`DeviceVectorEnv`.
    Source: gymnax 1.0, https://github.com/RobertTLange/gymnax. Its own auto-reset is not used: it
    replaces the last observation of an episode by the first one of the next.
    """

    def __init__(self, name: str, game: str, envs: EnvsConfig, *, seed: int, generation: int = 0):
        """Programs compile on the first reset and the first step; ``game`` is the gymnax id.

        EnvError: gymnax cannot make the game, or it cannot be shown or controlled.
        """
        self._game, self._params = _load_game(name, game)
        spec = _spec(name, self._game, self._params, envs)
        self._limit, self._size = envs.time_limit, envs.image_size
        space = self._game.observation_space(self._params)
        low, high = np.asarray(space.low, np.float32), np.asarray(space.high, np.float32)
        usable = np.isfinite(low) & np.isfinite(high) & (high > low)
        #: They scale an observation to [0, 1]; (0, 1) where the space has no finite ones.
        self._bounds = np.where(usable, low, 0), np.where(usable, high, 1)
        super().__init__(spec, envs.count, seed, generation)

    def _new(self, key: jax.Array) -> tuple[jax.Array, Any]:
        observation, state = self._game.reset_env(key, self._params)
        return self._draw(observation), state

    def _next(
        self, key: jax.Array, state: Any, action: jax.Array, steps: jax.Array
    ) -> tuple[Any, Outcome]:
        observation, state, reward, terminated, _ = self._game.step_env(
            key, state, action, self._params
        )
        own = self._limit == 0
        truncated = self._game.is_truncated(state, self._params) if own else steps >= self._limit
        ends = jnp.bool_(terminated), jnp.bool_(truncated)
        return state, Outcome(self._draw(observation), jnp.float32(reward), *ends)

    def _draw(self, observation: jax.Array) -> jax.Array:
        """Image `[size, size, 3]` uint8 of one observation."""
        low, high = self._bounds
        grid = (observation.astype(jnp.float32) - low) / (high - low)
        return render_grid(grid, self._size)


make_env = GymnaxVectorEnv


def make_spec(name: str, game: str, envs: EnvsConfig) -> EnvSpec:
    """Spec of a game, see :class:`GymnaxVectorEnv`; compiles nothing."""
    return _spec(name, *_load_game(name, game), envs)


def knows(game: str) -> bool:
    """Whether gymnax has a game with this id."""
    import gymnax

    return game in gymnax.registered_envs


def check_grid(name: str, shape: tuple[int, ...], size: int) -> None:
    """EnvError if an observation of ``shape`` is not a grid that fits an image of ``size``."""
    if len(shape) not in (2, 3):
        raise EnvError(
            f"{name} observes {list(shape)}, not a grid [rows, columns] or [rows, columns, "
            "channels]: only environments that can be shown as an image are supported"
        )
    if max(shape[:2]) > size:
        raise EnvError(
            f"the {shape[0]} x {shape[1]} grid of {name} does not fit an image of {size} pixels: "
            f"choose envs.image_size of at least {max(shape[:2])}"
        )


def palette(channels: int) -> np.ndarray:
    """Colours of the first ``channels`` channels, `[channels, 3]` float32 in [0, 1].

    The colour of a channel does not depend on the number of channels. The first is white; the
    others step around the colour circle by the golden ratio, which keeps neighbours far apart.
    """
    colours = [(1.0, 1.0, 1.0)]
    for i in range(channels - 1):
        value, saturation = ((1.0, 1.0), (0.65, 1.0), (1.0, 0.5))[i % 3]
        colours.append(colorsys.hsv_to_rgb(i * 0.618034 % 1, saturation, value))
    return np.array(colours[:channels], np.float32)


def render_grid(grid: jax.Array, size: int) -> jax.Array:
    """Image of a grid on black, each axis enlarged by the largest integer factor that fits.

    Each axis has its own factor: a 10 x 5 board then fills a 16 x 16 image well enough that its
    few pieces count in the image loss. A cell with several channels shows the mean of their
    colours, so no channel hides another.

    ``grid`` is `[rows, columns]` or, with a channel per kind of thing, `[rows, columns, channels]`
    in [0, 1], the image `[size, size, 3]` uint8.
    """
    grid = grid if grid.ndim == 3 else grid[..., None]
    rows, columns, channels = grid.shape
    level = jnp.clip(grid.astype(jnp.float32), 0, 1)[..., None]
    # A sum of products and not a matmul: accelerated matmuls round differently.
    colour = (level * palette(channels)[None, None]).sum(2) / jnp.maximum(level.sum(2), 1)
    cells = jnp.round(colour * 255).astype(jnp.uint8)
    image = cells.repeat(size // rows, axis=0).repeat(size // columns, axis=1)
    top, left = (size - image.shape[0]) // 2, (size - image.shape[1]) // 2
    canvas = jnp.zeros((size, size, 3), jnp.uint8)
    return canvas.at[top : top + image.shape[0], left : left + image.shape[1]].set(image)


def _load_game(name: str, game: str) -> tuple[Any, Any]:
    """A gymnax environment and its default parameters."""
    import gymnax

    try:
        return gymnax.make(game)
    except Exception as error:  # some games download data
        raise EnvError(f"gymnax cannot make {name}: {error}") from error


def _spec(name: str, game: Any, params: Any, envs: EnvsConfig) -> EnvSpec:
    observation, actions = game.observation_space(params), game.action_space(params)
    check_grid(name, tuple(getattr(observation, "shape", ())), envs.image_size)
    if not hasattr(actions, "n"):
        raise EnvError(f"{name} has continuous actions: only discrete actions are supported")
    return square_spec(name, envs, actions.n, params.max_steps_in_episode)
