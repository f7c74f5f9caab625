"""``emerald-jax collect --env NAME --policy random|RUN --steps N --out DIR``."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from emerald_jax.commands.words import Parser, tell
from emerald_jax.config import Config, ConfigError, EnvsConfig


def run(words: list[str]) -> int:
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
    from emerald_jax.studies import datasets

    datasets.refuse_dataset(Path(options.out))
    from emerald_jax.training.program import prepare_jax

    prepare_jax()
    policy = None
    if options.policy != "random":
        policy = datasets.run_policy(options.policy, config, options.seed)
    replay = datasets.record(config, options.steps, options.seed, policy)
    facts = datasets.facts_of(config, options.policy, options.seed, options.steps)
    path = datasets.write_dataset(options.out, replay, facts)
    return tell(f"{len(replay):,} records of {config.env} by {options.policy}: {path.parent}\n")


def _config(policy: str, env: str, count: int, image_size: int) -> Config:
    """What is played: a run's own environment, or the one that is named."""
    if policy == "random":
        if not env:
            raise ConfigError("--env is missing: name an environment (emerald-jax envs)")
        config = Config(env=env, envs=EnvsConfig(count=count or 16, image_size=image_size or 64))
        return config
    from emerald_jax.saving.rundir import read_config

    config = read_config(policy)
    if env and env != config.env:
        raise ConfigError(f"{policy} was trained on {config.env}, not {env}: leave --env out")
    if image_size and image_size != config.envs.image_size:
        raise ConfigError(f"{policy} sees {config.envs.image_size} pixels: leave --image-size out")
    envs = dataclasses.replace(config.envs, count=count or config.envs.count)
    return dataclasses.replace(config, envs=envs)
