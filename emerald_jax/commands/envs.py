"""``emerald-jax envs``."""

from __future__ import annotations

from emerald_jax.commands.words import Parser, table, tell


def run(words: list[str]) -> int:
    """List the environments: which run here, and what the others need."""
    Parser("envs").parse_args(words)
    from emerald_jax.envs.registry import list_envs

    states = {True: "ready", False: "needs {pip}"}
    return tell(table({e.name: states[e.available].format(pip=e.pip) for e in list_envs()}))
