"""``emerald-jax train PRESET [--settings]`` and ``emerald-jax presets``.

Settings are read against the dataclasses of ``config.py``; tyro prints the help. Nothing here
imports JAX.
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import math
import re
import sys
from collections.abc import Sequence
from typing import Any, Literal, get_args, get_origin, get_type_hints

from emerald_jax.commands import Parser, preset_list, write_error, write_out
from emerald_jax.config import Config, ConfigError
from emerald_jax.presets import PRESETS, get_preset
from emerald_jax.run.directory import check_run_dir

#: Short names of settings that are typed often.
ALIASES = {"quiet": "log.quiet"}

_HELP = {"-h", "--help"}


def run_train(arguments: list[str]) -> int:
    """Train, or resume a run; returns the exit code of the run."""
    if not arguments:
        write_error("name a preset, such as: emerald-jax train quickstart")
        sys.stderr.write(preset_list())
        return 2
    seeds, arguments = _seeds(arguments)
    config = parse_train(arguments)
    if seeds is not None:
        from emerald_jax.training.train import train_seeds

        return max(result.exit_code for result in train_seeds(config, seeds))
    if config.data:
        from emerald_jax.run.data import with_data

        config = with_data(config)
    config.validate(max(1, config.devices))
    check_run_dir(config)
    from emerald_jax.training.train import train

    return train(config).exit_code


def _seeds(arguments: Sequence[str]) -> tuple[int | None, list[str]]:
    """The value of ``--seeds``, None where it is not given, and the other arguments."""
    found, others, rest = None, [], iter(arguments)
    for argument in rest:
        name, equals, value = argument.partition("=")
        if name != "--seeds":
            others.append(argument)
            continue
        found = _parse_value("seeds", int, value if equals else next(rest, ""))
        if found < 1:
            raise ConfigError(f"--seeds takes a number of seeds, 1 or more, got {found}")
    return found, others


def parse_train(arguments: Sequence[str]) -> Config:
    """The configuration of a preset's name and settings, in any order, such as ``--model.width 8``.

    Hyphens and underscores are equal. ConfigError without a preset, for an unknown preset or
    setting, or for a wrong value; SystemExit with code 0 after ``--help`` has been printed.
    """
    positional, settings = _read([a for a in arguments if a not in _HELP])
    if len(positional) > 1:
        preset, extra = positional[:2]
        raise ConfigError(f"unexpected {extra!r} after preset {preset!r}: settings begin with --")
    wants_help = bool(_HELP & set(arguments))
    if not positional and not wants_help:
        raise ConfigError(f"name a preset: {', '.join(PRESETS)}")
    config = get_preset(positional[0]) if positional else Config()
    if wants_help:
        _print_help(config, *positional)
    if {"env", "data"} <= {name for name, _ in settings}:
        raise ConfigError("--data decides the environment: leave --env out")
    for name, value in settings:
        group, _, field = name.rpartition(".")
        if group:
            value = dataclasses.replace(getattr(config, group), **{field: value})
        config = dataclasses.replace(config, **{group or field: value})
    return config


def _read(arguments: list[str]) -> tuple[list[str], list[tuple[str, Any]]]:
    """Separate positional arguments from settings; settings become (field name, value)."""
    types, rest = setting_types(), iter(arguments)
    positional: list[str] = []
    settings: list[tuple[str, Any]] = []
    for argument in rest:
        if not argument.startswith("-"):
            positional.append(argument)
            continue
        name, equals, value = argument.lstrip("-").partition("=")
        name = name.replace("_", "-")
        name = ALIASES.get(name, name)
        if name not in types or not argument.startswith("--"):
            raise ConfigError(_unknown_setting(argument.partition("=")[0], list(types)))
        if types[name] is bool:
            if equals:
                raise ConfigError(f"--{name} is a switch and takes no value, got {value!r}")
            group, dot, switch = name.rpartition(".")
            name, parsed = group + dot + switch.removeprefix("no-"), not switch.startswith("no-")
        else:
            value = value if equals else next(rest, "--")
            if not equals and value.startswith("--"):
                raise ConfigError(f"--{name} takes {_kind(types[name])}, got nothing")
            parsed = _parse_value(name, types[name], value)
        settings.append((name.replace("-", "_"), parsed))
    return positional, settings


def setting_types() -> dict[str, Any]:
    """Every setting as typed, without dashes, and its type; switches also as ``log.no-quiet``."""
    found: dict[str, Any] = {}

    def walk(cls: type, prefix: str) -> None:
        for name, kind in get_type_hints(cls).items():
            name = name.replace("_", "-")
            if dataclasses.is_dataclass(kind):
                walk(kind, f"{prefix}{name}.")
            else:
                found[prefix + name] = kind
                if kind is bool:
                    found[f"{prefix}no-{name}"] = kind

    walk(Config, "")
    del found["preset"]  # the positional argument
    return found


def _unknown_setting(argument: str, names: Sequence[str]) -> str:
    """The error for a setting that does not exist, with the nearest one that does."""
    spellings = {name: name for name in names}
    name = argument.lstrip("-").replace("_", "-")
    name = re.sub(r"^no-(\w+)\.", r"\1.no-", name)  # where most programs have it
    if "." not in name:  # the group may be missing: also compare with names without their group
        spellings = {full.rpartition(".")[2]: full for full in reversed(names)} | spellings
    near = difflib.get_close_matches(name, spellings, n=1)
    hint = f"nearest: --{spellings[near[0]]}" if near else "emerald-jax train --help lists them"
    return f"unknown setting {argument}; {hint}"


def _parse_value(name: str, kind: Any, text: str) -> Any:
    """``text`` as int, float, str or one of a Literal's strings."""
    if get_origin(kind) is Literal:
        if text in get_args(kind):
            return text
    else:
        with contextlib.suppress(ValueError, OverflowError):
            value = kind(text)
            if kind is str or math.isfinite(value):
                return value
    raise ConfigError(f"--{name} takes {_kind(kind)}, got {text!r}")


def _kind(kind: Any) -> str:
    if get_origin(kind) is Literal:
        return f"one of {', '.join(get_args(kind))}"
    return {int: "an integer", float: "a number", str: "a text"}[kind]


def _print_help(config: Config, name: str = "PRESET") -> None:
    """Print every setting with its help text and its default in ``config``, then exit."""
    import tyro

    # The preset is a positional argument, not a setting.
    hidden = [("preset", tyro.conf.Suppress[tyro.conf.Fixed[str]])]
    settings = dataclasses.make_dataclass(
        "Config", hidden, bases=(Config,), frozen=True, kw_only=True
    )
    about = f"Train PRESET, one of {', '.join(PRESETS)}."
    defaults = "The defaults below are crafter's; PRESET --help shows those of a preset."
    if name in PRESETS:
        about, defaults = f"Train {name}: {PRESETS[name][0]}.", "The defaults are this preset's."
    seeds = "--seeds N trains N seeds together, each as a run of its own: --seed and the next ones."
    sources = "Sources: (P) the paper, (R) the authors' release, (D) DreamerV3, (O) our own."
    fields = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
    tyro.cli(
        settings,
        default=settings(**fields),
        args=["--help"],
        prog=f"emerald-jax train {name}",
        # One short paragraph each: tyro joins the lines of a paragraph and never wraps it.
        description="\n\n".join((about, defaults, seeds, sources)),
    )


def run_presets(arguments: list[str]) -> int:
    """List the named configurations."""
    Parser("presets").parse_args(arguments)
    return write_out(preset_list())
