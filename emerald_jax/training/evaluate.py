"""Play with fixed parameters: complete episodes for an evaluation, or steps for a data set.

``envs/playing.py`` decides how many episodes each environment plays, and why;
``run/evaluations.py`` stores the results. Nothing here changes a run's training state.
"""

from __future__ import annotations

from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax

from emerald_jax.agent import Mode
from emerald_jax.config import Config, ConfigError
from emerald_jax.envs.base import EnvSpec, Episode, check_same_spec
from emerald_jax.envs.playing import (
    FAR,
    Policy,
    Watcher,
    is_whole,
    play_episodes,
    play_randomly,
    random_policy,
)
from emerald_jax.envs.registry import make_vector_env, spec_of
from emerald_jax.replay import Replay
from emerald_jax.run.directory import read_config
from emerald_jax.run.evaluations import EvalReport
from emerald_jax.run.weights import load
from emerald_jax.types import key_of

#: Environments in parallel where training had only one.
SIDE_BY_SIDE = 16
#: Seeds of recorded play lie far from those that training and evaluation count up from.
_RECORDED = 2_000_003


def evaluate_run(
    run: str | Path,
    episodes: int,
    *,
    mode: Mode = "sample",
    seed: int = 0,
    checkpoint: int | None = None,
    watch: Watcher | None = None,
    max_steps: int | None = None,
) -> EvalReport:
    """Load a run and play. The run directory is only read.

    Args:
        run: run directory.
        episodes: complete episodes to play.
        mode: sample from the policy (the paper), or use its most probable action.
        seed: of environments and actions; training used other ones.
        checkpoint: its step; None uses the newest valid one.
        watch: called with every vector step, for example to film it.
        max_steps: steps after which an episode is cut; None uses ``envs/playing.py``'s limit.

    Raises:
        ConfigError: ``run`` is not a run directory.
        CheckpointError: it holds no valid checkpoint.
        EnvError: its environment cannot be made here.
        RunError: the policy is not finite.
    """
    config = read_config(run)
    if episodes < 1:
        raise ConfigError(f"episodes is {episodes}: it must be at least 1")
    agent = load(run, checkpoint)
    count = config.envs.count if config.envs.count > 1 else SIDE_BY_SIDE
    envs = replace(config.envs, count=min(count, episodes))
    with closing(make_vector_env(config.env, envs, seed=seed + FAR)) as env:
        check_same_spec(agent.spec, env.spec)  # which recorded data may contradict
        key = jax.random.fold_in(key_of(seed), FAR)
        player = agent.player(env.num_envs, key, mode=mode)
        played = tuple(play_episodes(env, episodes, player, watch, max_steps=max_steps))
    protocol = {"env_steps": agent.env_steps, "preset": config.preset}
    protocol |= {"train_seed": config.seed, "seed": seed, **play_protocol(config, agent.spec)}
    if config.data:
        protocol["data"] = config.data  # no benchmark's protocol allows other experience
    return report_of(config.env, agent.updates, mode, played, protocol)


def evaluate_random(
    config: Config, episodes: int, *, seed: int = 0, max_steps: int | None = None
) -> EvalReport:
    """The same for uniformly random play, which needs no run."""
    envs = replace(config.envs, count=min(config.envs.count, episodes))
    spec, played = play_randomly(config.env, envs, episodes, seed, max_steps=max_steps)
    return report_of(config.env, 0, "random", played, {"seed": seed, **play_protocol(config, spec)})


def play_protocol(config: Config, spec: EnvSpec) -> dict[str, Any]:
    """Settings of the environment that decide whether scores can be compared."""
    size, skip = config.envs.image_size, config.envs.frame_skip
    return {"time_limit": spec.time_limit, "image_size": size, "frame_skip": skip}


def report_of(
    env: str, updates: int, mode: str, played: tuple[Episode, ...], protocol: dict[str, Any]
) -> EvalReport:
    """The report of ``played`` episodes, without those cut short by a fault."""
    valid = tuple(filter(is_whole, played))
    return EvalReport(env, updates, mode, valid, len(played) - len(valid), protocol)


def record(config: Config, steps: int, seed: int, policy: Policy | None = None) -> Replay:
    """Play at least ``steps`` environment steps, all together, and store every record.

    ``seed`` is that of the environments, and of the actions where ``policy`` is None, random play.
    """
    count = config.envs.count
    with closing(make_vector_env(config.env, config.envs, seed=seed + _RECORDED)) as env:
        policy = policy or random_policy(env.spec.actions, count, seed)
        # An episode of one step is two records: no play has more than two records a step.
        size = (2 * (steps + 2 * count), count)
        replay = Replay(*size, env.spec.image_shape, env.spec.action_sizes)
        step, played = env.reset(), 0
        replay.append(step)
        while played < steps:
            step = env.step(policy(step))
            replay.append(step)
            played += step.env_steps
        return replay


def facts_of(config: Config, policy: str, seed: int, steps: int) -> dict[str, Any]:
    """:attr:`recordings.DataSet.facts` of a recording; arguments as :func:`record`."""
    spec = spec_of(config.env, config.envs)
    return {
        "env": config.env,
        "policy": policy,
        "seed": seed,
        "steps": steps,
        "num_actions": spec.num_actions,
        "action_sizes": list(spec.action_sizes),
        "action_names": list(spec.action_names),
        "image_shape": list(spec.image_shape),
    }
