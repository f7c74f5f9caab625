"""Settings of an environment as words of commands that need no run.

``emerald-jax collect --env NAME --policy random|RUN --steps N --out DIR``.

``emerald-jax envs``.

``emerald-jax check-env NAME [--image-key KEY] [--image-size N] …``.

``emerald-jax version``.
"""

from __future__ import annotations

import argparse
import dataclasses
import platform
from importlib import metadata
from pathlib import Path

from emerald_jax import __version__
from emerald_jax.commands.words import Parser, table, tell
from emerald_jax.config import Config, ConfigError, EnvsConfig

_SETTINGS = ("image_size", "frame_skip", "time_limit", "image_key")


def add_env_words(parser: argparse.ArgumentParser, of: str = "") -> None:
    """Let a parser take the settings of an environment.

    Args:
        parser: of the command.
        of: put before each help text.
    """
    helps = {
        "image_size": "height and width of the image, in pixels",
        "frame_skip": "frames each action lasts",
        "time_limit": "steps after which an episode is cut",
        "image_key": "entry of a dict observation, or `render`",
    }
    for name, text in helps.items():
        kind = str if name == "image_key" else int
        parser.add_argument(f"--{name.replace('_', '-')}", type=kind, help=of + text)


def given_env_words(options: argparse.Namespace) -> dict[str, int | str]:
    """The settings that were given."""
    return {n: v for n in _SETTINGS if (v := getattr(options, n)) is not None}


def envs_of(options: argparse.Namespace, default: EnvsConfig) -> EnvsConfig:
    """``default`` with the settings that were given.

    Raises:
        ConfigError: when one cannot be.
    """
    given = given_env_words(options)
    for name, least in (("image_size", 1), ("frame_skip", 0), ("time_limit", 0)):
        if name in given and given[name] < least:
            raise ConfigError(f"--{name.replace('_', '-')} is {given[name]}: at least {least}")
    return dataclasses.replace(default, **given)


def run_collect(words: list[str]) -> int:
    """Record play into a data set that studies train on."""
    parser = Parser("collect")
    parser.add_argument("--env", default="", help="environment; with a run, the run's own")
    parser.add_argument(
        "--policy",
        default="random",
        metavar="random|RUN",
        help="who plays: uniformly random actions, or the policy of a run (%(default)s)",
    )
    parser.add_argument("--steps", type=int, required=True, help="environment steps to record")
    parser.add_argument("--out", required=True, metavar="DIR", help="directory of the data set")
    parser.add_argument("--seed", type=int, default=0, help="seed of the play (%(default)s)")
    parser.add_argument(
        "--count", type=int, default=0, help="environments side by side (16; with a run, its own)"
    )
    parser.add_argument(
        "--image-size", type=int, default=0, help="pixels of an image's side (64; with a run, its)"
    )
    options = parser.parse_args(words)
    if options.steps < 1:
        raise ConfigError(f"--steps is {options.steps}: it must be at least 1")
    if min(options.count, options.image_size) < 0:
        raise ConfigError("--count and --image-size must not be negative")
    config = _config(options.policy, options.env, options.count, options.image_size)
    from emerald_jax.training import collect

    collect.refuse_dataset(Path(options.out))
    from emerald_jax.run.machine import prepare_jax

    prepare_jax()
    policy = None
    if options.policy != "random":
        import jax

        from emerald_jax.run.weights import load

        agent = load(options.policy, config=config)
        policy = agent.player(config.envs.count, jax.random.key(options.seed))
    replay = collect.record(config, options.steps, options.seed, policy)
    facts = collect.facts_of(config, options.policy, options.seed, options.steps)
    path = collect.write_dataset(options.out, replay, facts)
    return tell(f"{len(replay):,} records of {config.env} by {options.policy}: {path.parent}\n")


def _config(policy: str, env: str, count: int, image_size: int) -> Config:
    """What is played: a run's own environment, or the one that is named."""
    if policy == "random":
        if not env:
            raise ConfigError("--env is missing: name an environment (emerald-jax envs)")
        config = Config(env=env, envs=EnvsConfig(count=count or 16, image_size=image_size or 64))
        return config
    from emerald_jax.run.directory import read_config

    config = read_config(policy)
    if env and env != config.env:
        raise ConfigError(f"{policy} was trained on {config.env}, not {env}: leave --env out")
    if image_size and image_size != config.envs.image_size:
        raise ConfigError(f"{policy} sees {config.envs.image_size} pixels: leave --image-size out")
    envs = dataclasses.replace(config.envs, count=count or config.envs.count)
    return dataclasses.replace(config, envs=envs)


def run_envs(words: list[str]) -> int:
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


def run_check_env(words: list[str]) -> int:
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


def run_version(words: list[str]) -> int:
    """Tell the versions of this package and of what it stands on."""
    Parser("version").parse_args(words)
    rows = {"emerald-jax": __version__, "python": platform.python_version()}
    for package in ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy"):
        try:
            rows[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            rows[package] = "not installed"
    return tell(table(rows))
