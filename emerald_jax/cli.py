"""The command ``emerald-jax``: reads words, calls the library, turns its errors into one line.

Heavy modules are imported inside the commands, so that a wrong word is answered at once, before JAX
is imported and before anything is allocated or written.
"""

from __future__ import annotations

import argparse
import difflib
import os
import platform
import sys
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import NoReturn

from emerald_jax import __version__
from emerald_jax.config import ConfigError
from emerald_jax.presets import PRESETS
from emerald_jax.settings import parse_train

#: Commands and what they do, in the order of a first visit.
COMMANDS = {
    "train": "train an agent from a preset, or continue its run",
    "eval": "play episodes with a trained agent and report its return",
    "presets": "list the named configurations",
    "envs": "list the environments",
    "version": "tell the versions of this package and of what it stands on",
}

#: Errors that are a message to the user. Named, not imported: their modules are heavy, and one that
#: was never imported cannot have raised.
_USER_ERRORS = (
    ("emerald_jax.config", "ConfigError"),
    ("emerald_jax.envs.base", "EnvError"),
    ("emerald_jax.replay.store", "ReplayError"),
    ("emerald_jax.training.durable", "CheckpointError"),
    ("emerald_jax.training.loop", "RunError"),
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: the words after ``emerald-jax``; those of the process when None.

    Returns:
        The exit code: 0 done, 2 refused with one line on standard error, 130 interrupted, or what a
        training run ended with.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        try:
            return _run(words)
        finally:
            sys.stdout.flush()
    except BrokenPipeError:
        # `emerald-jax presets | head`: who has read enough wants no traceback. A training run's
        # broken pipe is another matter.
        if words[:1] in (["train"], ["eval"]) and not {"-h", "--help"} & set(words):
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        _complain("interrupted")
        return 130
    except Exception as error:
        if not isinstance(error, _user_errors()):
            raise
        _complain(str(error))
        return 2


def _run(words: list[str]) -> int:
    if not words:
        sys.stderr.write(_overview())
        return 2
    command, rest = words[0], words[1:]
    if command in ("-h", "--help", "help"):
        return _tell(_overview())
    if command == "--version":
        command = "version"
    if command not in COMMANDS:
        near = difflib.get_close_matches(command, COMMANDS, n=1)
        hint = f"nearest: {near[0]}" if near else f"commands: {', '.join(COMMANDS)}"
        raise ConfigError(f"unknown command {command!r}; {hint}")
    return _HANDLERS[command](rest)


def _train(words: list[str]) -> int:
    """``emerald-jax train PRESET [--settings]``."""
    if not words:
        _complain("name a preset, such as: emerald-jax train quickstart")
        sys.stderr.write(_preset_list())
        return 2
    config = parse_train(words)
    config.validate(max(1, config.devices))
    from emerald_jax.training.rundir import check_run_dir

    check_run_dir(config)
    from emerald_jax.training.loop import train

    return train(config).exit_code


def _eval(words: list[str]) -> int:
    """``emerald-jax eval RUN [--episodes N] [--mode sample|mode] [--seed S]``."""
    parser = _Parser("eval")
    parser.add_argument("run", metavar="RUN", help="run directory")
    parser.add_argument("--episodes", type=int, default=16, help="episodes to play (%(default)s)")
    parser.add_argument(
        "--mode",
        choices=("sample", "mode"),
        default="sample",
        help="sample actions from the policy, as the paper does, or take the likeliest one "
        "(%(default)s)",
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the play (%(default)s)")
    options = parser.parse_args(words)
    if options.episodes < 1:
        raise ConfigError(f"--episodes is {options.episodes}: it must be at least 1")
    from emerald_jax.training.rundir import read_config

    read_config(options.run)
    from emerald_jax.training.evaluate import evaluate_run

    report = evaluate_run(Path(options.run), options.episodes, mode=options.mode, seed=options.seed)
    return _tell(f"{report}\n")


def _presets(words: list[str]) -> int:
    """``emerald-jax presets``."""
    _Parser("presets").parse_args(words)
    return _tell(_preset_list())


def _envs(words: list[str]) -> int:
    """``emerald-jax envs``."""
    _Parser("envs").parse_args(words)
    from emerald_jax.envs.registry import list_envs

    states = {True: "ready", False: "needs {pip}"}
    return _tell(_table({e.name: states[e.available].format(pip=e.pip) for e in list_envs()}))


def _version(words: list[str]) -> int:
    """``emerald-jax version``."""
    _Parser("version").parse_args(words)
    rows = {"emerald-jax": __version__, "python": platform.python_version()}
    for package in ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy"):
        try:
            rows[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            rows[package] = "not installed"
    return _tell(_table(rows))


_HANDLERS = {
    "train": _train,
    "eval": _eval,
    "presets": _presets,
    "envs": _envs,
    "version": _version,
}


class _Parser(argparse.ArgumentParser):
    """argparse whose complaint is one line, like everybody else's here."""

    def __init__(self, command: str) -> None:
        super().__init__(
            prog=f"emerald-jax {command}", description=COMMANDS[command] + ".", allow_abbrev=False
        )

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message} ({self.prog} --help)")


def _user_errors() -> tuple[type[BaseException], ...]:
    """The user errors whose modules have been imported."""
    modules = ((sys.modules.get(module), name) for module, name in _USER_ERRORS)
    return tuple(getattr(module, name) for module, name in modules if hasattr(module, name))


def _overview() -> str:
    return (
        "usage: emerald-jax COMMAND ...\n\n"
        "EMERALD, masked latent transformer world models in JAX. A first run, some minutes on a "
        "CPU:\n\n    emerald-jax train quickstart\n\n"
        + _table(COMMANDS)
        + "\nemerald-jax COMMAND --help tells more.\n"
    )


def _preset_list() -> str:
    return _table({name: about for name, (about, _) in PRESETS.items()})


def _table(rows: dict[str, str]) -> str:
    width = max(map(len, rows)) + 2
    return "".join(f"{name:<{width}}{text}".rstrip() + "\n" for name, text in rows.items())


def _tell(text: str) -> int:
    sys.stdout.write(text)
    return 0


def _complain(text: str) -> None:
    sys.stderr.write(f"emerald-jax: {' '.join(text.split())}\n")
