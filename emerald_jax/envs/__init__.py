"""Environments behind one vectorised interface; ``base.py`` states its rules."""

from emerald_jax.envs.base import EnvError, EnvSpec, Episode, VectorEnv, VectorStep
from emerald_jax.envs.check import check_env
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
