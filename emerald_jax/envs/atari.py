"""Atari games by the protocol of the Atari 100k benchmark, stepped in C++ threads by ale_py."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ale_py
import numpy as np
from gymnasium.vector import AutoresetMode

from emerald_jax.config import EnvsConfig
from emerald_jax.envs.base import EnvError, EnvSpec, Outcome, VectorEnv, square_spec
from emerald_jax.envs.host import env_seeds

FRAME_SKIP = 4
MAX_FRAMES = 108_000
_NEVER = 2**31 - 1
#: The rest of the protocol. The defaults of ale_py differ: 84 x 84 grey images, four of them
#: stacked, rewards clipped to their sign, FIRE pressed after every reset.
PROTOCOL: Mapping[str, Any] = {
    "grayscale": False,
    "stack_num": 1,
    "maxpool": True,
    "noop_max": 30,
    "use_fire_reset": False,
    "episodic_life": False,
    "life_loss_info": False,
    "reward_clipping": False,
    "autoreset_mode": AutoresetMode.NEXT_STEP,
}


class AtariGames(VectorEnv):
    """E copies of one Atari 2600 game, in threads of this process.

    Observation: RGB, the brighter of an action's last two frames at every pixel, resized by area.
    Actions: the game's minimal set, or with ``envs.full_actions`` all 18; one lasts
    ``envs.frame_skip`` frames, 4 by default. With the probability ``envs.sticky``, 0 by default, a
    frame repeats the action of the frame before.
    Reward: the change of the game's score, not clipped.
    Terminated: the game is over; losing a life does not count.
    Truncated: after 108 000 frames, or ``envs.time_limit`` actions.
    First frame: after 0 to 29 frames of no action. Last frame: after a limit, the game's own. After
    a game over, what ale_py (0.12) and Gymnasium's wrapper show: the last screens before the frame
    that ended the game.
    Seeds: environment i has its own, independent of E. It decides the number of idle frames and
    which actions are repeated; the game itself is deterministic.
    Source: ale_py's AtariVectorEnv, https://github.com/Farama-Foundation/Arcade-Learning-Environment.
    """

    def __init__(self, name: str, game: str, envs: EnvsConfig, *, seed: int, generation: int = 0):
        """Load the game into every environment; EnvError if there is no such game."""
        self._pool = _make_pool(name, game, envs, envs.count)
        super().__init__(_spec(name, envs, self._pool), envs.count)
        self._seeds: np.ndarray | None = np.array(env_seeds(seed, envs.count, generation))

    def _begin(self) -> np.ndarray:
        image, _ = self._pool.reset(seed=self._seeds)
        self._seeds = None
        return image[:, 0]

    def _send(self, actions: np.ndarray) -> None:
        self._pool.send(actions)

    def _receive(self) -> Outcome:
        image, reward, terminated, truncated, _ = self._pool.recv()
        cut = self.newest.is_last & ~self.newest.is_terminal
        if cut.any():
            # We cut these episodes; ale_py does not know and has played on for one action.
            begun, _ = self._pool.reset(options={"reset_mask": cut})
            image[cut] = begun
        over = ~self.newest.is_last & (self.length + 1 >= self.spec.time_limit)
        return Outcome(image[:, 0], reward, terminated, truncated | over)

    def close(self) -> None:
        """See :class:`VectorEnv`."""
        if self._pending is not None:
            self.step_wait()
        self._pool = None  # its threads end with it


make_env = AtariGames


def make_spec(name: str, game: str, envs: EnvsConfig) -> EnvSpec:
    """Spec of a game; see :class:`AtariGames`."""
    return _spec(name, envs, _make_pool(name, game, envs, 1))


def knows(game: str) -> bool:
    """Whether ale_py has a game of this name."""
    return rom_of(game) is not None


def rom_of(game: str) -> Path | None:
    """Path of a game's ROM, the name spelled as in ``MsPacman``; None when ale_py has none."""
    if not re.fullmatch(r"([A-Z][a-z0-9]*)+", game):
        return None
    rom = _rom_name(game)
    return ale_py.roms.get_rom_path(rom) if rom in ale_py.roms.get_all_rom_ids() else None


def _make_pool(name: str, game: str, envs: EnvsConfig, count: int) -> ale_py.AtariVectorEnv:
    """ale_py's own vector environment, with every part of the protocol set explicitly."""
    if rom_of(game) is None:
        raise EnvError(f"ale_py has no game {name}")
    pool = ale_py.AtariVectorEnv(
        _rom_name(game),
        count,
        img_height=envs.image_size,
        img_width=envs.image_size,
        frameskip=envs.frame_skip or FRAME_SKIP,
        repeat_action_probability=envs.sticky,
        full_action_space=envs.full_actions,
        # We count steps ourselves: ale_py (0.12) does not take the screen of the last frame.
        max_num_frames_per_episode=_NEVER,
        num_threads=min(count, os.cpu_count() or 1),
        **PROTOCOL,
    )
    if pool.metadata["autoreset_mode"] != AutoresetMode.NEXT_STEP:
        raise EnvError(f"{name} resets with {pool.metadata['autoreset_mode']}, not the next step")
    return pool


def _spec(name: str, envs: EnvsConfig, pool: ale_py.AtariVectorEnv) -> EnvSpec:
    limit = -(-MAX_FRAMES // (envs.frame_skip or FRAME_SKIP))
    names = (action.name.lower() for action in pool.ale.get_action_set())
    return square_spec(name, envs, pool.single_action_space.n, limit, names)


def _rom_name(game: str) -> str:
    """``MsPacman`` -> ``ms_pacman``."""
    return re.sub(r"(?<!^)(?=[A-Z])", "_", game).lower()
