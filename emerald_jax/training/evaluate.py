"""The evaluations of a run: RUN/evals/STEP-SEED/, one directory each.

``result.json`` holds what came out and how it was played, ``stats.jsonl`` the episodes in the
format of Crafter's own recorder (see ``run/log.py``), ``episode.mp4`` the first one, if it
was filmed. STEP is the checkpoint's number, SEED that of the play. The same evaluation again
replaces its directory; another one of that checkpoint and seed gets a number of its own.

Evaluation: play whole episodes with frozen weights and say how they went.

``envs/playing.py`` says how many episodes each environment plays, and why. Nothing here touches a
run's training state; ``evaluations.py`` writes what came of it.

The last evaluation of a run: whole episodes with the final weights, before it says goodbye.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np

from emerald_jax.agent.acting import Observation, compile_acting, put_step
from emerald_jax.agent.state import Learner, build_learner, init_carry
from emerald_jax.config import Config, ConfigError
from emerald_jax.envs.base import EnvSpec, Episode, VectorEnv, VectorStep
from emerald_jax.envs.playing import FAR, Watcher, is_whole, play_episodes, play_randomly
from emerald_jax.envs.registry import make_vector_env, spec_of
from emerald_jax.run.directory import read_config
from emerald_jax.run.evaluations import EvalReport
from emerald_jax.run.machine import prepare_jax
from emerald_jax.run.weights import read_weights
from emerald_jax.scores import crafter_score, success_rates
from emerald_jax.training.faults import Evaluation, RunError
from emerald_jax.types import Key, Params

Mode = Literal["sample", "mode"]
#: Environments side by side where training had but one.
SIDE_BY_SIDE = 16


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


def last_evaluation(
    learner: Learner,
    params: dict[str, Params],
    env: VectorEnv,
    key: Key,
    *,
    act: Callable,
    check: Callable[[], None],
) -> tuple[Evaluation | None, dict[str, float]]:
    """Play ``log.eval_episodes`` in the run's own environments, which must be saved before.

    They begin new episodes, and nothing is compiled: the run's own acting program plays.

    Args:
        learner: networks and settings.
        params: ``world_model`` and ``actor``.
        env: the run's environments, no step under way.
        key: consumed.
        act: the run's acting program.
        check: called at every vector step; what it raises ends the evaluation.

    Returns:
        What came of it, and the same as a row of numbers; None if every episode was cut by a fault.

    Raises:
        RunError: an action was not finite.
    """

    def watch(record: VectorStep) -> None:
        del record
        check()

    wanted = learner.config.log.eval_episodes
    played = play(learner, params, env, wanted, key, watch=watch, act=act)
    whole = [episode for episode in played if is_whole(episode)]
    if not whole:
        return None, {}
    scores = [episode.score for episode in whole]
    error = statistics.stdev(scores) / len(scores) ** 0.5 if len(scores) > 1 else 0.0
    length = statistics.fmean(episode.length for episode in whole)
    result = Evaluation(statistics.fmean(scores), error, length, len(whole))
    row = {
        "eval/return": result.score,
        "eval/return_error": error,
        "eval/length": length,
        "eval/episodes": float(len(whole)),
    }
    unlocked = [episode.extra.get("achievements") for episode in whole]
    if all(unlocked):
        row["eval/crafter_score"] = crafter_score(success_rates(unlocked, sorted(unlocked[0])))
    return result, row
