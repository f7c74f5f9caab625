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
    # Import a trained agent.
    "load": "emerald_jax.run.weights",
    "Agent": "emerald_jax.agent.agent",
    "AgentState": "emerald_jax.agent.agent",
    "Dream": "emerald_jax.agent.agent",
    "load_weights": "emerald_jax.training.evaluate",
    "read_config": "emerald_jax.run.directory",
    "evaluate_run": "emerald_jax.training.evaluate",
    # Look.
    "DreamEnv": "emerald_jax.look.play_session",
    "Film": "emerald_jax.look.film",
    "FilmPlan": "emerald_jax.look.film",
    "Run": "emerald_jax.run.run",
    "Recordings": "emerald_jax.run.recordings",
    "attention_weights": "emerald_jax.look.inside",
    "decoding_trace": "emerald_jax.look.inside",
    "film_run": "emerald_jax.look.film",
    "inspect_run": "emerald_jax.look.inspect",
    "learning_curve": "emerald_jax.look.figures",
    "open_loop": "emerald_jax.agent.dream",
    "report_strip": "emerald_jax.run.pictures",
    "save_film": "emerald_jax.look.film",
    # Settings.
    "Config": "emerald_jax.config",
    "ConfigError": "emerald_jax.config",
    "PRESETS": "emerald_jax.presets",
    "get_preset": "emerald_jax.presets",
    # Environments and replay.
    "EnvError": "emerald_jax.envs.base",
    "EnvSpec": "emerald_jax.envs.base",
    "Replay": "emerald_jax.replay",
    "ReplayError": "emerald_jax.replay",
    "make_sampler": "emerald_jax.replay",
    "make_vector_env": "emerald_jax.envs.registry",
    # Networks.
    "WorldModel": "emerald_jax.models.world_model",
    "build_actor_critic": "emerald_jax.models.heads",
    "build_world_model": "emerald_jax.models.world_model",
    "empty_carry": "emerald_jax.models.world_model",
    "init_actor_critic": "emerald_jax.models.heads",
    "init_world_model": "emerald_jax.models.world_model",
    # Imagination.
    "decode": "emerald_jax.imagination",
    "dream_step": "emerald_jax.agent.dream",
    "imagine": "emerald_jax.imagination",
    "maskgit_decode": "emerald_jax.imagination",
    "starts_from": "emerald_jax.imagination",
    "world_model_step": "emerald_jax.imagination",
    # Losses and returns.
    "actor_losses": "emerald_jax.losses",
    "critic_losses": "emerald_jax.losses",
    "lambda_returns": "emerald_jax.ops.returns",
    "world_model_losses": "emerald_jax.losses",
    # Training.
    "RunLogger": "emerald_jax.run.log",
    "Observation": "emerald_jax.agent.acting",
    "act": "emerald_jax.agent.acting",
    "build_learner": "emerald_jax.agent.state",
    "init_carry": "emerald_jax.agent.state",
    "init_state": "emerald_jax.agent.state",
    "rollout": "emerald_jax.training.update",
    "train": "emerald_jax.training.loop",
    "train_step": "emerald_jax.training.update",
    # Pytrees.
    "Batch": "emerald_jax.types",
    "Carry": "emerald_jax.types",
    "Starts": "emerald_jax.types",
    "State": "emerald_jax.types",
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
