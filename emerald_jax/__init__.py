"""EMERALD, efficient masked latent transformer world models (arXiv 2507.04075), in JAX and Flax.

The names below are the public face; each is imported from its room when it is first used, so that
``import emerald_jax`` costs nothing and needs no accelerator.
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

#: Public name -> the module it lives in. Names here are stable within a major version.
_HOMES = {
    # Trained agents and runs.
    "load": "emerald_jax.run.weights",
    "Agent": "emerald_jax.agent",
    "Run": "emerald_jax.run",
    "Recordings": "emerald_jax.run.recordings",
    "DreamEnv": "emerald_jax.look.play_session",
    "evaluate_run": "emerald_jax.training.evaluate",
    "open_loop": "emerald_jax.agent.dream",
    # Settings, environments and replay.
    "Config": "emerald_jax.config",
    "PRESETS": "emerald_jax.presets",
    "get_preset": "emerald_jax.presets",
    "ActionSpace": "emerald_jax.actions",
    "make_vector_env": "emerald_jax.envs.registry",
    "Replay": "emerald_jax.replay",
    "make_sampler": "emerald_jax.replay",
    # Training.
    "train": "emerald_jax.training.train",
    "train_seeds": "emerald_jax.training.train",
    "train_step": "emerald_jax.training.update",
    "build_learner": "emerald_jax.agent.state",
    "init_state": "emerald_jax.agent.state",
    "init_carry": "emerald_jax.agent.state",
    # Imagination and losses.
    "WorldModel": "emerald_jax.models.world_model",
    "imagine": "emerald_jax.imagination",
    "decode": "emerald_jax.imagination",
    "maskgit_decode": "emerald_jax.imagination",
    "world_model_losses": "emerald_jax.losses",
    "actor_losses": "emerald_jax.losses",
    "critic_losses": "emerald_jax.losses",
    "lambda_returns": "emerald_jax.ops.returns",
    # Pytrees.
    "Batch": "emerald_jax.types",
    "Carry": "emerald_jax.types",
    "State": "emerald_jax.types",
    "Starts": "emerald_jax.types",
    "Trajectory": "emerald_jax.types",
}

__all__ = ["__version__", *_HOMES]


def __getattr__(name: str) -> Any:
    """Import a public name from its home on first use (PEP 562)."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """Public names, also those not imported yet."""
    return sorted({*globals(), *_HOMES})
