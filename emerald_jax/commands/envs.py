"""``emerald-jax envs``."""

from __future__ import annotations

from emerald_jax.commands.words import Parser, table, tell


def run(words: list[str]) -> int:
    """List the environments: which run here, and what the others need."""
    Parser("envs").parse_args(words)
    from emerald_jax.envs.registry import list_envs

    states = {True: "ready", False: "needs {pip}"}
    tell(table({e.name: states[e.available].format(pip=e.pip) for e in list_envs()}))
    return tell(_HINTS)


_HINTS = """
emerald-jax train PRESET --env NAME trains in any of them; the games of atari are the benchmark
Atari 100k: emerald-jax train atari100k --env atari:GAME. Your own is my_module:make_env, a function
that makes a Gymnasium environment; emerald-jax check-env NAME tells whether it will do.
"""
