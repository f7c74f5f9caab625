"""Commands that need no run: ``collect``, ``envs``, ``check-env``, ``version``."""

from __future__ import annotations

import argparse
import dataclasses
import platform
from importlib import metadata
from pathlib import Path

from emerald_jax import __version__
from emerald_jax.commands import Parser, envs_from, number, table, write_out
from emerald_jax.config import Config, ConfigError, EnvsConfig
from emerald_jax.run.directory import read_config


def run_collect(arguments: list[str]) -> int:
    """Record play as a data set, on which ``train --data`` and studies train."""
    parser = Parser("collect")
    add, size = parser.add_argument, number(0)
    add("--env", default="", help="environment; with a run, the run's own")
    about = "uniformly random actions, or the policy of a run (%(default)s)"
    add("--policy", default="random", metavar="random|RUN", help=about)
    add("--steps", type=number(1), required=True, help="environment steps to record")
    add("--out", required=True, metavar="DIR", help="directory of the data set")
    parser.add_seed("the play")
    add("--count", type=size, default=0, help="parallel environments (16, or the run's own)")
    add("--image-size", type=size, default=0, help="pixels per side (64, or the run's own)")
    options = parser.parse_args(arguments)
    config = _collect_config(options)
    from emerald_jax.run.recordings import refuse_dataset, write_dataset

    refuse_dataset(Path(options.out))
    from emerald_jax.run.machine import prepare_jax
    from emerald_jax.run.weights import load
    from emerald_jax.training.evaluate import facts_of, record
    from emerald_jax.types import key_of

    prepare_jax()
    policy = None
    if options.policy != "random":
        agent = load(options.policy, config=config)
        policy = agent.player(config.envs.count, key_of(options.seed))
    replay = record(config, options.steps, options.seed, policy)
    facts = facts_of(config, options.policy, options.seed, options.steps)
    path = write_dataset(options.out, replay, facts)
    found = f"{len(replay):,} records of {config.env} by {options.policy}"
    return write_out(f"{found}: {path.parent}\n")


def _collect_config(options: argparse.Namespace) -> Config:
    """The environment to play: that of the run, or the given one."""
    run, env, size = options.policy, options.env, options.image_size
    if run == "random":
        if not env:
            raise ConfigError("--env is missing: name an environment (emerald-jax envs)")
        return Config(env=env, envs=EnvsConfig(count=options.count or 16, image_size=size or 64))
    config = read_config(run)
    if env and env != config.env:
        raise ConfigError(f"{run} was trained on {config.env}, not {env}: leave --env out")
    if size and size != config.envs.image_size:
        raise ConfigError(f"{run} sees {config.envs.image_size} pixels: leave --image-size out")
    envs = dataclasses.replace(config.envs, count=options.count or config.envs.count)
    return dataclasses.replace(config, envs=envs)


def run_envs(arguments: list[str]) -> int:
    """List the environments, and the packages that missing ones need."""
    Parser("envs").parse_args(arguments)
    from emerald_jax.envs.registry import list_envs

    write_out(table({e.name: "ready" if e.available else f"needs {e.pip}" for e in list_envs()}))
    return write_out(
        "\nemerald-jax train PRESET --env NAME trains in any of them (atari100k in those of atari)."
        "\nYour own is my_module:make_env, a function that makes a Gymnasium environment;\n"
        "emerald-jax check-env NAME tests it.\n"
    )


def run_check_env(arguments: list[str]) -> int:
    """Play an environment at random and list the rules it breaks; returns 2 if there are any."""
    parser = Parser("check-env")
    parser.add_argument("name", metavar="NAME", help="such as crafter, or my_module:make_env")
    parser.add_envs()
    parser.add_argument("--steps", type=number(2), default=100, help="vector steps (%(default)s)")
    parser.add_seed("the play")
    options = parser.parse_args(arguments)
    from emerald_jax.envs.playing import SHORT, check_env, remark
    from emerald_jax.envs.registry import spec_of

    envs = envs_from(options, SHORT)
    spec = spec_of(options.name, dataclasses.replace(envs, time_limit=options.time_limit or 0))
    height, width, _ = spec.image_shape
    limited = f"episodes of at most {spec.time_limit:,} steps" if spec.time_limit else ""
    limit = limited or "no time limit known"
    write_out(f"{spec.name}: {height}x{width} RGB images, {spec.actions}, {limit}\n")
    findings = check_env(options.name, envs, steps=options.steps, seed=options.seed)
    if not findings:
        played = f"{options.steps} vector steps of {envs.count} environments, played twice"
        write_out(f"sound: {played}, kept every rule\n")
        note = remark(options.name, envs, seed=options.seed)
        return write_out(f"note: {note}\n" if note else "")
    write_out("".join(f"broken: {finding}\n" for finding in findings))
    return 2


def run_version(arguments: list[str]) -> int:
    """Print the versions of this package and of its dependencies."""
    Parser("version").parse_args(arguments)
    rows = {"emerald-jax": __version__, "python": platform.python_version()}
    for package in ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy"):
        try:
            rows[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            rows[package] = "not installed"
    return write_out(table(rows))
