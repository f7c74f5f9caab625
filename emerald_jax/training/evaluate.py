"""Evaluation: play whole episodes with frozen weights and say how they went.

Every environment plays the same number of episodes, decided before the first step. Stopping after a
number of steps instead, or taking the first N episodes to end, would count short ones too often.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np

from emerald_jax.config import Config, ConfigError
from emerald_jax.envs.base import EnvSpec, Episode, VectorEnv
from emerald_jax.envs.registry import make_vector_env, spec_of
from emerald_jax.ops.scores import crafter_score, success_rates
from emerald_jax.training.acting import Observation
from emerald_jax.training.checkpoint import Checkpointer
from emerald_jax.training.faults import RunError
from emerald_jax.training.program import compile_acting, prepare_jax, put_index
from emerald_jax.training.rundir import read_config
from emerald_jax.training.snapshots import CHECKPOINTS_DIR
from emerald_jax.training.state import Learner, build_learner, init_carry, init_state
from emerald_jax.types import Key, Params

Mode = Literal["sample", "mode"]


@dataclass(frozen=True)
class EvalReport:
    """Episodes played with the weights of one checkpoint; ``str()`` is the text for people.

    Attributes:
        env: name of the environment.
        updates: gradient updates behind the weights.
        mode: how actions were chosen.
        episodes: all episodes that count.
    """

    env: str
    updates: int
    mode: str
    episodes: tuple[Episode, ...]

    @property
    def score(self) -> float:
        """Mean return."""
        return statistics.fmean(e.score for e in self.episodes)

    @property
    def rates(self) -> dict[str, float]:
        """Crafter's success rates in per cent, by achievement; empty where there are none."""
        unlocked = [e.extra.get("achievements") for e in self.episodes]
        if not all(unlocked):
            return {}
        return success_rates(unlocked, sorted(unlocked[0]))

    def __str__(self) -> str:
        scores = [e.score for e in self.episodes]
        error = statistics.stdev(scores) / len(scores) ** 0.5 if len(scores) > 1 else 0.0
        lengths = statistics.fmean(e.length for e in self.episodes)
        lines = [
            f"{self.env} after {self.updates:,} updates, {len(scores)} episodes, "
            f"actions by {self.mode}",
            f"return {self.score:.3f} ± {error:.3f} (standard error), "
            f"from {min(scores):.2f} to {max(scores):.2f}, {lengths:.0f} steps long on average",
        ]
        if rates := self.rates:
            lines += [f"  {name:<22}{rate:6.1f} %" for name, rate in rates.items()]
            lines.append(f"crafter score {crafter_score(rates):.2f} % over these episodes")
        return "\n".join(lines)


def evaluate_run(
    run: str | Path,
    episodes: int,
    *,
    mode: Mode = "sample",
    seed: int = 0,
    checkpoint: int | None = None,
) -> EvalReport:
    """Reload a run and play. The run directory is only read.

    Args:
        run: run directory.
        episodes: episodes to play; rounded up to a multiple of the environments side by side.
        mode: sample from the policy (the paper), or take its likeliest action.
        seed: of environments and actions; training used other ones.
        checkpoint: its step; None takes the newest sound one.

    Raises:
        ConfigError: ``run`` is no run directory.
        CheckpointError: it holds no sound checkpoint.
        EnvError: its environment cannot be made here.
        RunError: the weights choose actions that are not finite.
    """
    prepare_jax()
    config = read_config(run)
    if episodes < 1:
        raise ConfigError(f"episodes is {episodes}: it must be at least 1")
    count = min(config.envs.count, episodes)
    config = replace(config, envs=replace(config.envs, count=count))
    spec = spec_of(config.env, config.envs)
    learner, params, updates = load_weights(run, config, spec, checkpoint)
    # Far from the seeds that training counts up from.
    env = make_vector_env(config.env, config.envs, seed=seed + 1_000_003)
    try:
        key = jax.random.fold_in(jax.random.key(seed), 1_000_003)
        quota = -(-episodes // count)
        played = play(learner, params, env, quota, key, mode=mode)
        return EvalReport(config.env, updates, mode, tuple(played))
    finally:
        env.close()


def load_weights(
    run: str | Path, config: Config, spec: EnvSpec, checkpoint: int | None = None
) -> tuple[Learner, dict[str, Params], int]:
    """Networks and trained parameters of a run.

    Args:
        run: run directory.
        config: its configuration.
        spec: its environment's.
        checkpoint: its step; None takes the newest sound one.

    Returns:
        The learner, the parameters, and the number of updates behind them.

    Raises:
        CheckpointError: there is no sound checkpoint, or it does not fit.
    """
    learner = build_learner(config, spec.num_actions)
    shapes = jax.eval_shape(partial(init_state, learner), jax.random.key(0)).params
    with Checkpointer(Path(run) / CHECKPOINTS_DIR, read_only=True) as files:
        params, _, step = files.restore(shapes, checkpoint, prefix="state/params")
    return learner, params, step


def play(
    learner: Learner,
    params: dict[str, Params],
    env: VectorEnv,
    quota: int,
    key: Key,
    *,
    mode: Mode = "sample",
) -> Iterator[Episode]:
    """Play ``quota`` episodes in every environment.

    Args:
        learner: networks and settings.
        params: ``world_model`` and ``actor``.
        env: a vector environment; it is reset first and left open.
        quota: episodes per environment.
        key: consumed.
        mode: see :func:`evaluate_run`.

    Yields:
        Every episode that counts, as it ends.

    Raises:
        RunError: an action was not finite.
    """
    act = compile_acting(learner, mode=mode == "mode")
    carry: Any = init_carry(learner, env.num_envs)
    record, left, step = env.reset(), np.full(env.num_envs, quota), 0
    while left.any():
        seen = Observation(record.image, record.action, record.is_first)
        acted = act(params, carry, jax.device_put(seen), key, put_index(step))
        carry, step = acted.carry, step + 1
        action, finite = jax.device_get((acted.action, acted.finite))
        if not finite:
            raise RunError("the policy is not finite: choose an earlier checkpoint")
        record = env.step(action)
        for episode in record.episodes:
            if left[episode.env] > 0:
                left[episode.env] -= 1
                yield episode
