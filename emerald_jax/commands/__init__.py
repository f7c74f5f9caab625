"""The commands of ``emerald-jax``: their list, their argument parser, and plain output.

Each is a function ``run_COMMAND(arguments) -> exit code`` of a module here. Heavy modules are
imported after the arguments have been checked, so that a wrong argument is reported before JAX is
imported and before anything is allocated or written.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import re
import sys
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from emerald_jax.config import SEEDS, ConfigError, EnvsConfig
from emerald_jax.presets import PRESETS
from emerald_jax.run.pretrained import find_run

#: Command -> its file in ``commands/`` and its help, in the order of a first visit.
COMMANDS = {
    "train": ("train", "train an agent from a preset, or resume its run"),
    "eval": ("runs", "play episodes with a trained agent and report its return"),
    "dream": ("runs", "film the agent's dream next to reality"),
    "checkpoints": ("runs", "list a run's checkpoints and verify each of them"),
    "export": ("runs", "write the weights of a run, or a program that acts with JAX alone"),
    "inspect": ("runs", "write a report of a run, one HTML file that opens from disk"),
    "play": ("runs", "steer the dream with the keyboard, in a browser"),
    "report": ("runs", "compare runs with published numbers, one table and figure per benchmark"),
    "sweep": ("sweep", "train a grid of settings and seeds, here or on a SLURM cluster"),
    "compile": ("compile", "compile a run for a TPU or GPU that need not be there"),
    "collect": ("tools", "record play as a data set, for train --data and for studies"),
    "presets": ("train", "list the named configurations"),
    "envs": ("tools", "list the environments"),
    "check-env": ("tools", "play an environment at random and list the rules it breaks"),
    "version": ("tools", "print the versions of this package and of its dependencies"),
}


def _run(text: str) -> str:
    """A run's directory, as ``find_run`` finds it."""
    try:
        return str(find_run(text))
    except ConfigError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


class Parser(argparse.ArgumentParser):
    """argparse with one-line errors; arguments that several commands have are methods."""

    def __init__(self, command: str, prog: str = "", about: str = "") -> None:
        prog, about = prog or f"emerald-jax {command}", about or COMMANDS[command][1]
        super().__init__(prog=prog, description=f"{about}.", allow_abbrev=False)

    def error(self, message: str) -> NoReturn:
        """Raise a :class:`ConfigError` that names the help page."""
        message = re.sub(r"^argument (\S+): is ", r"\1 is ", message)  # from number()
        raise ConfigError(f"{message} ({self.prog} --help)")

    def add_run(self, *, checkpoint: bool = False, seed: str = "", **options: Any) -> None:
        """Add the positional argument RUN, and on request ``--checkpoint STEP`` and ``--seed``."""
        about = "run directory or export, such as pretrained/catch; it is only read"
        self.add_argument("run", metavar="RUN", help=about, type=_run, **options)
        if checkpoint:
            about = "its number of updates; by default the newest intact one"
            self.add_argument("--checkpoint", type=int, metavar="STEP", help=about)
        if seed:
            self.add_seed(seed)

    def add_seed(self, of: str) -> None:
        """Add ``--seed``."""
        seed, about = number(0, SEEDS - 1), f"seed of {of} (%(default)s)"
        self.add_argument("--seed", type=seed, default=0, help=about)

    def add_envs(self, prefix: str = "") -> None:
        """Add the settings of an environment, read by :func:`envs_from`; ``prefix`` each help."""
        for name, kind, text in (
            ("--image-size", number(1), "height and width of the image, in pixels"),
            ("--frame-skip", number(0), "frames per action"),
            ("--time-limit", number(0), "steps after which an episode is truncated"),
            ("--image-key", str, "entry of a dict observation, or `render`"),
        ):
            self.add_argument(name, type=kind, help=prefix + text)


def number(least: float, most: float = math.inf, kind: type = int) -> Callable[[str], Any]:
    """An argparse type: an int (or ``kind``) from ``least`` to ``most``."""

    def parse(text: str) -> Any:
        value = kind(text)
        if not least <= value <= most:
            bounds = f"at least {least}" if most == math.inf else f"in {least} … {most}"
            raise argparse.ArgumentTypeError(f"is {value}: it must be {bounds}")
        return value

    parse.__name__ = kind.__name__  # for "invalid int value"
    return parse


def given_envs(options: argparse.Namespace) -> dict[str, int | str]:
    """The settings of :meth:`Parser.add_envs` that were given."""
    names = ("image_size", "frame_skip", "time_limit", "image_key")
    return {name: value for name in names if (value := getattr(options, name)) is not None}


def envs_from(options: argparse.Namespace, default: EnvsConfig) -> EnvsConfig:
    """``default`` changed by the settings of :meth:`Parser.add_envs` that were given."""
    return dataclasses.replace(default, **given_envs(options))


def preset_list() -> str:
    """The presets, one per line."""
    return table({name: about for name, (about, _) in PRESETS.items()})


def table(rows: dict[str, str]) -> str:
    """Two aligned columns, one row per line."""
    width = max(map(len, rows)) + 2
    return "".join(f"{name:<{width}}{text}".rstrip() + "\n" for name, text in rows.items())


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """Rows of equally many cells as aligned lines; the last cell of a row may have any length."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)][:-1]
    lines = []
    for *cells, last in rows:
        padded = [cell.rjust(width) for cell, width in zip(cells, widths, strict=True)]
        lines.append("  ".join([*padded, last]) + "\n")
    return "".join(lines)


def write_out(text: str) -> int:
    """Write to standard output; returns the exit code of a successful command, 0."""
    sys.stdout.write(text)
    return 0


def write_error(text: str) -> None:
    """Write one line to standard error."""
    sys.stderr.write(f"emerald-jax: {' '.join(text.split())}\n")
