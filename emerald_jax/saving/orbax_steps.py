"""Everything that knows orbax: steps of one directory, written in the background, read as numpy.

orbax writes a step under a temporary name and renames it into place, so a step is there whole or
not at all, whenever the process is killed. It does not notice flipped bits, and on a broken file
its reading threads die noisily; so every step carries a ``SHA256SUMS`` (``sha256sum -c`` reads it),
and orbax is let near a step's files only when they are what was written.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers

from emerald_jax.saving.durable import (
    CheckpointError,
    DamagedError,
    file_digest,
    first_line,
    named_leaves,
    unseal,
)
from emerald_jax.saving.files import sync_directory, write_atomic

_log = logging.getLogger(__name__)

_STATE = "state"
_FACTS = "facts"
_ASIDE = "aside"
_SUMS = "SHA256SUMS"
#: What orbax writes after the digests were taken: times, and a mark that only has to be there.
_LATE = ("_CHECKPOINT_METADATA", "commit_success.txt")
_TEMPORARY = ".orbax-checkpoint-tmp"
_OURS = (_ASIDE, "metadata", "descriptor")  # the last two are names orbax uses


class OrbaxSteps:
    """The steps in a directory: each a tree of arrays and a JSON object.

    Attributes:
        directory: absolute path.
        read_only: nothing on disk is changed.
    """

    def __init__(self, directory: str | Path, keep: int, read_only: bool) -> None:
        """Open a directory, or make it; arguments and errors as ``Checkpointer``."""
        self.directory = Path(directory).absolute()
        self.read_only = read_only
        self._keep = keep
        self._manager: ocp.CheckpointManager | None = None
        _quiet_orbax()
        _check_directory(self.directory, read_only)

    def steps(self) -> list[int]:
        """Steps on disk, oldest first."""
        if not self.directory.is_dir():
            return []
        names = [p.name for p in self.directory.iterdir() if p.is_dir()]
        return sorted(int(name) for name in names if name.isdecimal())

    def files(self, step: int) -> list[Path]:
        """The files of one step."""
        return [p for p in (self.directory / str(step)).rglob("*") if p.is_file()]

    def write(self, step: int, tree: Any, facts: dict[str, Any]) -> None:
        """Begin to write a step, newer than all there are; oldest steps beyond ``keep`` go after.

        Args:
            step: its number.
            tree: pytree of numpy arrays; numpy, so that no device is recorded with them.
            facts: JSON values.

        Raises:
            Exception: whatever orbax meets, a full disk for one.
        """
        args = ocp.args.Composite(
            **{_STATE: ocp.args.StandardSave(tree), _FACTS: ocp.args.JsonSave(facts)}
        )
        if not self._opened().save(step, args=args):
            raise CheckpointError("orbax declined to save it")

    def writing(self) -> bool:
        """Whether a step is being written in the background."""
        return self._manager is not None and self._manager.is_saving_in_progress()

    def finish(self, step: int) -> None:
        """Wait until ``step`` is on disk.

        Raises:
            Exception: whatever orbax met in the background.
        """
        self._opened().wait_until_finished()
        self._opened().check_for_errors()
        if step not in self.steps():
            raise CheckpointError("it is not on disk")
        sync_directory(self.directory)

    def read_facts(self, step: int) -> dict[str, Any]:
        """The sealed facts of one step, opened.

        Raises:
            DamagedError: if they are missing, altered, or another step's.
        """
        path = self.directory / str(step) / _FACTS / "metadata"
        try:
            content = unseal(json.loads(path.read_bytes()))
        except (OSError, ValueError, DamagedError) as error:
            raise DamagedError(f"its facts cannot be used: {first_line(error)}") from error
        if content["step"] != step:
            raise DamagedError(f"it was saved as step {content['step']}")
        return content

    def read_leaves(self, step: int) -> dict[str, np.ndarray]:
        """Arrays of one step by name, as they are on disk.

        Raises:
            DamagedError: if a file is not what was written.
        """
        check_sums(self.directory / str(step))
        args = ocp.args.Composite(**{_STATE: ocp.args.StandardRestore()})
        try:
            leaves = named_leaves(self._opened().restore(step, args=args)[_STATE])
            return {name: np.asarray(leaf) for name, leaf in leaves.items()}
        except MemoryError:
            raise
        except Exception as error:  # orbax and tensorstore raise whatever a broken file leads to
            raise DamagedError(f"its arrays cannot be read: {first_line(error)}") from error

    def set_aside(self, steps: list[int]) -> None:
        """Move steps where nothing reads them; a second one of a number replaces the first.

        Raises:
            OSError: if that cannot be written.
        """
        self.drop()  # orbax remembers the steps it has seen
        (self.directory / _ASIDE).mkdir(exist_ok=True)
        for step in steps:
            target = self.directory / _ASIDE / str(step)
            shutil.rmtree(target, ignore_errors=True)
            os.rename(self.directory / str(step), target)
            _log.warning("checkpoint %d was set aside as %s", step, target)

    def drop(self) -> None:
        """Close orbax' manager and remove half-written steps, which only it could finish."""
        manager, self._manager = self._manager, None
        if manager is None:
            return
        try:
            manager.close()
        except Exception as error:  # tells again what the save has already told
            _log.debug("closing orbax failed", exc_info=error)
        if not self.read_only:
            _remove_temporaries(self.directory)

    def _sum_up(self) -> None:
        """Put the digests beside the files; orbax calls this just before it renames a step."""
        for draft in self.directory.glob(f"*{_TEMPORARY}*"):
            sum_up(draft)

    def _opened(self) -> ocp.CheckpointManager:
        """orbax' manager, opened when first needed."""
        if self._manager is None:
            policies = checkpoint_managers
            options = policies.CheckpointManagerOptions(
                create=not self.read_only,
                read_only=self.read_only,
                # Whoever calls save means it: an interval of 1, and preemptions on top.
                save_decision_policy=policies.AnySavePolicy(
                    [policies.FixedIntervalPolicy(1), policies.PreemptionCheckpointingPolicy()]
                ),
                preservation_policy=policies.LatestN(self._keep),
                async_options=ocp.options.AsyncOptions(post_finalization_callback=self._sum_up),
                # A damaged step's metadata must not keep the others from being opened.
                lightweight_initialize=True,
            )
            self._manager = ocp.CheckpointManager(self.directory, options=options)
        return self._manager


def _summable(directory: Path) -> list[Path]:
    """The files of a step that have a digest, in a fixed order."""
    apart = (_SUMS, *_LATE)
    return sorted(p for p in directory.rglob("*") if p.is_file() and p.name not in apart)


def sum_up(directory: Path) -> None:
    """Write the digests of a directory's files beside them."""
    lines = [f"{file_digest(p)}  {p.relative_to(directory)}" for p in _summable(directory)]
    write_atomic(directory / _SUMS, "\n".join([*lines, ""]).encode())


def check_sums(directory: Path, apart: Sequence[str] = ()) -> None:
    """Refuse a directory of which a file is missing, altered, or was added since :func:`sum_up`.

    Args:
        directory: a step, or an export.
        apart: names of files that are not checked.

    Raises:
        DamagedError: naming the file.
    """
    try:
        lines = (directory / _SUMS).read_text().splitlines()
        expected = {name: found for found, name in (line.split("  ", 1) for line in lines)}
        found = {str(p.relative_to(directory)): file_digest(p) for p in _summable(directory)}
    except (OSError, ValueError) as error:
        raise DamagedError(f"its files cannot be checked: {first_line(error)}") from error
    for name in sorted({**expected, **found}.keys() - set(apart)):
        if name not in found:
            raise DamagedError(f"{name} is missing")
        if found[name] != expected.get(name):
            raise DamagedError(f"{name} is not what was written")


def save_tree(path: Path, tree: Any) -> None:
    """Write a pytree of numpy arrays as plain orbax does.

    Raises:
        Exception: whatever orbax meets.
    """
    _quiet_orbax()
    with ocp.StandardCheckpointer() as files:
        files.save(path.absolute(), tree)


def load_tree(path: Path) -> Any:
    """A pytree of numpy arrays as :func:`save_tree` wrote it; check its files first.

    Raises:
        DamagedError: if it cannot be read.
    """
    _quiet_orbax()
    try:
        with ocp.PyTreeCheckpointer() as files:
            return files.restore(path.absolute(), restore_args=None)
    except MemoryError:
        raise
    except Exception as error:  # orbax and tensorstore raise whatever a broken file leads to
        raise DamagedError(f"its arrays cannot be read: {first_line(error)}") from error


def _check_directory(directory: Path, read_only: bool) -> None:
    """Refuse a directory that is not for checkpoints; make it, and clear what a kill left."""
    if directory.exists() and not directory.is_dir():
        raise CheckpointError(f"{directory} is a file, not a directory of checkpoints")
    names = [p.name for p in directory.iterdir()] if directory.exists() else []
    foreign = [n for n in names if not (n.isdecimal() or n in _OURS or _TEMPORARY in n)]
    if foreign and not any(n.isdecimal() for n in names):
        raise CheckpointError(
            f"{directory} is not a directory of checkpoints: it holds {sorted(foreign)[0]}"
        )
    if read_only:
        return
    try:
        directory.mkdir(parents=True, exist_ok=True)
        probe = directory / f"probe{_TEMPORARY}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise CheckpointError(f"{directory} cannot be written in: {error.strerror}") from error
    _remove_temporaries(directory)


def _remove_temporaries(directory: Path) -> None:
    for path in directory.glob(f"*{_TEMPORARY}*"):
        shutil.rmtree(path, ignore_errors=True)


def _quiet_orbax() -> None:
    """Keep orbax' own log lines, tracebacks among them, off the user's screen; ours say it once."""
    absl = logging.getLogger("absl")
    if _not_from_orbax not in absl.filters:
        absl.addFilter(_not_from_orbax)


def _not_from_orbax(record: logging.LogRecord) -> bool:
    return f"{os.sep}orbax{os.sep}" not in record.pathname
