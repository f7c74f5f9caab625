"""Environments behind one vectorised interface; ``base.py`` states its rules.

The names below are imported from their modules when they are first used (PEP 562).
"""

import importlib
from typing import Any

#: Public name -> the module of this room it lives in.
_HOMES = {
    **dict.fromkeys(("EnvError", "EnvSpec", "Episode", "VectorEnv", "VectorStep"), "base"),
    **dict.fromkeys(("EnvEntry", "list_envs", "register", "spec_of"), "registry"),
    **dict.fromkeys(("make_vector_env", "make_vector_env_of"), "registry"),
    "check_env": "playing",
}

__all__ = [*_HOMES]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
