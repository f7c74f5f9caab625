"""Continuing a run with other settings: which may change on the way, and which must not.

A setting is refused when it decides the *shape* of anything saved, or what saved *data* mean: what
a record of the replay is, what an action does, what a return counts. Everything that only decides
what is learned from those data from now on, how fast and on what machine, may change. What is not
listed here is refused, so a new setting is safe until somebody thought about it.

Two cases that are not obvious: ``envs.time_limit`` is refused, because returns and episode lengths
in the log would no longer count the same thing; ``behavior.gamma`` may change, because no discount
is stored anywhere, and the critic follows it like it follows a better policy.

Nothing here imports JAX: a wrong setting is refused before anything heavy wakes up.

A run directory: where it lies, its config.json, and its rows of JSON.

A run directory is self-describing: ``config.json`` makes it a run, everything else in it can be
read without the code that wrote it. Nothing here imports JAX, so that a wrong directory is refused
before anything heavy wakes up.
"""

from __future__ import annotations

import json
import logging
import math
import os
import re
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple

from emerald_jax.config import Config, ConfigError
from emerald_jax.presets import PRESETS
from emerald_jax.run.files import write_atomic

#: Settings that may change, whole groups as ``group.*``.
FREE = (
    "preset",
    "steps",
    "max_minutes",
    "train_ratio",
    "seed",
    "logdir",
    "devices",
    "envs.workers",
    "envs.processes",
    "envs.worker_timeout",
    "envs.max_worker_failures",
    "model.dropout",
    "model.dtype",
    "model.remat",
    "model.unimix",
    "loss.*",
    "behavior.*",
    "optim.*",
    "replay.best_of",
    "replay.capacity",
    "replay.prefill",
    "log.*",
)

#: The settings that say how many updates are owed for the steps taken.
PACE = ("train_ratio", "replay.prefill")


class Difference(NamedTuple):
    """One setting that is not what the checkpoint was saved with.

    Attributes:
        name: such as ``optim.model_lr``.
        before: the checkpoint's value.
        now: ours.
    """

    name: str
    before: Any
    now: Any

    @property
    def free(self) -> bool:
        """Whether a run may go on with it."""
        if self.name == "init_from":  # it has begun; only naming another beginning is a mistake
            return not self.now
        return self.name in FREE or f"{self.name.partition('.')[0]}.*" in FREE

    def __str__(self) -> str:
        return f"{self.name}: {self.before!r} -> {self.now!r}"


def compare_settings(before: Config, now: Config) -> list[Difference]:
    """The settings that differ, in the order of ``config.py``."""
    old, new = (dict(_flatten(config.to_dict())) for config in (before, now))
    return [Difference(name, old[name], value) for name, value in new.items() if value != old[name]]


def refuse_other_data(logdir: Path, differences: Sequence[Difference]) -> None:
    """Refuse settings that a run cannot go on with.

    Raises:
        ConfigError: naming each of them with the run's value and ours.
    """
    refused = [d for d in differences if not d.free]
    if any(d.name == "init_from" for d in refused):
        raise ConfigError(
            f"logdir {logdir} holds a run that has begun: --init-from is for a new one, "
            "choose another --logdir"
        )
    if refused:
        values = ", ".join(f"{d.name} {_spell(d.before)}, not {_spell(d.now)}" for d in refused)
        raise ConfigError(
            f"logdir {logdir} holds a run with {values}: choose another --logdir, or continue it "
            "with its own settings"
        )


def saved_config(logdir: Path) -> Config | None:
    """The settings of the newest checkpoint whose facts can be read, without checking digests.

    Returns:
        None when there is none, or when another version wrote it.
    """
    steps = [p for p in (logdir / "checkpoints").glob("*") if p.name.isdecimal()]
    for step in sorted(steps, key=lambda path: -int(path.name)):
        try:
            facts = json.loads((step / "facts" / "metadata").read_bytes())
            return Config.from_dict(facts["content"]["facts"]["run"]["config"])
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            continue  # ConfigError, of another version's settings, is a ValueError
    return None


def _spell(value: Any) -> str:
    return "empty" if value == "" else str(value)


def _flatten(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


CONFIG_FILE = "config.json"
METRICS_FILE = "metrics.jsonl"
EPISODES_FILE = "episodes.jsonl"
PICTURES_DIR = "pictures"
TENSORBOARD_DIR = "tensorboard"
#: Left by a run that was refused before it wrote anything; ``lock.py`` makes it.
LOCK_FILE = "lock"
#: Checkpoints by number of updates; ``checkpoint.py`` says what is in one.
CHECKPOINTS_DIR = "checkpoints"

#: Rows that a full disk may keep waiting in memory; older ones are given up.
_WAITING_ROWS = 10_000

_log = logging.getLogger(__name__)


def run_dir(config: Config) -> Path:
    """The directory of ``config``'s run: ``config.logdir``, or runs/PRESET-SEED.

    With another environment than the preset's it is runs/PRESET-ENV-SEED.
    """
    if config.logdir:
        return Path(config.logdir)
    parts = [config.preset, str(config.seed)]
    if config.preset in PRESETS and config.env != PRESETS[config.preset][1].env:
        parts.insert(1, re.sub(r"[^A-Za-z0-9._]+", "-", config.env).strip("-."))
    return Path("runs", "-".join(parts))


def write_config(logdir: Path, config: Config) -> None:
    """Write ``config`` to ``logdir/config.json``, whole or not at all."""
    text = json.dumps(config.to_dict(), indent=2) + "\n"
    write_atomic(Path(logdir) / CONFIG_FILE, text.encode())


def read_config(run: str | Path) -> Config:
    """The configuration a run was made with.

    Args:
        run: a run directory.

    Raises:
        ConfigError: when ``run`` is no run directory, or its config.json cannot be read.
    """
    run = Path(run)
    path = run / CONFIG_FILE
    if not run.exists():
        raise ConfigError(f"{run} does not exist: give the directory of a run")
    if not run.is_dir():
        raise ConfigError(f"{run} is a file: give the directory of a run")
    if not path.is_file():
        raise ConfigError(f"{run} is no run: it holds no {CONFIG_FILE}")
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        return Config.from_dict(values)
    except ConfigError as error:
        raise ConfigError(f"{path} was written by another version: {error}") from error
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise ConfigError(f"{path} cannot be read: {error}") from error


def check_run_dir(config: Config) -> Path:
    """Refuse a run directory that ``config`` must not be trained in; write nothing.

    A directory without a checkpoint holds nothing that a run could continue, so any settings may
    begin there.

    Returns:
        The directory, which may not exist yet.

    Raises:
        ConfigError: when it is a file, cannot be written, holds something that is no run, or a run
            that cannot go on with these settings (``continuing.py`` says which); or when a new run
            is to start from weights (``init_from``) that are not there.
    """
    logdir = run_dir(config)
    if logdir.exists() and not logdir.is_dir():
        raise ConfigError(f"logdir {logdir} is a file: choose another --logdir")
    _refuse_unwritable(logdir)
    begun = has_checkpoints(logdir)
    if config.init_from and not begun:
        read_config(config.init_from)
    if not logdir.exists() or all(_means_nothing(path) for path in logdir.iterdir()):
        return logdir
    if not begun and not (logdir / CONFIG_FILE).is_file():
        raise ConfigError(
            f"logdir {logdir} holds files but no run ({CONFIG_FILE} is missing): "
            "choose another --logdir"
        )
    if begun:
        # The checkpoints know better than a config.json that a later sitting may have written.
        saved = saved_config(logdir) or read_config(logdir)
        refuse_other_data(logdir, compare_settings(saved, config))
    return logdir


def has_checkpoints(logdir: Path) -> bool:
    """Whether a run in ``logdir`` has saved anything, sound or not."""
    return any(path.name.isdecimal() for path in (logdir / CHECKPOINTS_DIR).glob("*"))


def clear_drafts(logdir: Path) -> None:
    """Remove the half-written files that killed processes left; the run must be locked."""
    for path in logdir.glob(".*.tmp"):
        path.unlink(missing_ok=True)


def _means_nothing(path: Path) -> bool:
    """Whether a file was left by a run that was refused, or killed, before it wrote anything."""
    return path.name == LOCK_FILE or (path.name.startswith(".") and path.suffix == ".tmp")


def _refuse_unwritable(logdir: Path) -> None:
    """Ask the nearest directory that exists whether it can be written."""
    existing = logdir.absolute()
    while not existing.exists():
        existing = existing.parent
    if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
        raise ConfigError(f"logdir {logdir} cannot be written in: choose another --logdir")


def read_rows(path: str | Path) -> list[dict[str, Any]]:
    """The rows of a JSON-lines file, oldest first; none when there is no file.

    A line that is no JSON object is left out: a run that was killed can leave half a line.
    """
    path = Path(path)
    if not path.is_file():
        return []
    with path.open(encoding="utf-8", errors="replace") as file:
        return [row for row in map(_parse_row, file) if row is not None]


def _parse_row(line: str) -> dict[str, Any] | None:
    try:
        row = json.loads(line)
    except ValueError:
        return None
    return row if isinstance(row, dict) else None


def _dump_rows(rows: Iterable[Mapping[str, Any]]) -> str:
    return "".join(json.dumps(_plain(row), allow_nan=False) + "\n" for row in rows)


def _plain(value: Any) -> Any:
    """``value`` in JSON's own types; what JSON cannot say (NaN, infinity) becomes null."""
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    if value is None or isinstance(value, str | bool | int):
        return value
    if hasattr(value, "tolist"):  # NumPy and JAX arrays and scalars
        return _plain(value.tolist())
    number = float(value)
    return number if math.isfinite(number) else None


class JsonLines:
    """Appends rows to a JSON-lines file, each in the file as soon as it is written.

    The file appears with the first row. Rows that cannot be written, as on a full disk, wait for
    the next one; half a row is taken back at once.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: IO[bytes] | None = None
        self._waiting: deque[bytes] = deque(maxlen=_WAITING_ROWS)
        self._warned = False

    def append(self, row: Mapping[str, Any]) -> None:
        """Add one row; NaN and infinity become null. A full disk is a warning."""
        self._waiting.append(_dump_rows([row]).encode())
        try:
            if self._file is None:
                self._open()
            while self._waiting:
                self._write(self._waiting[0])
                self._waiting.popleft()
            self._warned = False
        except OSError as error:
            if not self._warned:
                _log.warning("%s cannot be written to (%s): going on", self.path, error.strerror)
            self._warned = True

    def rewind(self, step: int) -> list[dict[str, Any]]:
        """Drop the rows whose ``step`` is later than ``step``, and any half-written line.

        Returns:
            The rows that stay, oldest first.
        """
        rows = [row for row in read_rows(self.path) if row.get("step", 0) <= step]
        if self.path.exists():
            self.replace(rows)
        return rows

    def replace(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Put ``rows`` in the place of everything that is there, at once or not at all."""
        self.close()
        write_atomic(self.path, _dump_rows(rows).encode())

    def close(self) -> None:
        """Close the file; the next :meth:`append` opens it again."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _write(self, row: bytes) -> None:
        """Put one row at the end of the file, whole or not at all."""
        end = self._file.seek(0, os.SEEK_END)
        written = 0
        try:
            while written < len(row):
                written += self._file.write(row[written:])
        except OSError:
            self._file.truncate(end)
            raise

    def _open(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if self.path.exists() and not self.path.read_bytes().endswith(b"\n"):
            # A killed run's half line would swallow the first row written after it.
            write_atomic(self.path, _dump_rows(read_rows(self.path)).encode())
        self._file = self.path.open("ab", buffering=0)
