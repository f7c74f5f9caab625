"""The command ``emerald-jax``: finds the command and turns the library's errors into one line."""

from __future__ import annotations

import difflib
import importlib
import os
import sys
from collections.abc import Callable, Sequence

from emerald_jax.commands import COMMANDS, table, write_error, write_out
from emerald_jax.config import ConfigError
from emerald_jax.process import expand_home, machine_error, prepare_process, safe_output

#: Errors that are a message to the user. Listed by name: importing their modules would be slow, and
#: a module that was never imported cannot have raised.
_USER_ERRORS = (
    ("emerald_jax.config", "ConfigError"),
    ("emerald_jax.envs.base", "EnvError"),
    ("emerald_jax.replay.store", "ReplayError"),
    ("emerald_jax.run.directory", "CheckpointError"),
    ("emerald_jax.agent.state", "RunError"),
)

#: Commands that do nothing but print.
_PRINTERS = ("presets", "envs", "version", "--version", "checkpoints", "check-env", "help")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command with ``argv``, by default the process's arguments after ``emerald-jax``.

    Returns the exit code: 0 success, 2 refused with one line on standard error, 130 interrupted, or
    that of a training run.
    """
    return guarded(_run, list(sys.argv[1:] if argv is None else argv))


def guarded(run: Callable[[list[str]], int], words: list[str]) -> int:
    """Call ``run(words)``; turn an error meant for the user into one line and an exit code.

    The exit code reports what the command did, even if its output could not be written. Only a
    command that does nothing but print fails then, unless its reader has closed the pipe.
    """
    with safe_output() as output:
        code = _one_line(run, words)
        output.flush()
        lost = words[:1] and words[0] in _PRINTERS and output.error
        if code == 0 and lost and not isinstance(lost, BrokenPipeError):
            write_error(f"standard output cannot be written to: {lost}")
            code = 1
    return code


def _one_line(run: Callable[[list[str]], int], words: list[str]) -> int:
    try:
        prepare_process()
        return run(expand_home(words))
    except KeyboardInterrupt:
        write_error("interrupted")
        return 130
    except Exception as error:
        known = str(error) if isinstance(error, _user_errors()) else machine_error(error)
        text = known or _platform_error()
        if not text:
            raise
        write_error(text)
        return 2


def _run(arguments: list[str]) -> int:
    if not arguments:
        sys.stderr.write(_overview())
        return 2
    command, *rest = arguments
    if command in ("-h", "--help", "help"):
        return write_out(_overview())
    if command == "--version":
        command = "version"
    if command == "bench":
        raise ConfigError("bench is not a command: run python -m benchmarks in a checkout")
    if command not in COMMANDS:
        near = difflib.get_close_matches(command, COMMANDS, n=1)
        hint = f"nearest: {near[0]}" if near else f"commands: {', '.join(COMMANDS)}"
        raise ConfigError(f"unknown command {command!r}; {hint}")
    module = importlib.import_module(f"emerald_jax.commands.{COMMANDS[command][0]}")
    return getattr(module, f"run_{command.replace('-', '_')}")(rest)


def _user_errors() -> tuple[type[BaseException], ...]:
    """The user errors whose modules have been imported."""
    modules = ((sys.modules.get(module), name) for module, name in _USER_ERRORS)
    return tuple(getattr(module, name) for module, name in modules if hasattr(module, name))


def _platform_error() -> str:
    """The line for a ``JAX_PLATFORMS`` that JAX cannot use; empty if JAX works."""
    wanted, jax = os.environ.get("JAX_PLATFORMS"), sys.modules.get("jax")
    if not wanted or jax is None:
        return ""
    try:
        jax.devices()
    except (AssertionError, RuntimeError):  # JAX asserts if a known platform has no plugin
        advice = 'unset it to use the best one, or install it, such as pip install -e ".[cuda]"'
        return f"JAX has no platform for JAX_PLATFORMS={wanted}: {advice}"
    return ""


def _overview() -> str:
    return (
        "usage: emerald-jax COMMAND ...\n\n"
        "EMERALD, masked latent transformer world models in JAX. A first run, some minutes on a "
        "CPU:\n\n    emerald-jax train quickstart\n\n"
        + table({name: about for name, (_, about) in COMMANDS.items()})
        + "\nemerald-jax COMMAND --help lists its options.\n"
    )
