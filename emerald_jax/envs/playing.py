"""Complete episodes of a vector environment, and random play.

Every environment plays the same number of episodes, decided before the first step. Stopping after
a number of steps, or after the first N episodes to end, would count short episodes too often.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from emerald_jax.config import EnvsConfig
from emerald_jax.envs.base import EnvSpec, Episode, VectorEnv, VectorStep
from emerald_jax.envs.registry import make_vector_env

#: Newest records -> actions `[E]` int32.
Policy = Callable[[VectorStep], np.ndarray]
Watcher = Callable[[VectorStep], None]
#: Seeds that count up from here are far from those of training.
FAR = 1_000_003


def play_episodes(
    env: VectorEnv, episodes: int, policy: Policy, watch: Watcher | None = None
) -> Iterator[Episode]:
    """Play complete episodes; the environments' shares differ by at most one episode.

    An episode that a fault cut (see ``host.py``) is returned too, and another is played for it.

    Args:
        env: a vector environment; it is reset first and left open.
        episodes: complete ones to play, over all environments.
        policy: chooses the actions.
        watch: called with every vector step, the reset included.

    Yields:
        The episodes as they end, those that a fault cut among them.
    """
    record, left = env.reset(), share_out(episodes, env.num_envs)
    if watch:
        watch(record)
    while left.any():
        record = env.step(policy(record))
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
    """Whether an episode reached its own end or limit, so that its score counts."""
    return "fault" not in episode.extra


def random_policy(num_actions: int, count: int, seed: int) -> Policy:
    """Uniformly random actions `[count]` of ``num_actions``, whatever the records."""
    rng = np.random.default_rng(seed)
    return lambda record: rng.integers(num_actions, size=count, dtype=np.int32)


def play_randomly(
    name: str, envs: EnvsConfig, episodes: int, seed: int = 0
) -> tuple[EnvSpec, tuple[Episode, ...]]:
    """Complete episodes of uniformly random play.

    Args:
        name: of the environment.
        envs: its settings.
        episodes: complete ones to play.
        seed: of environments and actions.

    Returns:
        The environment's spec, and the episodes, those that a fault cut among them.

    Raises:
        EnvError: when the environment cannot be made, or fails too often.
    """
    env = make_vector_env(name, envs, seed=seed + FAR)
    try:
        policy = random_policy(env.spec.num_actions, env.num_envs, seed)
        return env.spec, tuple(play_episodes(env, episodes, policy))
    finally:
        env.close()
