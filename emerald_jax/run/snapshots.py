"""A run's saved points: checkpoints and the replay beside them, saved and restored as one.

In the run directory: ``checkpoints/STEP/…`` (see ``checkpoint``) and ``replay/*.npz`` (see
``replay_files``). A checkpoint's facts are ``{"run": what the loop gave, "replay": manifest}``.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any, NamedTuple

from emerald_jax.replay import Replay
from emerald_jax.run.checkpoint import Checkpointer, DamagedError, StepInfo
from emerald_jax.run.directory import CHECKPOINTS_DIR
from emerald_jax.run.replay_files import ChunkHealth, ReplayFiles

_log = logging.getLogger(__name__)

REPLAY_DIR = "replay"
#: What the model remembers of its past, in its compute type: bfloat16 on a GPU, float32 on a CPU.
REMEMBERED = ("carry/", "acting/")


class Restored(NamedTuple):
    """One saved point.

    Attributes:
        tree: pytree of arrays.
        facts: what was given to :meth:`Snapshots.save`.
        step: number of updates.
        lost: replay chunks that were skipped.
    """

    tree: Any
    facts: dict[str, Any]
    step: int
    lost: tuple[str, ...]


class PointInfo(NamedTuple):
    """What a listing tells about one saved point.

    Attributes:
        checkpoint: the checkpoint itself.
        env_steps: environment steps at which it was saved; None when its facts are unreadable.
        chunks: replay chunks it needs.
        rows: rows of the replay in them.
        lost: those that are missing, truncated or altered.
    """

    checkpoint: StepInfo
    env_steps: int | None
    chunks: int
    rows: int
    lost: tuple[str, ...]


def inspect_run(run: str | Path) -> list[PointInfo]:
    """Every saved point of a run, read whole; nothing is changed.

    A run that is being trained may delete its oldest point meanwhile; that one is left out.

    Args:
        run: a run directory.

    Raises:
        CheckpointError: if its checkpoints directory holds something else.
    """
    found, chunks = [], ChunkHealth(Path(run) / REPLAY_DIR)
    with Checkpointer(Path(run) / CHECKPOINTS_DIR, read_only=True) as checkpoints:
        for step in checkpoints.steps():
            info = checkpoints.inspect(step)
            if step not in checkpoints.steps():
                continue
            try:
                facts = checkpoints.facts(step)
                manifest, env_steps = facts["replay"], facts["run"].get("env_steps")
            except (DamagedError, KeyError, AttributeError):
                found.append(PointInfo(info, None, 0, 0, ()))
                continue
            listed = manifest["chunks"]
            lost = tuple(chunk["file"] for chunk in listed if not chunks.sound(chunk))
            rows = sum(chunk["stop"] - chunk["start"] for chunk in listed)
            found.append(PointInfo(info, env_steps, len(listed), rows, lost))
    return found


class Snapshots:
    """Saves and restores a run; the run directory must be locked (``lock.RunLock``)."""

    def __init__(self, run: str | Path, keep: int = 3) -> None:
        """Open a run directory for training.

        Args:
            run: the run directory; made if it does not exist.
            keep: newest checkpoints kept.

        Raises:
            CheckpointError: if it holds something else there, or cannot be written in.
        """
        self.checkpoints = Checkpointer(Path(run) / CHECKPOINTS_DIR, keep)
        self.files = ReplayFiles(Path(run) / REPLAY_DIR)

    def steps(self) -> list[int]:
        """Steps on disk, oldest first."""
        return self.checkpoints.steps()

    def advance(self, replay: Replay) -> None:
        """Call after every append: writes full chunks ahead, in the background."""
        self.files.advance(replay)

    def save(self, step: int, tree: Any, facts: dict[str, Any], replay: Replay) -> bool:
        """Save one consistent point; arguments, result and errors as ``Checkpointer.save``.

        Args:
            step: number of updates.
            tree: pytree of arrays.
            facts: JSON values.
            replay: the store, as it is now.
        """
        # Before the checkpoint that refers to them: chunks alone harm nothing.
        manifest = self.files.save(replay)
        if manifest is None:
            return False
        saved = self.checkpoints.save(step, tree, {"run": facts, "replay": manifest})
        self._prune()
        return saved

    def wait(self) -> bool:
        """See ``Checkpointer.wait``."""
        return self.checkpoints.wait()

    def poll(self) -> bool | None:
        """See ``Checkpointer.poll``."""
        return self.checkpoints.poll()

    def restore(self, abstract: Any, replay: Replay, step: int | None = None) -> Restored:
        """Load a saved point, the replay in place; errors as ``Checkpointer.restore``.

        Args:
            abstract: pytree of ``jax.ShapeDtypeStruct`` or arrays.
            replay: an empty store.
            step: the step; None takes the newest sound one.
        """
        tree, facts, found = self.checkpoints.restore(abstract, step, cast=REMEMBERED)
        lost = self.files.load(facts["replay"], replay).lost
        return Restored(tree, facts["run"], found, lost)

    def close(self) -> None:
        """Finish what is being written; safe to call twice."""
        self.checkpoints.close()
        self.files.close()

    def __enter__(self) -> Snapshots:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _prune(self) -> None:
        """Delete replay chunks that no checkpoint needs."""
        try:
            manifests = [self.checkpoints.facts(step)["replay"] for step in self.steps()]
        except DamagedError as error:  # who knows what that one needs: until it is rotated out
            _log.debug("replay chunks are not pruned: %s", error)
            return
        self.files.prune(manifests)
