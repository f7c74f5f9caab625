"""Whole episodes of a vector environment, and the players that need no network.

Every environment plays the same number of episodes, decided before the first step. Stopping after a
number of steps instead, or taking the first N episodes to end, would count short ones too often.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from emerald_jax.config import EnvsConfig
from emerald_jax.envs.base import EnvSpec, Episode, VectorEnv, VectorStep
from emerald_jax.envs.registry import make_vector_env

#: What the environments were last seen to do -> one action `[E]` int32 for each.
Player = Callable[[VectorStep], np.ndarray]
Watcher = Callable[[VectorStep], None]
#: Seeds that count up from here are far from those of training.
FAR = 1_000_003


def play_episodes(
    env: VectorEnv, episodes: int, choose: Player, watch: Watcher | None = None
) -> Iterator[Episode]:
    """Play whole episodes, in every environment as many as in the others, give or take one.

    An episode that a fault cut (see ``vector.py``) is handed out too, and another is played for it.

    Args:
        env: a vector environment; it is reset first and left open.
        episodes: whole ones to play, over all environments.
        choose: the player.
        watch: is shown every vector step, the first one included.

    Yields:
        The episodes as they end, those that were cut among them.
    """
    record, left = env.reset(), share_out(episodes, env.num_envs)
    if watch:
        watch(record)
    while left.any():
        record = env.step(choose(record))
        if watch:
            watch(record)
        for episode in record.episodes:
            if left[episode.env] > 0:
                left[episode.env] -= is_whole(episode)
                yield episode


def share_out(episodes: int, count: int) -> np.ndarray:
    """Episodes of each of ``count`` environments, `[count]`; they differ by one at most."""
    return episodes // count + (np.arange(count) < episodes % count)


def is_whole(episode: Episode) -> bool:
    """Whether an episode came to its own end or limit, so that its score counts."""
    return "fault" not in episode.extra


def random_player(spec: EnvSpec, count: int, seed: int) -> Player:
    """Uniformly random actions.

    Args:
        spec: of the environments.
        count: how many there are.
        seed: of the actions.
    """
    rng = np.random.default_rng(seed)
    return lambda record: rng.integers(spec.num_actions, size=count, dtype=np.int32)


def play_randomly(
    name: str, envs: EnvsConfig, episodes: int, seed: int = 0
) -> tuple[EnvSpec, tuple[Episode, ...]]:
    """Whole episodes of uniformly random play.

    Args:
        name: of the environment.
        envs: how it is made.
        episodes: whole ones to play.
        seed: of environments and actions.

    Returns:
        The environment's spec, and the episodes, those that a fault cut among them.

    Raises:
        EnvError: when the environment cannot be made, or fails too often.
    """
    env = make_vector_env(name, envs, seed=seed + FAR)
    try:
        player = random_player(env.spec, env.num_envs, seed)
        return env.spec, tuple(play_episodes(env, episodes, player))
    finally:
        env.close()
