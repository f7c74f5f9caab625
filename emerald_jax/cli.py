"""The command ``emerald-jax``: finds the command, turns the library's errors into one line.

Each command is a file in ``commands/``, imported when it is called.
"""

from __future__ import annotations

import difflib
import importlib
import sys
from collections.abc import Callable, Sequence

from emerald_jax.commands.words import COMMANDS, complain, table, tell
from emerald_jax.config import ConfigError
from emerald_jax.process import expand_home, machine_error, prepare_process, safe_output

#: Errors that are a message to the user. Named, not imported: their modules are heavy, and one that
#: was never imported cannot have raised.
_USER_ERRORS = (
    ("emerald_jax.config", "ConfigError"),
    ("emerald_jax.envs.base", "EnvError"),
    ("emerald_jax.replay.store", "ReplayError"),
    ("emerald_jax.run.files", "CheckpointError"),
    ("emerald_jax.training.loop", "RunError"),
)

#: Commands that do nothing but print.
_PRINTERS = ("presets", "envs", "version", "--version", "checkpoints", "check-env", "help")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: the words after ``emerald-jax``; those of the process when None.

    Returns:
        The exit code: 0 done, 2 refused with one line on standard error, 130 interrupted, or what a
        training run ended with.
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
            complain(f"standard output cannot be written to: {lost}")
            code = 1
    return code


def _one_line(run: Callable[[list[str]], int], words: list[str]) -> int:
    """:func:`guarded`, when output is safe."""
    try:
        prepare_process()
        return run(expand_home(words))
    except KeyboardInterrupt:
        complain("interrupted")
        return 130
    except Exception as error:
        text = str(error) if isinstance(error, _user_errors()) else machine_error(error)
        if not text:
            raise
        complain(text)
        return 2


def _run(words: list[str]) -> int:
    if not words:
        sys.stderr.write(_overview())
        return 2
    command, rest = words[0], words[1:]
    if command in ("-h", "--help", "help"):
        return tell(_overview())
    if command == "--version":
        command = "version"
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


def _overview() -> str:
    return (
        "usage: emerald-jax COMMAND ...\n\n"
        "EMERALD, masked latent transformer world models in JAX. A first run, some minutes on a "
        "CPU:\n\n    emerald-jax train quickstart\n\n"
        + table({name: about for name, (_, about) in COMMANDS.items()})
        + "\nemerald-jax COMMAND --help tells more.\n"
    )
