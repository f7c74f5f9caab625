"""A run directory without a training run: random weights, random play, made-up rows."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import jax
import numpy as np

from emerald_jax.agent.state import build_learner
from emerald_jax.config import Config
from emerald_jax.envs.base import VectorStep
from emerald_jax.replay import Replay
from emerald_jax.run.checkpoint import Store
from emerald_jax.run.directory import REPLAY_DIR, write_config
from emerald_jax.run.replay_files import ReplayFiles
from tests.model_cases import make_state, small_config

#: Catch has three actions; episodes below last nine steps, as its own do.
NUM_ACTIONS, EPISODE = 3, 9
ENVS, ROWS = 2, 64


def catch_config() -> Config:
    """Small dimensions that differ, on the environment that is always installed."""
    return dataclasses.replace(small_config(), env="gymnax:Catch-bsuite")


def make_run(path: Path, *, checkpoints: tuple[int, ...] = (9,), rows: int = ROWS) -> Path:
    """Write a run: settings, checkpoints, recorded frames, metrics and episodes."""
    config = catch_config()
    write_config(path, config)
    params = make_state(build_learner(config, NUM_ACTIONS)).params
    with Store(path) as store:
        for step in checkpoints:
            scaled = jax.tree.map(lambda x, s=step: x * (1 + s / 100), params)
            store.save(step, {"state": {"params": scaled}}, {})
    record(path / REPLAY_DIR, rows)
    metrics = [
        {
            "step": 16 * i,
            "time": 1e9 + i,
            "loss/image": 9.0 / (i + 1),
            "behavior/imagined_reward": 0.1,
            "behavior/return_scale": 1.0 + i,
            "behavior/value": 0.5 * i,
            "behavior/return": 0.4 * i,
            "behavior/policy_entropy": 1.0,
            "model/pixel_error": None if i == 2 else 0.1,
            "speed/updates_per_s": 5.0,
            "speed/env_wait_share": 0.25,
        }
        for i in range(5)
    ]
    episodes = [
        {"step": 10 * i, "score": i % 3 - 1, "length": 9, "achievements": {"wave": i % 2, "fly": 0}}
        for i in range(20)
    ]
    for name, lines in (("metrics", metrics), ("episodes", episodes)):
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (path / f"{name}.jsonl").write_text(text)
    return path


def record(directory: Path, rows: int) -> Replay:
    """Random frames in episodes of :data:`EPISODE` steps; those of environment 1 begin later."""
    rng, replay = np.random.default_rng(0), Replay(4096, ENVS, (16, 16, 3))
    files = ReplayFiles(directory)
    for row in range(rows):
        at = (row + np.array([0, 4])) % (EPISODE + 1)
        first = at == 0 if row else np.ones(ENVS, bool)
        replay.append(
            VectorStep(
                image=rng.integers(0, 256, (ENVS, 16, 16, 3), dtype=np.uint8),
                action=np.where(first, -1, rng.integers(0, NUM_ACTIONS, ENVS)).astype(np.int32),
                reward=np.where(first, 0, rng.normal(size=ENVS)).astype(np.float32),
                is_first=first,
                is_last=at == EPISODE,
                is_terminal=at == EPISODE,
            )
        )
        if row in (rows // 4, rows // 2):
            files.save(replay)
    files.save(replay)
    files.close()
    return replay


def write_minari(name, space=None, actions=None, sample=None, lengths=(3, 2)):
    """Write a Minari data set of random play; its first episode is terminated, others are cut.

    ``sample()`` makes an action, by default one of ``actions``. Returns observations and actions of
    each episode.
    """
    import minari
    from gymnasium.spaces import Box, Discrete
    from minari.data_collector import EpisodeBuffer

    space = space or Box(0, 255, (20, 24, 3), np.uint8)
    actions = actions or Discrete(3, start=1)
    for place in (space, actions):
        place.seed(0)
    played, episodes = [], []
    for number, steps in enumerate(lengths):
        frames = [space.sample() for _ in range(steps + 1)]
        taken = [(sample or actions.sample)() for _ in range(steps)]
        over, never = [step == steps - 1 for step in range(steps)], [False] * steps
        played.append((frames, taken))
        episodes.append(
            EpisodeBuffer(
                observations=frames,
                actions=jax.tree.map(lambda *parts: list(parts), *taken),
                rewards=[1.0 + step for step in range(steps)],
                terminations=never if number else over,
                truncations=over if number else never,
                infos={},
            )
        )
    spaces = {"action_space": actions, "observation_space": space}
    minari.create_dataset_from_buffers(name, episodes, **spaces)
    return played
