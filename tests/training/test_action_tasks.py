"""Tasks with actions of every kind are solved: numbers, categories, and both at once."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from emerald_jax.config import Config
from emerald_jax.presets import get_preset
from emerald_jax.training.train import train
from tests.action_worlds import STEPS, Steer

pytestmark = pytest.mark.slow


def settings(logdir: Path, env: str, steps: int, **behavior: float) -> Config:
    """The quickstart with smaller networks, no MaskGIT, and short imagination."""
    c = get_preset("quickstart")
    model = dict(width=32, latent_width=16, head_layers=1, bins=41, prior="linear")
    model |= dict(blocks=1, context=8, dropout=0.0)
    behavior = dict(start_stride=2, gamma=0.9) | behavior
    return dataclasses.replace(
        c,
        env=f"tests.action_worlds:{env}",
        logdir=str(logdir),
        steps=steps,
        devices=1,
        train_ratio=64.0,
        envs=dataclasses.replace(c.envs, workers="inline"),
        model=dataclasses.replace(c.model, **model),
        replay=dataclasses.replace(c.replay, length=8, batch=16),
        optim=dataclasses.replace(c.optim, actor_lr=3e-3, critic_lr=3e-3),
        behavior=dataclasses.replace(c.behavior, **behavior),
        log=dataclasses.replace(c.log, pictures=0, quiet=True, eval_episodes=128),
    )


def best_steering() -> float:
    """The mean return of the best play."""
    env, found = Steer(), []
    for seed in range(500):
        env.reset(seed=seed)
        found.append(env.best())
    return float(np.mean(found))


# Random play returns 2.4 of 8 in `multi`, 2.6 of 8 in `mixed` and -0.3 of 7.5 in `Steer`.
@pytest.mark.parametrize(
    ("env", "steps", "behavior", "goal"),
    [
        ("Steer", 6000, dict(horizon=5, entropy=1e-3), 0.8 * best_steering()),
        ("multi", 9000, dict(horizon=3, entropy=3e-3), 0.9 * STEPS),
        ("mixed", 4500, dict(horizon=3, entropy=3e-3), 0.85 * STEPS),
    ],
)
def test_it_is_solved(
    env: str, steps: int, behavior: dict[str, float], goal: float, tmp_path: Path
) -> None:
    result = train(settings(tmp_path / "run", env, steps, **behavior))
    assert result.evaluation.score >= goal
