"""A run on disk as one object: settings, rows, checkpoints, recordings, evaluations, agent.

Settings, rows and evaluations are read without JAX.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from emerald_jax.config import Config
from emerald_jax.run.directory import (
    REPLAY_DIR,
    SUMS_FILE,
    DamagedError,
    file_digest,
    read_config,
    read_rows,
)
from emerald_jax.run.pretrained import find_run

if TYPE_CHECKING:
    from emerald_jax.agent import Agent
    from emerald_jax.run.recordings import Recordings


class Point(NamedTuple):
    """The state of one checkpoint.

    Attributes:
        step: number of updates.
        nbytes: size of the checkpoint's files, without the replay.
        digest: SHA-256 of SHA256SUMS, and so of everything; empty when it is missing.
        problem: why the checkpoint cannot be restored; None when it can.
        env_steps: environment steps so far; None when the metadata is unreadable.
        chunks: number of replay chunks that belong to it.
        rows: rows of the replay in them.
        lost: file names of chunks that are missing, truncated or altered.
    """

    step: int
    nbytes: int
    digest: str
    problem: str | None
    env_steps: int | None
    chunks: int
    rows: int
    lost: tuple[str, ...]


class Run:
    """Read access to a run directory. Each access reads the disk, so a running run can be followed.

    Attributes:
        path: the run directory, absolute.
    """

    def __init__(self, path: str | Path) -> None:
        """Check that there is a run.

        Args:
            path: a run directory; ``~`` is expanded.

        Raises:
            ConfigError: when it is not a run directory.
        """
        self.path = find_run(path).absolute()
        read_config(self.path)

    def __repr__(self) -> str:
        return f"Run({str(self.path)!r})"

    @property
    def config(self) -> Config:
        """The settings in config.json."""
        return read_config(self.path)

    def rows(self, name: str = "metrics") -> list[dict[str, Any]]:
        """The rows of one log, oldest first; empty when nothing is logged.

        Args:
            name: ``metrics``, ``episodes``, ``stats`` or ``resumes``.
        """
        return read_rows(self.path / f"{name}.jsonl")

    @property
    def checkpoints(self) -> list[Point]:
        """The state of every checkpoint, oldest first; reads all bytes, and changes nothing.

        A checkpoint that a training process deletes meanwhile is left out. CheckpointError if the
        directory of checkpoints holds other files.
        """
        from emerald_jax.run.checkpoint import Store
        from emerald_jax.run.replay_files import ReplayFiles

        found, intact = [], ReplayFiles(self.path / REPLAY_DIR).checker()
        store = Store(self.path, read_only=True)
        for step in store.steps():
            folder = store.directory / str(step)
            problem, env_steps, chunks = None, None, []
            try:
                metadata = store.metadata(step)
                env_steps = metadata["run"].get("env_steps")
                chunks = (metadata["replay"] or {"chunks": []})["chunks"]
                store.verify(step)
            except DamagedError as error:
                problem = str(error)
            try:
                nbytes = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
                digest = file_digest(folder / SUMS_FILE) if (folder / SUMS_FILE).exists() else ""
            except FileNotFoundError:
                continue
            if step in store.steps():
                whole = [chunk for chunk in chunks if chunk.get("envs", [0])[0] == 0]
                rows = sum(chunk["stop"] - chunk["start"] for chunk in whole)
                lost = tuple(chunk["file"] for chunk in chunks if not intact(chunk))
                replay = (env_steps, len(chunks), rows, lost)
                found.append(Point(step, nbytes, digest, problem, *replay))
        return found

    @property
    def recordings(self) -> Recordings:
        """Recorded frames, from the replay on disk."""
        from emerald_jax.run.recordings import Recordings

        return Recordings(self.path)

    @property
    def evaluations(self) -> list[dict[str, Any]]:
        """Results of ``emerald-jax eval``, of the oldest weights first."""
        from emerald_jax.run.evaluations import read_evaluations

        return read_evaluations(self.path)

    def agent(self, checkpoint: int | None = None) -> Agent:
        """The trained agent; see :func:`emerald_jax.load`."""
        from emerald_jax.run.weights import load

        return load(self.path, checkpoint)
