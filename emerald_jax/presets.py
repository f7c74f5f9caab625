"""The named configurations of ``emerald-jax presets`` and ``emerald-jax train PRESET``.

The defaults in ``config.py`` are the paper's values; a preset lists only the differences. Small
presets have their own learning rates, entropy and KL floors: at their size the paper's values learn
more slowly, or not within minutes (own measurements).
"""

from __future__ import annotations

import dataclasses
from typing import Any

from emerald_jax.config import (
    BehaviorConfig,
    Config,
    ConfigError,
    EnvsConfig,
    LogConfig,
    LossConfig,
    ModelConfig,
    OptimConfig,
    ReplayConfig,
    nearest,
)


def _small_model(**changes: Any) -> ModelConfig:
    """The quickstart's networks: every part of the paper's model at a hundredth of its size."""
    sizes = dict(groups=4, classes=8, channels=8, width=64, latent_width=16, token_width=8, bins=63)
    sizes |= dict(blocks=2, heads=4, context=16, predictor_width=64, predictor_blocks=1)
    return ModelConfig(**(sizes | changes))


_QUICKSTART = Config(
    preset="quickstart",
    env="gymnax:Catch-bsuite",
    steps=16_000,
    train_ratio=8.0,
    envs=EnvsConfig(image_size=16),
    model=_small_model(center=True),
    # The image loss is a sum over pixels: 16 restores its weight at 64x64. The dynamics weight must
    # grow with it; otherwise only the pixels train h_t, and the dream loses the ball.
    loss=LossConfig(
        image=16.0, reward=4.0, cont=4.0, dyn=8.0, mask=8.0, free_nats=0.1, mask_free_nats=0.1
    ),
    behavior=BehaviorConfig(horizon=9, entropy=3e-2),
    optim=OptimConfig(model_lr=3e-3, actor_lr=1e-3, critic_lr=1e-3),
    replay=ReplayConfig(capacity=100_000, batch=8, length=16, prefill=512),
    log=LogConfig(every=25, pictures=500, eval_episodes=64),
)

# One pixel per cell and one latent position per 2 x 2 cells: on a 16 pixel canvas the border around
# the 10 x 10 board would take more than half of the compute. The ball is one pixel: with fewer
# channels or a lighter image loss, dreams contain it late. No dropout, since the game is
# deterministic, and few free nats: 0.1 at each of 25 positions is 2.5 nats per frame, more than the
# ball's information. Environment steps are cheap compared with updates: train_ratio 2 reads each
# step twice on average. After a return of 6 a ball needs up to nine steps one way within ten, which
# ``detours`` try. With a replay of a million and constant rates, not examined apart, an agent rose
# to 12 and fell again. Detours and ``real_weight`` have no complete run yet
# (docs/notes/breakout.md).
_MINATAR = dataclasses.replace(
    _QUICKSTART,
    preset="minatar",
    env="gymnax:Breakout-MinAtar",
    steps=1_000_000,
    train_ratio=2.0,
    envs=EnvsConfig(image_size=10),
    model=_small_model(grid=5, channels=32, dropout=0.0, center=True),
    loss=dataclasses.replace(_QUICKSTART.loss, image=32.0, free_nats=0.01, mask_free_nats=0.01),
    behavior=BehaviorConfig(horizon=15, entropy=1e-2, real_weight=1.0, detours=0.01),
    optim=dataclasses.replace(_QUICKSTART.optim, model_lr=2e-3, anneal=True),
    replay=dataclasses.replace(_QUICKSTART.replay, best_of=16),
    log=dataclasses.replace(_QUICKSTART.log, pictures=5000),
)

_CRAFTER_SMALL = Config(
    preset="crafter-small",
    steps=1_000_000,
    model=_small_model(
        **dict(groups=16, classes=16, width=256, latent_width=64, context=64),
        **dict(predictor_width=128, token_width=16, bins=255),
    ),
    optim=OptimConfig(model_lr=3e-4, actor_lr=1e-4, critic_lr=1e-4),
    train_ratio=8.0,
    replay=ReplayConfig(capacity=100_000, batch=4, length=32, prefill=512),
    log=LogConfig(every=10, pictures=50),
)

_ATARI_100K = Config(
    preset="atari100k",
    env="atari:Pong",
    steps=100_000,
    train_ratio=1024.0,
    # The rest of the protocol is the default of `atari:`.
    envs=EnvsConfig(count=1, frame_skip=4),
    # First frames are records but not steps: capacity for 20 000 episodes.
    replay=ReplayConfig(capacity=120_000),
)

# The protocol of Machado et al. (2018), as DreamerV3 plays it.
_ATARI_200M = Config(
    preset="atari200m",
    env="atari:Pong",
    steps=50_000_000,
    train_ratio=32.0,
    envs=EnvsConfig(frame_skip=4, sticky=0.25, full_actions=True),
    replay=ReplayConfig(capacity=5_000_000),
)

_PROCGEN = Config(preset="procgen", env="procgen:coinrun", steps=50_000_000)

# As DreamerV3 plays it: 1 M frames, action repeat 2, 256 replayed steps per step.
_DMC_VISION = Config(
    preset="dmc-vision",
    env="dmc:walker-walk",
    steps=500_000,
    train_ratio=256.0,
    envs=EnvsConfig(frame_skip=2),
)

_TINY = Config(
    preset="tiny",
    env="gymnax:Catch-bsuite",
    steps=600,
    train_ratio=8.0,
    envs=EnvsConfig(count=4, image_size=16),
    model=_small_model(
        groups=3, channels=4, width=16, latent_width=8, heads=2, context=6, predictor_width=16
    ),
    behavior=BehaviorConfig(horizon=3, start_stride=4),
    replay=ReplayConfig(capacity=2000, batch=4, length=8, prefill=64),
    log=LogConfig(every=10, pictures=50),
)

PRESETS: dict[str, tuple[str, Config]] = {
    "quickstart": ("learn Catch from 16x16 images on a CPU, in minutes", _QUICKSTART),
    "minatar": (
        "learn Breakout-MinAtar on one core of a CPU in an hour; --env selects another game",
        _MINATAR,
    ),
    "crafter": ("the paper's Crafter run: 30 M parameters, 10 M steps, one GPU or more", Config()),
    "atari100k": (
        "the paper's Atari 100k run; --env atari:GAME selects any of the 26 games",
        _ATARI_100K,
    ),
    "atari200m": (
        "57 Atari games, sticky actions, 200 M frames; --env atari:GAME; replay of 57 GiB",
        _ATARI_200M,
    ),
    "procgen": (
        "Procgen, hard, all levels, 50 M steps; --env procgen:GAME selects any of the 16 games",
        _PROCGEN,
    ),
    "dmc-vision": (
        "DM Control from pixels, 1 M frames; --env dmc:TASK selects any of the 20 tasks",
        _DMC_VISION,
    ),
    "crafter-small": ("the same run at a size for CPUs", _CRAFTER_SMALL),
    "tiny": ("the smallest shapes that use every part of the code; for tests", _TINY),
}


def get_preset(name: str) -> Config:
    """The named configuration; ConfigError for an unknown name, with the nearest one."""
    if name not in PRESETS:
        hint = nearest(name, PRESETS)
        raise ConfigError(f"unknown preset {name!r}{hint} (emerald-jax presets lists them)")
    return PRESETS[name][1]
