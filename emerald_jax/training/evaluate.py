"""Evaluation: play whole episodes with frozen weights and say how they went.

``envs/playing.py`` says how many episodes each environment plays, and why. Nothing here touches a
run's training state; ``evaluations.py`` writes what came of it.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np

from emerald_jax.config import Config, ConfigError
from emerald_jax.envs.base import EnvSpec, Episode, VectorEnv, VectorStep
from emerald_jax.envs.playing import FAR, Watcher, is_whole, play_episodes, play_randomly
from emerald_jax.envs.registry import make_vector_env, spec_of
from emerald_jax.ops.scores import crafter_score, human_normalised, success_rates
from emerald_jax.published import atari_game
from emerald_jax.saving.rundir import read_config
from emerald_jax.training.acting import Observation
from emerald_jax.training.faults import RunError
from emerald_jax.training.program import compile_acting, prepare_jax, put_step
from emerald_jax.training.state import Learner, build_learner, init_carry
from emerald_jax.training.weights import read_weights
from emerald_jax.types import Key, Params

Mode = Literal["sample", "mode"]
#: Environments side by side where training had but one.
SIDE_BY_SIDE = 16


@dataclass(frozen=True)
class EvalReport:
    """Episodes played with the weights of one checkpoint; ``str()`` is the text for people.

    Attributes:
        env: name of the environment.
        updates: gradient updates behind the weights; the number of the checkpoint.
        mode: how actions were chosen: ``sample``, ``mode`` or ``random``.
        episodes: all episodes that count.
        left_out: episodes that a fault cut short and that do not count.
        facts: how the play was set up, as JSON values: ``env_steps`` behind the weights, ``seed``
            of the play, ``train_seed``, ``time_limit``, ``image_size``, ``frame_skip``, ``preset``.
    """

    env: str
    updates: int
    mode: str
    episodes: tuple[Episode, ...]
    left_out: int = 0
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def score(self) -> float:
        """Mean return."""
        return statistics.fmean(e.score for e in self.episodes)

    @property
    def error(self) -> float:
        """Standard error of the mean return; 0 of a single episode."""
        scores = [e.score for e in self.episodes]
        return statistics.stdev(scores) / len(scores) ** 0.5 if len(scores) > 1 else 0.0

    @property
    def rates(self) -> dict[str, float]:
        """Crafter's success rates in per cent, by achievement; empty where there are none."""
        unlocked = [e.extra.get("achievements") for e in self.episodes]
        if not all(unlocked):
            return {}
        return success_rates(unlocked, sorted(unlocked[0]))

    @property
    def human_normalised(self) -> float | None:
        """The return between random (0) and human (1) in one of the 26 games of Atari 100k."""
        game = atari_game(self.env)
        return human_normalised(self.score, game["random"], game["human"]) if game else None

    def __str__(self) -> str:
        scores = [e.score for e in self.episodes]
        lengths = statistics.fmean(e.length for e in self.episodes)
        how = f"actions by {self.mode}" if self.mode != "random" else "random actions"
        after = f" after {self.updates:,} updates" if self.mode != "random" else ""
        lines = [
            f"{self.env}{after}, {len(scores)} episodes, {how}",
            f"return {self.score:.3f} ± {self.error:.3f} (standard error), "
            f"from {min(scores):.2f} to {max(scores):.2f}, {lengths:.0f} steps long on average",
        ]
        if self.left_out:
            lines.append(f"{self.left_out} more were cut short by a fault and do not count")
        if (normalised := self.human_normalised) is not None:
            lines.append(f"human-normalised score {normalised:.3f} (random 0, human 1)")
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
    watch: Watcher | None = None,
) -> EvalReport:
    """Reload a run and play. The run directory is only read.

    Args:
        run: run directory.
        episodes: whole episodes to play.
        mode: sample from the policy (the paper), or take its likeliest action.
        seed: of environments and actions; training used other ones.
        checkpoint: its step; None takes the newest sound one.
        watch: is shown every vector step, to film it for instance.

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
    count = config.envs.count if config.envs.count > 1 else SIDE_BY_SIDE
    config = replace(config, envs=replace(config.envs, count=min(count, episodes)))
    spec = spec_of(config.env, config.envs)
    learner, params, updates, facts = _load(run, config, spec, checkpoint)
    env = make_vector_env(config.env, config.envs, seed=seed + FAR)
    try:
        key = jax.random.fold_in(jax.random.key(seed), FAR)
        played = tuple(play(learner, params, env, episodes, key, mode=mode, watch=watch))
    finally:
        env.close()
    facts = {
        "env_steps": facts.get("env_steps"),
        "preset": config.preset,
        "train_seed": config.seed,
        "seed": seed,
        **play_facts(config, spec),
    }
    return report_of(config.env, updates, mode, played, facts)


def evaluate_random(config: Config, episodes: int, *, seed: int = 0) -> EvalReport:
    """The same for uniformly random play, which needs no run.

    Args:
        config: environment and its settings.
        episodes: whole episodes to play.
        seed: of environments and actions.

    Raises:
        EnvError: the environment cannot be made here, or fails too often.
    """
    envs = replace(config.envs, count=min(config.envs.count, episodes))
    spec, played = play_randomly(config.env, envs, episodes, seed)
    facts = {"seed": seed, **play_facts(config, spec)}
    return report_of(config.env, 0, "random", played, facts)


def play_facts(config: Config, spec: EnvSpec) -> dict[str, Any]:
    """What of the environment's settings decides whether scores can be compared."""
    return {
        "time_limit": spec.time_limit,
        "image_size": config.envs.image_size,
        "frame_skip": config.envs.frame_skip,
    }


def report_of(
    env: str, updates: int, mode: str, played: tuple[Episode, ...], facts: dict[str, Any]
) -> EvalReport:
    """The report of ``played`` episodes, less those that a fault cut."""
    whole = tuple(filter(is_whole, played))
    return EvalReport(env, updates, mode, whole, len(played) - len(whole), facts)


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
    return _load(run, config, spec, checkpoint)[:3]


def _load(
    run: str | Path, config: Config, spec: EnvSpec, checkpoint: int | None
) -> tuple[Learner, dict[str, Params], int, dict[str, Any]]:
    """:func:`load_weights`, and the facts the run saved with them."""
    learner = build_learner(config, spec.num_actions)
    return learner, *read_weights(run, learner, checkpoint)


def play(
    learner: Learner,
    params: dict[str, Params],
    env: VectorEnv,
    episodes: int,
    key: Key,
    *,
    mode: Mode = "sample",
    watch: Watcher | None = None,
    act: Callable | None = None,
) -> Iterator[Episode]:
    """Play whole episodes with a trained agent; see :func:`play_episodes`.

    Args:
        learner: networks and settings.
        params: ``world_model`` and ``actor``.
        env: a vector environment; it is reset first and left open.
        episodes: whole episodes, over all environments.
        key: consumed.
        mode: see :func:`evaluate_run`.
        watch: is shown every vector step.
        act: :func:`compile_acting`'s for these environments and ``mode``, if there is one already.

    Yields:
        Every episode as it ends.

    Raises:
        RunError: an action was not finite.
    """
    act = act or compile_acting(learner, mode=mode == "mode")
    carry: Any = init_carry(learner, env.num_envs)
    step = 0

    def choose(record: VectorStep) -> np.ndarray:
        nonlocal carry, step
        seen = Observation(record.image, record.action, record.is_first)
        acted = act(params, carry, jax.device_put(seen), key, put_step(step))
        carry, step = acted.carry, step + 1
        action, finite = jax.device_get((acted.action, acted.finite))
        if not finite:
            raise RunError("the policy is not finite: choose an earlier checkpoint")
        return action

    yield from play_episodes(env, episodes, choose, watch)
