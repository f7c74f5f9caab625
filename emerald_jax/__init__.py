"""EMERALD, efficient masked latent transformer world models (arXiv 2507.04075), in JAX and Flax.

The names below are the public face; each is imported from its room when it is first used, so that
``import emerald_jax`` costs nothing and needs no accelerator.
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

#: Public name -> the module it lives in.
_HOMES = {
    "Batch": "emerald_jax.types",
    "Carry": "emerald_jax.types",
    "Config": "emerald_jax.config",
    "ConfigError": "emerald_jax.config",
    "EnvError": "emerald_jax.envs.base",
    "EnvSpec": "emerald_jax.envs.base",
    "PRESETS": "emerald_jax.presets",
    "Replay": "emerald_jax.replay",
    "ReplayError": "emerald_jax.replay",
    "RunLogger": "emerald_jax.training.logger",
    "State": "emerald_jax.types",
    "Trajectory": "emerald_jax.types",
    "WorldModel": "emerald_jax.models.world_model",
    "act": "emerald_jax.training.acting",
    "build_agent": "emerald_jax.models.agent",
    "build_learner": "emerald_jax.training.state",
    "build_world_model": "emerald_jax.models.world_model",
    "decode": "emerald_jax.imagination",
    "evaluate_run": "emerald_jax.training.evaluate",
    "get_preset": "emerald_jax.presets",
    "imagine": "emerald_jax.imagination",
    "init_agent": "emerald_jax.models.agent",
    "init_carry": "emerald_jax.training.state",
    "init_state": "emerald_jax.training.state",
    "init_world_model": "emerald_jax.models.world_model",
    "learning_curve": "emerald_jax.viz.curves",
    "load_weights": "emerald_jax.training.evaluate",
    "make_sampler": "emerald_jax.replay",
    "make_vector_env": "emerald_jax.envs.registry",
    "read_config": "emerald_jax.training.rundir",
    "open_loop": "emerald_jax.training.report",
    "report_strip": "emerald_jax.viz.strips",
    "rollout": "emerald_jax.training.update",
    "starts_from": "emerald_jax.imagination",
    "train": "emerald_jax.training.loop",
    "train_step": "emerald_jax.training.update",
    "world_model_step": "emerald_jax.imagination",
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
