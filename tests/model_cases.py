"""Small models, synthetic batches and shared compiled functions for the tests of the mathematics.

No two dimensions agree (P 16, G 3, K 5, A 6, D 24, four heads of 6, C 7, L 12), so that a mistaken
axis or a factor of the wrong size cannot hide.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import cache, partial
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from emerald_jax.config import Config
from emerald_jax.models.world_model import WorldModel, empty_carry
from emerald_jax.presets import get_preset
from emerald_jax.training import parallel
from emerald_jax.training.state import Learner, TrainState, build_learner, init_carry, init_state
from emerald_jax.training.update import train_step
from emerald_jax.types import Batch, Carry, Memory

NUM_ACTIONS = 6
BATCH, LENGTH = 8, 12


def small_config(**changes: dict[str, Any]) -> Config:
    """The `tiny` preset with dimensions that all differ; ``changes`` by group of settings."""
    config = get_preset("tiny")
    sizes: dict[str, dict[str, Any]] = {
        "model": dict(
            groups=3,
            classes=5,
            channels=4,
            width=24,
            latent_width=10,
            blocks=2,
            heads=4,
            context=7,
            predictor_width=20,
            predictor_blocks=1,
            token_width=9,
            bins=41,
        ),
        "behavior": dict(horizon=3, start_stride=4, decode_steps=3),
        "replay": dict(batch=BATCH, length=LENGTH),
    }
    groups = {
        name: dataclasses.replace(
            getattr(config, name), **{**sizes.get(name, {}), **changes.get(name, {})}
        )
        for name in {*sizes, *changes}
    }
    return dataclasses.replace(config, **groups)
