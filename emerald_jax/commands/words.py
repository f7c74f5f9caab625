"""What the commands share: the parser whose complaint is one line, and plain output."""

from __future__ import annotations

import argparse
import sys
from typing import NoReturn

from emerald_jax.config import ConfigError
from emerald_jax.presets import PRESETS

#: Command -> its file in ``commands/`` and what it does, in the order of a first visit.
COMMANDS = {
    "train": ("train", "train an agent from a preset, or continue its run"),
    "eval": ("eval", "play episodes with a trained agent and report its return"),
    "dream": ("look", "film the agent's dream beside reality"),
    "checkpoints": ("eval", "list a run's checkpoints and whether each is whole"),
    "export": ("eval", "write a run's weights alone, for sharing or for train --init-from"),
    "inspect": ("look", "write a report of a run, one HTML file that opens from disk"),
    "play": ("look", "steer the dream with the keyboard, in a browser"),
    "report": ("eval", "table and figure per benchmark: runs beside the published numbers"),
    "collect": ("tools", "record play into a data set for studies"),
    "presets": ("train", "list the named configurations"),
    "envs": ("tools", "list the environments"),
    "check-env": ("tools", "play an environment at random and tell which rules it breaks"),
    "version": ("tools", "tell the versions of this package and of what it stands on"),
}


class Parser(argparse.ArgumentParser):
    """argparse whose complaint is one line, like everybody else's here."""

    def __init__(self, command: str, prog: str = "", about: str = "") -> None:
        prog, about = prog or f"emerald-jax {command}", about or COMMANDS[command][1]
        super().__init__(prog=prog, description=f"{about}.", allow_abbrev=False)

    def error(self, message: str) -> NoReturn:
        """Refuse the words, naming the help that tells more."""
        raise ConfigError(f"{message} ({self.prog} --help)")


def preset_list() -> str:
    """The presets, one a line."""
    return table({name: about for name, (about, _) in PRESETS.items()})


def table(rows: dict[str, str]) -> str:
    """Two aligned columns, one row a line."""
    width = max(map(len, rows)) + 2
    return "".join(f"{name:<{width}}{text}".rstrip() + "\n" for name, text in rows.items())


def tell(text: str) -> int:
    """Write to standard output; returns the exit code of a command that is done."""
    sys.stdout.write(text)
    return 0


def complain(text: str) -> None:
    """Write one line to standard error."""
    sys.stderr.write(f"emerald-jax: {' '.join(text.split())}\n")
