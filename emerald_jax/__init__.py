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
    "decode": "emerald_jax.imagination",
    "get_preset": "emerald_jax.presets",
    "imagine": "emerald_jax.imagination",
    "learning_curve": "emerald_jax.viz.curves",
    "make_vector_env": "emerald_jax.envs.registry",
    "read_config": "emerald_jax.training.rundir",
    "report_strip": "emerald_jax.viz.strips",
    "train": "emerald_jax.training.loop",
    "train_step": "emerald_jax.training.update",
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
