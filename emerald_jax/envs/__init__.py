"""Environments behind one vectorised interface; ``base.py`` states its rules."""

from typing import Any

from emerald_jax.envs.base import EnvError, EnvSpec, Episode, VectorEnv, VectorStep
from emerald_jax.envs.registry import (
    EnvEntry,
    list_envs,
    make_vector_env,
    make_vector_env_of,
    register,
    spec_of,
)

__all__ = [
    "EnvEntry",
    "EnvError",
    "EnvSpec",
    "Episode",
    "VectorEnv",
    "VectorStep",
    "check_env",
    "list_envs",
    "make_vector_env",
    "make_vector_env_of",
    "register",
    "spec_of",
]


def __getattr__(name: str) -> Any:
    """Import the check when it is first used: loading an agent does not need it (PEP 562)."""
    if name != "check_env":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from emerald_jax.envs.playing import check_env

    return check_env
