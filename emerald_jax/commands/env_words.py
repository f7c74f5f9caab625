"""Settings of an environment as words of commands that need no run."""

from __future__ import annotations

import argparse
import dataclasses

from emerald_jax.config import ConfigError, EnvsConfig

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
