"""``emerald-jax train PRESET [--settings]``.

From the words of a command line to a :class:`Config`, with one-line complaints.

The words are checked against the dataclasses of ``config.py`` first, so that a misspelt or
ill-typed setting is answered with one line that names it; tyro then builds the configuration and
the help.
Nothing here imports JAX.

``emerald-jax presets``.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import sys
from collections.abc import Sequence
from typing import Any, Literal, get_args, get_origin, get_type_hints

import tyro

from emerald_jax.commands.words import Parser, complain, preset_list, tell
from emerald_jax.config import Config, ConfigError
from emerald_jax.presets import PRESETS, get_preset


def run_train(words: list[str]) -> int:
    """Train, or continue a run; returns what the run ended with."""
    if not words:
        complain("name a preset, such as: emerald-jax train quickstart")
        sys.stderr.write(preset_list())
        return 2
    config = parse_train(words)
    config.validate(max(1, config.devices))
    from emerald_jax.run.directory import check_run_dir

    check_run_dir(config)
    from emerald_jax.training.loop import train

    return train(config).exit_code


#: Short spellings of settings that are typed often.
ALIASES = {"quiet": "log.quiet"}

_KINDS: dict[type, str] = {int: "an integer", float: "a number", str: "a text"}


def parse_train(words: Sequence[str]) -> Config:
    """The configuration that the words after ``emerald-jax train`` describe.

    Args:
        words: a preset's name and settings in any order, such as
            ``["crafter", "--model.width", "256", "--seed=3"]``. Hyphens and underscores are one.

    Raises:
        ConfigError: no or an unknown preset, an unknown setting, or a value of the wrong type.
        SystemExit: with code 0 after ``--help`` has been printed.
    """
    words = list(words)
    wants_help = any(word in ("-h", "--help") for word in words)
    positional, settings = split_words([w for w in words if w not in ("-h", "--help")])
    if len(positional) > 1:
        raise ConfigError(
            f"unexpected {positional[1]!r} after preset {positional[0]!r}: settings begin with --"
        )
    if wants_help:
        settings = ["--help"]
    elif not positional:
        raise ConfigError(f"name a preset: {', '.join(PRESETS)}")
    preset = get_preset(positional[0]) if positional else Config()
    return _parse_with_tyro(preset, settings, positional[0] if positional else "PRESET")


def split_words(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """Tell positional words from settings, and check every setting's name and value.

    Returns:
        The positional words, and the settings as tyro wants them: ``--name=value`` or ``--name``.

    Raises:
        ConfigError: on a setting that is unknown, lacks its value, or has one of the wrong type.
    """
    hints = setting_types()
    positional: list[str] = []
    settings: list[str] = []
    rest = list(words)
    while rest:
        word = rest.pop(0)
        if not word.startswith("-"):
            positional.append(word)
            continue
        name, equals, value = word.lstrip("-").partition("=")
        name = name.replace("_", "-")
        name = ALIASES.get(name, name)
        hint = hints.get(name)
        if hint is None or not word.startswith("--"):
            raise ConfigError(unknown_setting(word.partition("=")[0], list(hints)))
        if hint is bool:
            if equals:
                raise ConfigError(f"--{name} is a switch and takes no value, got {value!r}")
            settings.append(f"--{name}")
            continue
        if not equals:
            if not rest or rest[0].startswith("--"):
                raise ConfigError(f"--{name} takes {_kind(hint)}, and none follows")
            value = rest.pop(0)
        check_value(name, hint, value)
        settings.append(f"--{name}={value}")
    return positional, settings


def setting_types() -> dict[str, Any]:
    """Every setting as it is typed, without its dashes, and the type of its value.

    A switch is there twice, as ``log.quiet`` and ``log.no-quiet``.
    """
    return dict(_walk(Config, ""))


def _walk(cls: type, prefix: str) -> list[tuple[str, Any]]:
    found: list[tuple[str, Any]] = []
    for name, hint in get_type_hints(cls).items():
        flag = f"{prefix}{name.replace('_', '-')}"
        if dataclasses.is_dataclass(hint):
            found += _walk(hint, f"{flag}.")
        elif flag != "preset":  # the preset is the positional word
            found.append((flag, hint))
            if hint is bool:
                found.append((f"{prefix}no-{name.replace('_', '-')}", hint))
    return found


def unknown_setting(word: str, names: Sequence[str]) -> str:
    """The complaint about a setting that does not exist, naming the nearest one that does."""
    spellings = {name: name for name in names}
    name = word.lstrip("-").replace("_", "-")
    if "." not in name:
        # Who forgot the group has spelt the rest: compare with the names without their groups.
        spellings = {full.rpartition(".")[2]: full for full in reversed(names)} | spellings
    near = difflib.get_close_matches(name, spellings, n=1)
    hint = f"nearest: --{spellings[near[0]]}" if near else "emerald-jax train --help lists them"
    return f"unknown setting {word}; {hint}"


def check_value(name: str, hint: Any, value: str) -> None:
    """Refuse a value that is none of its setting's type.

    Args:
        name: the setting, without its dashes.
        hint: int, float, str or a Literal of strings.
        value: as it was typed.

    Raises:
        ConfigError: when it does not fit.
    """
    if get_origin(hint) is Literal:
        fits = value in get_args(hint)
    else:
        try:
            fits = hint is str or math.isfinite(hint(value))
        except (ValueError, OverflowError):
            fits = False
    if not fits:
        raise ConfigError(f"--{name} takes {_kind(hint)}, got {value!r}")


def _kind(hint: Any) -> str:
    if get_origin(hint) is Literal:
        return f"one of {', '.join(get_args(hint))}"
    return _KINDS[hint]


@dataclasses.dataclass(frozen=True, kw_only=True)
class _CommandLine(Config):
    """Config, less what is no setting on a command line: the preset is the positional word."""

    preset: tyro.conf.Suppress[tyro.conf.Fixed[str]]


def _parse_with_tyro(preset: Config, settings: list[str], name: str) -> Config:
    """Let tyro change ``preset`` by ``settings``, or print its help."""
    names = [field.name for field in dataclasses.fields(Config)]
    try:
        parsed = tyro.cli(
            _CommandLine,
            default=_CommandLine(**{n: getattr(preset, n) for n in names}),
            args=settings,
            prog=f"emerald-jax train {name}",
            description=_description(name),
            console_outputs=settings == ["--help"],
        )
    except SystemExit as stop:
        if stop.code in (0, None):
            raise
        # Every name and value was checked above, so tyro should never come here.
        raise ConfigError(f"the settings {' '.join(settings)} cannot be read") from stop
    return Config(**{n: getattr(parsed, n) for n in names})


def _description(name: str) -> str:
    if name in PRESETS:
        about = f"Train {name}: {PRESETS[name][0]}."
        defaults = "The defaults below are this preset's."
    else:
        about = f"Train PRESET, one of {', '.join(PRESETS)}."
        defaults = "The defaults below are crafter's; PRESET --help shows another preset's."
    sources = "Sources: (P) the paper, (R) the authors' release, (D) DreamerV3, (O) our own."
    # One short paragraph each: tyro joins the lines of a paragraph and never breaks it.
    return "\n\n".join((about, defaults, sources))


def run_presets(words: list[str]) -> int:
    """List the named configurations."""
    Parser("presets").parse_args(words)
    return tell(preset_list())
