"""The 16 games of Procgen, stepped in C++ threads by EnvPool; needs the package envpool."""

from __future__ import annotations

import os
from typing import Any

import envpool
import numpy as np

from emerald_jax.config import EnvsConfig
from emerald_jax.envs.base import EnvError, EnvSpec, Outcome, VectorEnv, square_spec
from emerald_jax.envs.gym import resize_area
from emerald_jax.envs.host import env_seeds

#: Procgen's combinations of keys, by number.
ACTIONS = (
    *("left_down", "left", "left_up", "down", "noop", "up", "right_down", "right", "right_up"),
    *("d", "a", "w", "s", "q", "e"),
)


class ProcgenGames(VectorEnv):
    """E copies of one Procgen game, each episode in another generated level.

    Observation: the game's 64 x 64 RGB image; another ``envs.image_size`` is resized by area.
    Actions: 15.
    Reward: the game's own.
    Terminated: the level is won or lost.
    Truncated: after 500 to 6000 steps, the game's own limit, or ``envs.time_limit``.
    Levels: ``envs.num_levels`` from ``envs.start_level`` on, 0 for all; ``envs.distribution_mode``,
        ``envs.backgrounds``.
    Seeds: environment i has its own, independent of E; it decides all levels.
    Source: EnvPool's port of https://github.com/openai/procgen (Cobbe et al., 2020).
    """

    def __init__(self, name: str, game: str, envs: EnvsConfig, *, seed: int, generation: int = 0):
        """Load the game into every environment."""
        self._pool = _make_pool(name, game, envs, env_seeds(seed, envs.count, generation))
        super().__init__(_spec(name, envs, self._pool), envs.count)
        self._ended = np.zeros(envs.count, bool)

    def _begin(self) -> np.ndarray:
        self._ended[:] = False
        return self._fit(self._pool.reset()[0])

    def _send(self, actions: np.ndarray) -> None:
        self._pool.send(actions)

    def _receive(self) -> Outcome:
        image, reward, terminated, truncated, _ = self._pool.recv()
        cut = np.flatnonzero(self.newest.is_last & ~self._ended).astype(np.int32)
        self._ended = terminated | truncated
        if len(cut):
            # We ended these episodes; EnvPool does not know and has played on for one action.
            image = image.copy()
            image[cut], self._ended[cut] = self._pool.reset(cut)[0], False
        over = ~self.newest.is_last & (self.length + 1 >= self.spec.time_limit)
        return Outcome(self._fit(image), reward, terminated, truncated | over)

    def _fit(self, image: np.ndarray) -> np.ndarray:
        """Images `[E, 64, 64, 3]` in the spec's size."""
        size = self.spec.image_shape[0]
        if image.shape[1] == size:
            return image
        resized = [np.rint(resize_area(one, size)) for one in image]
        return np.stack(resized).astype(np.uint8)

    def close(self) -> None:
        """See :class:`VectorEnv`."""
        if self._pending is not None:
            self.step_wait()
        self._pool = None  # its threads end with it


make_env = ProcgenGames


def make_spec(name: str, game: str, envs: EnvsConfig) -> EnvSpec:
    """Spec of a game; see :class:`ProcgenGames`."""
    return _spec(name, envs, _make_pool(name, game, envs, [0]))


def _make_pool(name: str, game: str, envs: EnvsConfig, seeds: list[int]) -> Any:
    """EnvPool's own vector environment; EnvError where the system lacks Qt."""
    try:
        return envpool.make_gymnasium(
            f"{game.capitalize()}{envs.distribution_mode.capitalize()}-v0",
            num_envs=len(seeds),
            num_threads=min(len(seeds), os.cpu_count() or 1),
            seed=seeds,
            num_levels=envs.num_levels,
            start_level=envs.start_level,
            use_backgrounds=envs.backgrounds,
            channel_first=False,
        )
    except ImportError as error:
        if "Qt" not in str(error):
            raise
        raise EnvError(
            f"{name} needs the system's Qt 5 libraries; on Debian and Ubuntu: "
            "apt-get install libqt5gui5"
        ) from error


def _spec(name: str, envs: EnvsConfig, pool: Any) -> EnvSpec:
    return square_spec(name, envs, len(ACTIONS), pool.spec.config.max_episode_steps, ACTIONS)
