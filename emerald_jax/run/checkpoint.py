"""Everything that knows orbax: steps of one directory, written in the background, read as numpy.

orbax writes a step under a temporary name and renames it into place, so a step is there whole or
not at all, whenever the process is killed. It does not notice flipped bits, and on a broken file
its reading threads die noisily; so every step carries a ``SHA256SUMS`` (``sha256sum -c`` reads it),
and orbax is let near a step's files only when they are what was written.

Checkpoints: one consistent point of a run per step, verified byte by byte when read.

On disk, readable with plain orbax and JSON::

    DIR/STEP/state/           the tree, an orbax StandardSave of host arrays (no device is recorded)
    DIR/STEP/facts/metadata   JSON: {"sha256", "content": {"step", "leaves", "facts"}}
    DIR/STEP/SHA256SUMS       of its files, for ``sha256sum -c``
    DIR/aside/STEP/           steps that a run went back behind; nothing reads them, nothing is lost

``leaves`` holds shape, dtype and digest of each array, ``sha256`` is the digest of ``content``. A
step that fails a check is *damaged*: it is reported, left as it is, and the next older one is used.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers

from emerald_jax.run.files import (
    CheckpointError,
    DamagedError,
    describe_leaves,
    file_digest,
    first_line,
    named_leaves,
    seal,
    sync_directory,
    unseal,
    write_atomic,
)

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


__all__ = ["CheckpointError", "Checkpointer", "DamagedError", "StepInfo"]

_log = logging.getLogger(__name__)


class StepInfo(NamedTuple):
    """What a listing tells about one step.

    Attributes:
        step: its number.
        nbytes: size of its files.
        digest: of its facts, which hold the digests of all leaves; empty when unreadable.
        problem: what is wrong with it, None when every leaf is what was saved.
    """

    step: int
    nbytes: int
    digest: str
    problem: str | None


class Checkpointer:
    """Saves and restores (tree, facts) pairs by step in one directory.

    A run first calls :meth:`restore` if there are :meth:`steps`, then :meth:`save`. Steps newer
    than the one restored belong to a past that this run did not take (they were damaged, or an
    older one was asked for); the first save sets them aside.
    """

    def __init__(self, directory: str | Path, keep: int = 3, *, read_only: bool = False) -> None:
        """Open a directory, or make it.

        Args:
            directory: where the steps lie.
            keep: newest steps kept.
            read_only: change nothing on disk, as evaluation and listing must.

        Raises:
            CheckpointError: if it holds something else, or cannot be written in.
        """
        self._disk = OrbaxSteps(directory, keep, read_only)
        self.directory = self._disk.directory
        self._last = -1  # newest step of this run's own past
        self._pending: int | None = None

    def steps(self) -> list[int]:
        """Steps on disk, oldest first, damaged ones included."""
        return self._disk.steps()

    def save(self, step: int, tree: Any, facts: dict[str, Any]) -> bool:
        """Begin to save; the files are written in the background.

        The arrays are copied before this returns, so the caller may donate them at once.

        Args:
            step: number of updates, larger than that of any step saved or restored before.
            tree: pytree of arrays (random keys as ``jax.random.key_data``).
            facts: JSON values.

        Returns:
            Whether the step is on its way, or already saved. False, with a warning, if it cannot
            be written: older steps stay, the next save tries again. A failure in the background is
            told by :meth:`wait`, or by a warning at the next save.

        Raises:
            TypeError: if ``facts`` is not JSON.
            CheckpointError: if this was opened read-only.
        """
        if self._disk.read_only:
            raise CheckpointError(f"{self.directory} was opened read-only: nothing can be saved")
        self.wait()
        if step and step == self._last and step in self.steps():
            return True  # but before the first update, what was played meanwhile is worth a save
        host = jax.tree.map(lambda leaf: np.array(leaf, copy=True), tree)
        content = {"step": step, "leaves": describe_leaves(named_leaves(host)), "facts": facts}
        sealed = seal(content)
        try:
            strangers = [s for s in self.steps() if s > self._last or s >= step]
            if strangers:
                self._disk.set_aside(strangers)
            # orbax cannot write empty arrays; their shapes are in the facts.
            full = jax.tree.map(lambda leaf: leaf if leaf.size else None, host)
            self._disk.write(step, full, sealed)
        except Exception as error:
            self._give_up(step, error)
            return False
        self._pending = step
        return True

    def wait(self) -> bool:
        """Wait until the last save is on disk.

        Returns:
            Whether it is (also when there was none); False, with a warning, if it failed.
        """
        if self._pending is None:
            return True
        step, self._pending = self._pending, None
        try:
            self._disk.finish(step)
        except Exception as error:
            self._give_up(step, error)
            return False
        self._last = step
        return True

    def poll(self) -> bool | None:
        """Notice, without waiting, that the last save has ended.

        Returns:
            As :meth:`wait`, once per save; None while it is under way, or when there is none.
        """
        if self._pending is None or self._disk.writing():
            return None
        return self.wait()

    def restore(
        self,
        abstract: Any,
        step: int | None = None,
        *,
        prefix: str = "",
        cast: Sequence[str] = (),
    ) -> tuple[Any, dict[str, Any], int]:
        """Load a tree, checking every byte.

        Args:
            abstract: pytree of ``jax.ShapeDtypeStruct`` (or arrays). Each leaf goes to its
                ``sharding``, those without one to the default device, whatever devices saved it;
                numpy arrays, and types that JAX would narrow, come back as numpy arrays.
            step: the step; None takes the newest sound one.
            prefix: name under which ``abstract`` lies in the saved tree, such as
                ``params/actor``, to load a part of it.
            cast: beginnings of names; floats below them may have been saved in another precision
                and come back in that of ``abstract``.

        Returns:
            The tree, the facts, the step.

        Raises:
            CheckpointError: if there is no (sound) step, or its arrays do not fit ``abstract``.
        """
        wanted = {
            "/".join(part for part in (prefix, name) if part): leaf
            for name, leaf in named_leaves(abstract).items()
        }

        def fits(candidate: int, saved: dict[str, Any]) -> None:
            self._check_fits(candidate, saved, wanted, partial=bool(prefix), cast=tuple(cast))

        leaves, facts, found = self._read_newest(step, fits)
        self._last = found
        placed = [_place(leaves[name], leaf) for name, leaf in wanted.items()]
        return jax.tree.unflatten(jax.tree.structure(abstract), placed), facts, found

    def read_numpy(
        self, step: int | None = None, *, prefix: str
    ) -> tuple[dict[str, np.ndarray], dict[str, Any], int]:
        """A part of the newest sound tree as it is, checked; its leaves by name below ``prefix``.

        Args:
            step: the step; None takes the newest sound one.
            prefix: as in :meth:`restore`.

        Returns:
            Name -> array, the facts, the step.

        Raises:
            CheckpointError: if there is no (sound) step, or nothing below ``prefix``.
        """
        leaves, facts, found = self._read_newest(step, lambda candidate, saved: None)
        start = f"{prefix}/"
        part = {n.removeprefix(start): leaf for n, leaf in leaves.items() if n.startswith(start)}
        if not part:
            raise CheckpointError(f"checkpoint {found} in {self.directory} holds no {prefix}")
        return part, facts, found

    def facts(self, step: int) -> dict[str, Any]:
        """The facts of one step, checked.

        Raises:
            DamagedError: if they are missing or altered.
        """
        return self._disk.read_facts(step)["facts"]

    def inspect(self, step: int) -> StepInfo:
        """Read one step whole and say how it is."""
        nbytes = sum(path.stat().st_size for path in self._disk.files(step))
        found = ""
        try:
            content = self._disk.read_facts(step)
            found = seal(content)["sha256"]
            self._read_leaves(step, content["leaves"])
        except DamagedError as error:
            return StepInfo(step, nbytes, found, str(error))
        return StepInfo(step, nbytes, found, None)

    def latest_sound(self) -> int | None:
        """The newest step of which every byte is what was saved; None if there is none."""
        return next((s for s in reversed(self.steps()) if self.inspect(s).problem is None), None)

    def close(self) -> None:
        """Finish the last save; safe to call twice."""
        self.wait()
        self._disk.drop()

    def __enter__(self) -> Checkpointer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _read_newest(
        self, step: int | None, check: Callable[[int, dict[str, Any]], None]
    ) -> tuple[dict[str, np.ndarray], dict[str, Any], int]:
        """Arrays by name, facts and number of ``step``, or of the newest sound one.

        Args:
            step: None takes the newest sound one.
            check: is shown each candidate's number and leaves before they are read; may refuse.
        """
        damaged = []
        for candidate in self._candidates(step):
            try:
                content = self._disk.read_facts(candidate)
                check(candidate, content["leaves"])
                leaves = self._read_leaves(candidate, content["leaves"])
            except DamagedError as error:
                _log.warning("checkpoint %d in %s is damaged: %s", candidate, self.directory, error)
                damaged.append(f"{candidate}: {error}")
                continue
            return leaves, content["facts"], candidate
        raise CheckpointError(f"no sound checkpoint in {self.directory} ({'; '.join(damaged)})")

    def _candidates(self, step: int | None) -> Iterable[int]:
        """Steps to try, in order."""
        steps = self.steps()
        if not steps:
            raise CheckpointError(f"no checkpoint in {self.directory}")
        if step is None:
            return reversed(steps)
        if step not in steps:
            known = ", ".join(map(str, steps))
            raise CheckpointError(f"{self.directory} has no checkpoint {step}, only {known}")
        return [step]

    def _read_leaves(self, step: int, expected: dict[str, Any]) -> dict[str, np.ndarray]:
        """Arrays of one step by name, each equal to its digest."""
        leaves = self._disk.read_leaves(step)
        for name, facts in expected.items():
            if 0 in facts["shape"]:
                leaves[name] = np.zeros(facts["shape"], jnp.dtype(facts["dtype"]))
        found = describe_leaves(leaves)
        for name in {**expected, **found}:
            if found.get(name) != expected.get(name):
                raise DamagedError(f"{name} is not what was saved")
        return leaves

    def _check_fits(
        self,
        step: int,
        saved: dict[str, Any],
        wanted: dict[str, Any],
        *,
        partial: bool,
        cast: tuple[str, ...],
    ) -> None:
        """Name the first leaf that differs between a checkpoint and the tree asked for."""
        for name in wanted if partial else {**wanted, **saved}:
            there, here = "absent", "absent"
            if name in saved:
                there = _shape(saved[name]["dtype"], saved[name]["shape"])
            if name in wanted:
                here = _shape(wanted[name].dtype, wanted[name].shape)
                if name.startswith(cast) and _floats(wanted[name].dtype, saved.get(name)):
                    here = _shape(saved[name]["dtype"], wanted[name].shape)
            if here != there:
                raise CheckpointError(
                    f"checkpoint {step} in {self.directory} does not fit: {name} is {there} in it "
                    f"and {here} in this run; use the settings it was saved with"
                )

    def _give_up(self, step: int, error: Exception) -> None:
        """Report a save that failed, and clear away what it left."""
        _log.debug("saving checkpoint %d failed", step, exc_info=error)
        self._disk.drop()
        older = ", ".join(str(s) for s in self.steps() if s <= self._last)
        kept = f"keeping {older}" if older else "there is no older one"
        reason = first_line(error)
        _log.warning(
            "checkpoint %d cannot be written to %s (%s): going on, %s",
            *(step, self.directory, reason, kept),
        )


def _place(array: np.ndarray, like: Any) -> Any:
    """``array`` where ``like`` says it belongs, in its precision."""
    if array.dtype != like.dtype:
        array = array.astype(like.dtype)
    narrowed = jax.dtypes.canonicalize_dtype(array.dtype) != array.dtype  # float64 without x64
    if narrowed or isinstance(like, np.ndarray | np.generic):
        return array
    return jax.device_put(array, getattr(like, "sharding", None))


def _floats(dtype: Any, saved: dict[str, Any] | None) -> bool:
    """Whether both a type and that of a saved leaf are floats."""
    types = [dtype, *([jnp.dtype(saved["dtype"])] if saved else [])]
    return len(types) == 2 and all(jnp.issubdtype(t, jnp.floating) for t in types)


def _shape(dtype: Any, shape: Sequence[int]) -> str:
    return f"{dtype}{list(shape)}"
