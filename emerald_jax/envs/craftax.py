"""Craftax and Craftax-Classic as pixels, stepped on the device; needs the package craftax."""

from __future__ import annotations

import importlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from craftax.craftax_env import make_craftax_env_from_name

from emerald_jax.config import EnvsConfig
from emerald_jax.envs.base import EnvSpec, Outcome, square_spec
from emerald_jax.envs.device import DeviceVectorEnv
from emerald_jax.envs.gym import area_weights

_CONSTANTS = {
    "Craftax-Classic-Pixels-v1": "craftax.craftax_classic.constants",
    "Craftax-Pixels-v1": "craftax.craftax.constants",
}
_NEVER = 2**31 - 1


class CraftaxVectorEnv(DeviceVectorEnv):
    """E worlds of Craftax-Classic (Crafter's rules) or of Craftax (nine floors).

    Observation: the game's pixels. An image that fits is centred on black in its own size (63 x 63
    in 64 x 64), a larger one (130 x 110) is resized by area.
    Actions: 17 in Craftax-Classic, 43 in Craftax.
    Reward: the game's own.
    Terminated: death, or the last boss is beaten; also on the limit's own step.
    Truncated: after ``envs.time_limit`` steps, or the game's limit (10 000; Craftax 100 000).
    Extra: ``achievements``, name -> 0 or 1, taken from the state: the package's own ``info``
    multiplies them by 100.
    Seeds: see :class:`DeviceVectorEnv`.
    Source: craftax 1.6, https://github.com/MichaelTMatthews/Craftax. Its own auto-resets are not
    used: they lose the last frame, and make a world per environment and step.
    """

    costly_worlds = True

    def __init__(self, name: str, game: str, envs: EnvsConfig, *, seed: int, generation: int = 0):
        """Programs compile, in about a minute, on the first reset and the first step."""
        self._game = make_craftax_env_from_name(game, auto_reset=False)
        # We count the limit, so the game sets `done` only when the world ended.
        self._params = self._game.default_params.replace(max_timesteps=_NEVER)
        self._size = envs.image_size
        achievements = importlib.import_module(_CONSTANTS[game]).Achievement
        self._achievements = {a.name.lower(): a.value for a in achievements}
        super().__init__(make_spec(name, game, envs), envs.count, seed, generation)

    def _new(self, key: jax.Array) -> tuple[jax.Array, Any]:
        observation, state = self._game.reset_env(key, self._params)
        return fit_image(observation, self._size), state

    def _next(
        self, key: jax.Array, state: Any, action: jax.Array, steps: jax.Array
    ) -> tuple[Any, Outcome]:
        observation, state, reward, done, _ = self._game.step_env(key, state, action, self._params)
        image, over = fit_image(observation, self._size), steps >= self.spec.time_limit
        ends = jnp.bool_(done), over
        return state, Outcome(image, jnp.float32(reward), *ends, state.achievements)

    def _extra(self, values: np.ndarray) -> dict[str, Any]:
        return {"achievements": {name: int(values[i]) for name, i in self._achievements.items()}}


make_env = CraftaxVectorEnv


def make_spec(name: str, game: str, envs: EnvsConfig) -> EnvSpec:
    """Spec of a game; see :class:`CraftaxVectorEnv`."""
    made = make_craftax_env_from_name(game, auto_reset=False)
    names = (action.name.lower() for action in importlib.import_module(_CONSTANTS[game]).Action)
    return square_spec(name, envs, made.num_actions, made.default_params.max_timesteps, names)


def fit_image(pixels: jax.Array, size: int) -> jax.Array:
    """A square image `[size, size, 3]` uint8 of pixels `[height, width, 3]` in [0, 1].

    They are centred on black where they fit, or else resized by area.
    """
    height, width, _ = pixels.shape
    if max(height, width) <= size:
        top, left = (size - height) // 2, (size - width) // 2
        rows, columns = (top, size - height - top), (left, size - width - left)
        pixels = jnp.pad(pixels, (rows, columns, (0, 0)))
    else:
        rows, columns = area_weights(height, size), area_weights(width, size)
        exact = jax.lax.Precision.HIGHEST
        pixels = jnp.einsum("rh,hwc,kw->rkc", rows, pixels, columns, precision=exact)
    return jnp.round(jnp.clip(pixels, 0, 1) * 255).astype(jnp.uint8)
