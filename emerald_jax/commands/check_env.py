"""``emerald-jax check-env NAME [--image-key KEY] [--image-size N] …``."""

from __future__ import annotations

import dataclasses

from emerald_jax.commands.env_words import add_env_words, envs_of
from emerald_jax.commands.words import Parser, tell
from emerald_jax.config import ConfigError


def run(words: list[str]) -> int:
    """Play an environment at random and tell which rules it breaks; 2 when it breaks one."""
    parser = Parser("check-env")
    parser.add_argument("name", metavar="NAME", help="such as crafter, or my_module:make_env")
    add_env_words(parser)
    parser.add_argument("--steps", type=int, default=100, help="vector steps (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="(%(default)s)")
    options = parser.parse_args(words)
    if options.steps < 2:
        raise ConfigError(f"--steps is {options.steps}: it must be at least 2")
    from emerald_jax.envs.check import DEFAULT, check_env
    from emerald_jax.envs.registry import spec_of

    envs = envs_of(options, DEFAULT)
    own = 0 if options.time_limit is None else options.time_limit
    spec = spec_of(options.name, dataclasses.replace(envs, time_limit=own))
    height, width, _ = spec.image_shape
    limit = (
        f"episodes of at most {spec.time_limit:,} steps"
        if spec.time_limit
        else "no time limit known"
    )
    tell(f"{spec.name}: {height}x{width} RGB images, {spec.num_actions} actions, {limit}\n")
    findings = check_env(options.name, envs, steps=options.steps, seed=options.seed)
    if not findings:
        played = f"{options.steps} vector steps of {envs.count} environments, played twice"
        return tell(f"sound: {played}, kept every rule\n")
    tell("".join(f"broken: {finding}\n" for finding in findings))
    return 2
