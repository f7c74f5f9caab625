"""Complete episodes of a vector environment, and random play.

Every environment plays the same number of episodes, decided before the first step. Stopping after
a number of steps, or after the first N episodes to end, would count short episodes too often.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator

import numpy as np

from emerald_jax.config import EnvsConfig
from emerald_jax.envs.base import EnvSpec, Episode, VectorEnv, VectorStep
from emerald_jax.envs.registry import make_vector_env

_LOG = logging.getLogger(__name__)

#: Newest records -> actions `[E]` int32.
Policy = Callable[[VectorStep], np.ndarray]
Watcher = Callable[[VectorStep], None]
#: Seeds that count up from here are far from those of training.
FAR = 1_000_003
#: Steps after which an evaluation cuts an episode; an Atari game has at most 27,000.
MAX_STEPS = 30_000
#: Steps of one episode after which an evaluation mentions that limit.
_PATIENCE = 2_000


def play_episodes(
    env: VectorEnv,
    episodes: int,
    policy: Policy,
    watch: Watcher | None = None,
    *,
    max_steps: int | None = None,
) -> Iterator[Episode]:
    """Play complete episodes; the environments' shares differ by at most one episode.

    An episode that a fault cut (see ``host.py``) is returned too, and another is played for it. An
    episode that does not end within ``max_steps`` is cut there and counts; its environment, which
    cannot begin another one alone, plays no more. This is logged.

    Args:
        env: a vector environment; it is reset first and left open.
        episodes: complete ones to play, over all environments.
        policy: chooses the actions.
        watch: called with every vector step, the reset included.
        max_steps: of an episode; None takes :data:`MAX_STEPS`, or twice a longer time limit.

    Yields:
        The episodes as they end, those that a fault cut among them.
    """
    limit = max_steps or max(MAX_STEPS, 2 * env.spec.time_limit)
    record, left = env.reset(), share_out(episodes, env.num_envs)
    score, length, patient = np.zeros(env.num_envs), np.zeros(env.num_envs, int), True
    if watch:
        watch(record)
    while left.any():
        record = env.step(policy(record))
        if watch:
            watch(record)
        score = np.where(record.is_first, 0, score + record.reward)
        length = np.where(record.is_first, 0, length + 1)
        for episode in record.episodes:
            if left[episode.env] > 0:
                left[episode.env] -= is_whole(episode)
                yield episode
        if patient and not env.spec.time_limit and length.max() >= min(_PATIENCE, limit):
            patient = False
            _LOG.warning("%s", endless_notice(env.spec, limit))
        for index in np.flatnonzero((length >= limit) & ~record.is_last & (left > 0)).tolist():
            _LOG.warning(
                "%s: environment %d: no end after %d steps: the episode is cut and counts",
                *(env.spec.name, index, limit),
            )
            left[index] = 0
            yield Episode(
                env=index,
                score=float(score[index]),
                length=int(length[index]),
                terminal=False,
                extra={"capped": limit},
            )


def endless_notice(spec: EnvSpec, max_steps: int | None = None) -> str:
    """A line about an environment without a time limit; empty for one that has a limit."""
    if spec.time_limit:
        return ""
    return (
        f"{spec.name} has no time limit: evaluation cuts an episode after "
        f"{max_steps or MAX_STEPS:,} steps (the setting envs.time_limit gives it one)"
    )


def share_out(episodes: int, count: int) -> np.ndarray:
    """Episodes of each of ``count`` environments, `[count]`; they differ by one at most."""
    return episodes // count + (np.arange(count) < episodes % count)


def is_whole(episode: Episode) -> bool:
    """Whether an episode reached its own end or limit, so that its score counts."""
    return not episode.fault


def random_policy(num_actions: int, count: int, seed: int) -> Policy:
    """Uniformly random actions `[count]` of ``num_actions``, whatever the records."""
    rng = np.random.default_rng(seed)
    return lambda record: rng.integers(num_actions, size=count, dtype=np.int32)


def play_randomly(
    name: str, envs: EnvsConfig, episodes: int, seed: int = 0, *, max_steps: int | None = None
) -> tuple[EnvSpec, tuple[Episode, ...]]:
    """The spec of an environment, and episodes of random play; see :func:`play_episodes`."""
    with contextlib.closing(make_vector_env(name, envs, seed=seed + FAR)) as env:
        policy = random_policy(env.spec.num_actions, env.num_envs, seed)
        return env.spec, tuple(play_episodes(env, episodes, policy, max_steps=max_steps))
