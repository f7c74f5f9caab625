"""Checkpoints: one consistent point of a run per step, verified byte by byte when it is read.

``checkpoints/STEP/`` holds ``state/`` (an orbax checkpoint of host arrays), ``metadata.json``
(version, step, leaves, run, replay chunks) and ``SHA256SUMS``. It is written under a temporary name
in the background and renamed when complete: a kill leaves it complete or absent. orbax does not
notice flipped bits, so digests are checked first. A step that fails is *damaged*: it is reported
and left, and the next older one is used. ``checkpoints/aside/`` holds steps newer than one that the
run went back to; it is never read.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from flax.traverse_util import unflatten_dict

from emerald_jax import __version__
from emerald_jax.run.directory import (
    CHECKPOINTS_DIR,
    METADATA_FILE,
    REPLAY_DIR,
    CheckpointError,
    DamagedError,
    check_sums,
    first_line,
    read_metadata,
    saved_steps,
    sync_directory,
    write_json,
    write_sums,
    writing_in,
)
from emerald_jax.run.hosts import ALONE, Hosts

if TYPE_CHECKING:
    from emerald_jax.replay import Replay
    from emerald_jax.run.replay_files import ReplayFiles

_log = logging.getLogger(__name__)

#: Seconds until the next attempt after a save that failed, for example on a full disk.
RETRY_S = 60.0
#: Share of the interval that the first save is expected to take; later ones are measured.
EXPECTED = 0.1

_STATE = "state"
_ASIDE = "aside"
_TEMPORARY = ".orbax-checkpoint-tmp"  # orbax's own name for drafts
#: Recurrent memories, saved in the compute type: bfloat16 on a GPU, float32 on a CPU.
CARRIES = ("carry/", "acting/")

#: Orbax counts the saves of the whole process: two at the same time may deadlock.
_ONE_SAVE = threading.Lock()


class Restored(NamedTuple):
    """One saved point.

    Attributes:
        tree: pytree of arrays.
        metadata: the JSON values given to :meth:`Store.save`.
        step: number of updates.
        lost: file names of replay chunks that could not be read.
    """

    tree: Any
    metadata: dict[str, Any]
    step: int
    lost: tuple[str, ...]


class Store(AbstractContextManager):
    """The checkpoints of a run, each a tree of arrays, JSON metadata and the replay.

    A resumed run calls :meth:`restore` before :meth:`save`. Steps newer than the restored one
    (damaged, or skipped on request) are moved to ``aside/`` by the first save. The run directory
    must be locked (:class:`RunLock`) unless the store is read-only. Not thread-safe.

    On several hosts all call :meth:`save`, :meth:`wait` and :meth:`restore` together. The first one
    writes the arrays, and each the replay of its own environments.

    Attributes:
        hosts: those that train the run.
    """

    def __init__(
        self,
        run: str | Path,
        keep: int = 3,
        *,
        read_only: bool = False,
        hosts: Hosts = ALONE,
    ) -> None:
        """Open the checkpoints of a run directory, of which the newest ``keep`` stay.

        The directory is made if it does not exist, unless ``read_only``. CheckpointError if
        ``RUN/checkpoints`` holds other files, or is not writable.
        """
        self.directory = Path(run).absolute() / CHECKPOINTS_DIR
        self._keep, self._read_only = keep, read_only
        self._last = -1  # newest step of this run's own history
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="checkpoints")
        self._pending: tuple[int, Future[None]] | None = None
        self._written: bool | None = None  # whether the last save succeeded, once that is known
        self.hosts = hosts
        _check_directory(self.directory, read_only or not hosts.first)

    @cached_property
    def _replay(self) -> ReplayFiles:
        from emerald_jax.run.replay_files import ReplayFiles  # loading weights does not need it

        return ReplayFiles(self.directory.parent / REPLAY_DIR, self.hosts)

    def steps(self) -> list[int]:
        """Steps on disk, oldest first, damaged ones included."""
        return saved_steps(self.directory.parent)

    def metadata(self, step: int) -> dict[str, Any]:
        """One step's metadata.json; DamagedError if it is missing, altered, or another step's."""
        try:
            found, name = read_metadata(self.directory / str(step))
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise DamagedError(f"its metadata cannot be read: {first_line(error)}") from error
        check_sums(self.directory / str(step), only=name)
        if found["step"] != step:
            raise DamagedError(f"it was saved as step {found['step']}")
        return found

    def advance(self, replay: Replay) -> None:
        """Write full replay chunks in the background; call it after every append."""
        self._replay.advance(replay)

    def writing_ahead(self) -> bool:
        """Whether :meth:`advance` is writing a chunk."""
        return self._replay.writing()

    def save(
        self, step: int, tree: Any, metadata: dict[str, Any], replay: Replay | None = None
    ) -> bool:
        """Begin to save one consistent point of JSON values and arrays; written in the background.

        The arrays are copied first, so the caller may donate them. ``step``, the number of updates,
        exceeds all steps saved or restored before. False, with a warning, if it cannot be written.
        """
        if self._read_only:
            raise CheckpointError(f"{self.directory} was opened read-only: nothing can be saved")
        self.wait()
        # Step 0 is written again: prefill adds records without updates.
        if step and step == self._last and step in self.hosts.exchange(self.steps())[0]:
            return True
        manifest = None
        # Chunks first: a chunk that no checkpoint lists is harmless.
        if replay is not None:
            manifests = self.hosts.exchange(self._replay.save(replay))
            if None in manifests:
                return False
            chunks = [chunk for manifest in manifests for chunk in manifest["chunks"]]
            manifest = {**manifests[0], "chunks": chunks}
        self._written = None
        if not self.hosts.first:
            self._pending = step, self._writer.submit(lambda: None)
            self._prune()
            return True
        host = jax.tree.map(lambda leaf: np.array(leaf, copy=True), tree)
        content = {"version": __version__, "step": step, "leaves": describe(named_leaves(host))}
        content = json.loads(json.dumps({**content, "run": metadata, "replay": manifest}))
        abandoned = [s for s in self.steps() if s > self._last or s >= step]
        self._pending = step, self._writer.submit(self._write, step, host, content, abandoned)
        self._prune()
        return True

    def _prune(self) -> None:
        """Delete the replay chunks that no checkpoint needs."""
        try:
            manifests = [self.metadata(step)["replay"] for step in self.steps()]
        except DamagedError as error:  # it may need any chunk: keep all until it is deleted
            _log.debug("replay chunks are not pruned: %s", error)
        else:
            self._replay.prune(manifest for manifest in manifests if manifest)

    def wait(self) -> bool:
        """Wait for the last save; False, with a warning, if it failed."""
        if self._pending is None:
            return True
        step, _ = self._pending
        well = self.hosts.exchange(self._outcome())[0]
        self._pending = None
        if well:
            self._last = step
        return well

    def _outcome(self) -> bool:
        """Wait for what this host writes; False, with a warning, if it failed."""
        if self._written is None:
            self._written = self._finish(*self._pending)
        return self._written

    def _finish(self, step: int, job: Future[None]) -> bool:
        try:
            job.result()
        except Exception as error:  # orbax raises many types, of a full disk for example
            _log.debug("saving checkpoint %d failed", step, exc_info=error)
            _remove_drafts(self.directory)
            older = ", ".join(str(s) for s in self.steps() if s <= self._last)
            _log.warning(
                "checkpoint %d cannot be written to %s (%s): continuing, %s",
                *(step, self.directory, first_line(error)),
                f"keeping {older}" if older else "there is no older one",
            )
            return False
        return True

    def poll(self) -> bool | None:
        """The result of the last save, once; None while it is running, or without one."""
        if self._pending is None or self._written is not None or not self._pending[1].done():
            return None
        return self._outcome() if self.hosts.count > 1 else self.wait()

    def restore(
        self,
        abstract: Any,
        replay: Replay | None = None,
        step: int | None = None,
        *,
        cast: Sequence[str] = CARRIES,
    ) -> Restored:
        """Load ``step``, or the newest sound one, checking every byte; fill an empty ``replay``.

        ``abstract`` is a pytree of ``jax.ShapeDtypeStruct`` or arrays; each leaf goes to its
        ``sharding``, or to the default device. numpy arrays, and types that JAX would narrow, come
        back as numpy arrays. Floats below the names of ``cast`` may have been saved in another
        precision. CheckpointError if there is no (sound) step, or its arrays do not fit.
        """
        if not self.hosts.first:  # the first host decides which one is sound
            step = self.hosts.exchange(None)[0]
        leaves, metadata, found = self._read_newest(step)
        if self.hosts.first:
            self.hosts.exchange(found)
        saved, wanted = metadata["leaves"], named_leaves(abstract)
        for name in {**wanted, **saved}:
            if wrong := _misfit(name, saved.get(name), wanted.get(name), tuple(cast)):
                raise CheckpointError(
                    f"checkpoint {found} in {self.directory} does not fit: {wrong} in this run; "
                    "use the settings it was saved with"
                )
        self._last = found
        placed = [_place(leaves[name], leaf) for name, leaf in wanted.items()]
        tree = jax.tree.unflatten(jax.tree.structure(abstract), placed)
        if replay is not None and metadata["replay"] is None:
            raise CheckpointError(f"checkpoint {found} in {self.directory} has no replay")
        lost = () if replay is None else self._replay.load(metadata["replay"], replay)
        return Restored(tree, metadata["run"], found, lost)

    def read(self, prefix: str, step: int | None = None) -> Restored:
        """The part of a step below ``prefix`` as nested dicts of numpy arrays; see restore."""
        leaves, metadata, found = self._read_newest(step)
        start = f"{prefix}/"
        part = {n.removeprefix(start): leaf for n, leaf in leaves.items() if n.startswith(start)}
        if not part:
            raise CheckpointError(f"checkpoint {found} in {self.directory} holds no {prefix}")
        return Restored(nest(part), metadata["run"], found, ())

    def close(self) -> None:
        """Finish the last save; safe to call twice."""
        if self._pending is not None:  # other hosts may have ended
            self._outcome()
        self._writer.shutdown()
        if "_replay" in self.__dict__:
            self._replay.close()

    def __exit__(self, *_: object) -> None:
        self.close()

    def verify(self, step: int) -> None:
        """Read a step; DamagedError if a byte is not the one that was written."""
        self._read_leaves(step, self.metadata(step)["leaves"])

    def _write(self, step: int, tree: Any, metadata: dict[str, Any], abandoned: list[int]) -> None:
        """Write a step, move ``abandoned`` steps aside, delete the oldest beyond ``keep``."""
        draft = self.directory / f"{step}{_TEMPORARY}"
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir()
        # orbax cannot write empty arrays; their shapes are in the metadata.
        save_tree(draft / _STATE, jax.tree.map(lambda leaf: leaf if leaf.size else None, tree))
        write_json(draft / METADATA_FILE, metadata)
        write_sums(draft)
        for old in abandoned:
            target = self.directory / _ASIDE / str(old)
            target.parent.mkdir(exist_ok=True)
            shutil.rmtree(target, ignore_errors=True)
            os.rename(self.directory / str(old), target)
            _log.warning("checkpoint %d was moved to %s", old, target)
        os.rename(draft, self.directory / str(step))
        sync_directory(self.directory)
        for old in self.steps()[: -self._keep]:
            # Under a draft's name first, so that a kill leaves no half of a step.
            doomed = self.directory / f"{old}{_TEMPORARY}"
            os.rename(self.directory / str(old), doomed)
            shutil.rmtree(doomed, ignore_errors=True)

    def _read_newest(self, step: int | None) -> tuple[dict[str, np.ndarray], dict[str, Any], int]:
        """Arrays by name, metadata and number of ``step``, or of the newest sound one."""
        damaged = []
        steps = self.steps()
        if not steps:
            raise CheckpointError(f"no checkpoint in {self.directory}")
        if step is not None and step not in steps:
            known = ", ".join(map(str, steps))
            raise CheckpointError(f"{self.directory} has no checkpoint {step}, only {known}")
        for candidate in reversed(steps) if step is None else [step]:
            try:
                metadata = self.metadata(candidate)
                leaves = self._read_leaves(candidate, metadata["leaves"])
            except DamagedError as error:
                _log.warning("checkpoint %d in %s is damaged: %s", candidate, self.directory, error)
                damaged.append(f"{candidate}: {error}")
                continue
            return leaves, metadata, candidate
        raise CheckpointError(f"no sound checkpoint in {self.directory} ({'; '.join(damaged)})")

    def _read_leaves(self, step: int, expected: dict[str, Any]) -> dict[str, np.ndarray]:
        """All arrays of one step by name; DamagedError if a file is not the one written."""
        check_sums(self.directory / str(step))
        leaves = named_leaves(load_tree(self.directory / str(step) / _STATE))
        for name, leaf in expected.items():
            if 0 in leaf["shape"]:
                leaves[name] = np.zeros(leaf["shape"], jnp.dtype(leaf["dtype"]))
        known = {name: (tuple(leaf["shape"]), leaf["dtype"]) for name, leaf in expected.items()}
        found = {name: (leaf.shape, str(leaf.dtype)) for name, leaf in leaves.items()}
        if wrong := dict(known.items() ^ found.items()):
            raise DamagedError(f"{min(wrong)} is not the array that was saved")
        return leaves


class SaveClock:
    """Keeps checkpoints on disk at most one interval apart.

    A checkpoint counts from the moment its writing has ended, but its content is as old as the
    start of the writing. So the next one starts earlier by the time that the last one took to
    write, but by half the interval at most, or a slow disk would be written to without pause.
    """

    def __init__(self, interval_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        """The first checkpoint is to be on disk ``interval_s`` seconds from now."""
        self._interval, self._clock = interval_s, clock
        self._took = EXPECTED * interval_s
        self.begun()

    def begun(self) -> None:
        """A save begins now."""
        self._begun = self._clock()
        self._due = self._begun + self._interval - min(self._took, self._interval / 2)

    def ended(self, well: bool) -> None:
        """The last save has ended, successfully or not."""
        now = self._clock()
        if well:
            self._took = now - self._begun
            self._due = self._begun + self._interval - min(self._took, self._interval / 2)
        else:
            self._due = now + min(self._interval, RETRY_S)

    def due(self) -> bool:
        """Whether a save should begin."""
        return self._clock() > self._due


def _check_directory(directory: Path, read_only: bool) -> None:
    """Refuse a directory that holds other files; make it, and delete old drafts."""
    if directory.is_file():
        raise CheckpointError(f"{directory} is a file, not a directory of checkpoints")
    names = sorted(p.name for p in directory.iterdir()) if directory.exists() else []
    foreign = [n for n in names if not (n.isdecimal() or n == _ASIDE or _TEMPORARY in n)]
    if foreign and not any(name.isdecimal() for name in names):
        raise CheckpointError(f"{directory} is no directory of checkpoints: it holds {foreign[0]}")
    if read_only:
        return
    with writing_in(directory):
        directory.mkdir(parents=True, exist_ok=True)
        probe = directory / f"probe{_TEMPORARY}"
        probe.touch()
        probe.unlink()
    _remove_drafts(directory)


def _remove_drafts(directory: Path) -> None:
    for path in directory.glob(f"*{_TEMPORARY}*"):
        shutil.rmtree(path, ignore_errors=True)


def named_leaves(tree: Any) -> dict[str, Any]:
    """Leaves by name, such as ``params/actor/out/kernel``; dict keys, attributes and indices."""
    paths, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {jax.tree_util.keystr(k, simple=True, separator="/"): leaf for k, leaf in paths}


def nest(leaves: Mapping[str, Any]) -> dict[str, Any]:
    """Invert :func:`named_leaves` with dicts: ``{"a/b": x}`` -> ``{"a": {"b": x}}``."""
    return unflatten_dict(leaves, sep="/")


def save_tree(path: Path, tree: Any) -> None:
    """Write a pytree of numpy arrays with orbax, which raises many types of errors."""
    _quiet_orbax()
    with _ONE_SAVE, ocp.StandardCheckpointer(**_this_host()) as files:
        files.save(path.absolute(), tree)


def load_tree(path: Path) -> Any:
    """A pytree of numpy arrays from :func:`save_tree`; DamagedError if it cannot be read."""
    _quiet_orbax()
    try:
        options = _this_host()
        handler = ocp.PyTreeCheckpointHandler(**options)
        with ocp.Checkpointer(handler, **options) as files:
            return files.restore(path.absolute(), restore_args=None)
    except MemoryError:
        raise
    except Exception as error:  # orbax and tensorstore raise many types
        raise DamagedError(f"its arrays cannot be read: {first_line(error)}") from error


def _this_host() -> dict[str, Any]:
    """Options of orbax for reading and writing in this process, without waiting for the others."""
    if not jax.distributed.is_initialized():
        return {}
    index = jax.process_index()
    options = {"primary_host": index, "active_processes": {index}}
    options["barrier_sync_key_prefix"] = f"host{index}"
    return {"multiprocessing_options": ocp.options.MultiprocessingOptions(**options)}


def _quiet_orbax() -> None:
    """Hide orbax's own log lines and tracebacks; ours report the same in one line."""
    absl = logging.getLogger("absl")
    if _not_from_orbax not in absl.filters:
        absl.addFilter(_not_from_orbax)


def _not_from_orbax(record: logging.LogRecord) -> bool:
    return f"{os.sep}orbax{os.sep}" not in record.pathname


def describe(leaves: Mapping[str, np.ndarray]) -> dict[str, dict[str, Any]]:
    """Shape and type of each array, as JSON values."""
    return {n: {"shape": list(x.shape), "dtype": str(x.dtype)} for n, x in leaves.items()}


def _misfit(name: str, saved: Any, wanted: Any, cast: tuple[str, ...]) -> str:
    """How a saved leaf differs from the one wanted, either may be absent; empty if it fits."""
    there = f"{saved['dtype']}{list(saved['shape'])}" if saved else "absent"
    here = f"{wanted.dtype}{list(wanted.shape)}" if wanted is not None else "absent"
    if saved and wanted is not None and name.startswith(cast):
        types = (jnp.dtype(saved["dtype"]), wanted.dtype)
        if all(jnp.issubdtype(t, jnp.floating) for t in types):
            here = f"{saved['dtype']}{list(wanted.shape)}"
    return "" if here == there else f"{name} is {there} in it and {here}"


def _place(array: np.ndarray, like: Any) -> Any:
    """``array`` on the device and in the precision of ``like``."""
    array = array.astype(like.dtype, copy=False)
    narrowed = jax.dtypes.canonicalize_dtype(array.dtype) != array.dtype  # float64 without x64
    if narrowed or isinstance(like, np.ndarray | np.generic):
        return array
    return jax.device_put(array, getattr(like, "sharding", None))
