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
from emerald_jax.envs.base import EnvError, EnvSpec, EpisodeTracker, VectorStep
from emerald_jax.envs.host import env_seeds

FRAME_SKIP = 4
MAX_FRAMES = 108_000
_NEVER = 2**31 - 1
#: The rest of the protocol, and what ale_py would do instead: 84 x 84 grey images, four of them
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
    "repeat_action_probability": 0.0,
    "full_action_space": False,
    "autoreset_mode": AutoresetMode.NEXT_STEP,
}


class AtariGames:
    """E copies of one Atari 2600 game.

    Observation: RGB, the brighter of an action's last two frames at every pixel, resized by area.
    Actions: the game's minimal set; one lasts ``envs.frame_skip`` frames, 4 by default.
    Reward: the change of the game's score, not clipped. Terminated: the game is over; a lost life
    is not. Truncated: 108 000 frames are over, or ``envs.time_limit`` actions.
    Every episode begins with 0 to 29 frames of no action. No action is repeated by chance.
    Final frame: after a limit the game's own. After a game over it is what ale_py (0.12) shows,
    as Gymnasium's wrapper does: the last screens taken before the frame that ended the game.
    Seeds: environment i has its own, which does not depend on E; it decides the idle frames, the
    game itself is deterministic.
    """

    #: Nothing is supervised: games run in this process.
    faults = 0

    def __init__(self, name: str, game: str, envs: EnvsConfig, *, seed: int):
        """Load the game into every environment.

        Args:
            name: as the user wrote it, such as ``atari:Breakout``.
            game: what follows the colon.
            envs: count, image size, frame skip and time limit.
            seed: of all environments.

        Raises:
            EnvError: when there is no such game.
        """
        self._pool = _make_pool(name, game, envs, envs.count)
        self.spec = _spec(name, envs, self._pool)
        self.num_envs = envs.count
        self._seeds: np.ndarray | None = np.array(env_seeds(seed, envs.count))
        self._tracker = EpisodeTracker(envs.count, self.spec.num_actions)
        self._steps = np.zeros(envs.count, np.int64)
        self._cut = np.zeros(envs.count, bool)
        self._pending: np.ndarray | None = None

    def reset(self) -> VectorStep:
        """See :class:`VectorEnv`. The first call seeds, later ones go on to new episodes."""
        if self._pending is not None:
            self.step_wait()
        image, _ = self._pool.reset(seed=self._seeds)
        self._seeds = None
        self._steps[:], self._cut[:] = 0, False
        return self._tracker.first(image[:, 0])

    def step_async(self, actions: np.ndarray) -> None:
        """See :class:`VectorEnv`; the games are played in threads of their own."""
        if self._pending is not None:
            raise EnvError("step_async twice in a row: call step_wait in between")
        self._pending = self._tracker.check(actions)
        self._pool.send(self._pending)

    def step_wait(self) -> VectorStep:
        """See :class:`VectorEnv`."""
        if self._pending is None:
            raise EnvError("step_wait without step_async: nothing is under way")
        actions, self._pending = self._pending, None
        image, reward, terminated, truncated, _ = self._pool.recv()
        if self._cut.any():
            # Only we know that these episodes ended; ale_py has played on for one action.
            begun, _ = self._pool.reset(options={"reset_mask": self._cut})
            image[self._cut] = begun
        self._steps = np.where(self._tracker.newest.is_last, 0, self._steps + 1)
        truncated = truncated | (self._steps >= self.spec.time_limit)
        record = self._tracker.step(image[:, 0], actions, reward, terminated, truncated, {})
        self._cut = record.is_last & ~record.is_terminal
        return record

    def step(self, actions: np.ndarray) -> VectorStep:
        """See :class:`VectorEnv`."""
        self.step_async(actions)
        return self.step_wait()

    def close(self) -> None:
        """See :class:`VectorEnv`."""
        if self._pending is not None:
            self.step_wait()
        # Its threads end with it.
        self._pool = None

    def get_state(self) -> None:
        """None: games cannot be saved, their episodes are cut by a restart."""
        return None

    def set_state(self, state: Mapping[str, np.ndarray]) -> VectorStep:
        """Always refused, since :meth:`get_state` returns nothing.

        Raises:
            EnvError: always.
        """
        del state
        raise EnvError(f"{self.spec.name} cannot be restored: call reset() instead")


def rom_of(game: str) -> Path | None:
    """Where ale_py keeps a game, spelled as in ``MsPacman``; None when it does not."""
    if not re.fullmatch(r"([A-Z][a-z0-9]*)+", game):
        return None
    rom = _rom_name(game)
    return ale_py.roms.get_rom_path(rom) if rom in ale_py.roms.get_all_rom_ids() else None


def atari_spec(name: str, game: str, envs: EnvsConfig) -> EnvSpec:
    """Spec of a game.

    Args:
        name: as the user wrote it, such as ``atari:Breakout``.
        game: what follows the colon.
        envs: image size, frame skip and time limit.

    Raises:
        EnvError: when there is no such game.
    """
    return _spec(name, envs, _make_pool(name, game, envs, 1))


def _make_pool(name: str, game: str, envs: EnvsConfig, count: int) -> ale_py.AtariVectorEnv:
    """ale_py's own vector environment, told every part of the protocol."""
    if rom_of(game) is None:
        raise EnvError(f"ale_py has no game {name}")
    skip = envs.frame_skip or FRAME_SKIP
    pool = ale_py.AtariVectorEnv(
        _rom_name(game),
        count,
        img_height=envs.image_size,
        img_width=envs.image_size,
        frameskip=skip,
        # We count ourselves: ale_py (0.12) does not take the screen of the frame it stops at.
        max_num_frames_per_episode=_NEVER,
        num_threads=min(count, os.cpu_count() or 1),
        **PROTOCOL,
    )
    if pool.metadata["autoreset_mode"] != AutoresetMode.NEXT_STEP:
        raise EnvError(f"{name} resets with {pool.metadata['autoreset_mode']}, not the next step")
    return pool


def _spec(name: str, envs: EnvsConfig, pool: ale_py.AtariVectorEnv) -> EnvSpec:
    skip = envs.frame_skip or FRAME_SKIP
    return EnvSpec(
        name=name,
        image_shape=(envs.image_size, envs.image_size, 3),
        num_actions=int(pool.single_action_space.n),
        action_names=tuple(action.name.lower() for action in pool.ale.get_action_set()),
        time_limit=envs.time_limit or -(-MAX_FRAMES // skip),
    )


def _rom_name(game: str) -> str:
    """``MsPacman`` -> ``ms_pacman``."""
    return re.sub(r"(?<!^)(?=[A-Z])", "_", game).lower()
