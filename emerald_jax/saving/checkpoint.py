"""Checkpoints: one consistent point of a run per step, verified byte by byte when read.

On disk, readable with plain orbax and JSON::

    DIR/STEP/state/           the tree, an orbax StandardSave of host arrays (no device is recorded)
    DIR/STEP/facts/metadata   JSON: {"sha256", "content": {"step", "leaves", "facts"}}
    DIR/STEP/SHA256SUMS       of its files, for ``sha256sum -c``
    DIR/aside/STEP/           steps that a run went back behind; nothing reads them, nothing is lost

``leaves`` holds shape, dtype and digest of each array, ``sha256`` is the digest of ``content``. A
step that fails a check is *damaged*: it is reported, left as it is, and the next older one is used.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from emerald_jax.saving.durable import (
    CheckpointError,
    DamagedError,
    describe_leaves,
    first_line,
    named_leaves,
    seal,
)
from emerald_jax.saving.orbax_steps import OrbaxSteps

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
