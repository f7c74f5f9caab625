"""A run directory: its files, its settings, and its rows of JSON. Nothing here imports JAX.

A run may be resumed with other settings. Refused is one that decides the *shape* of anything saved,
or what saved *data* mean: what a replay record is, what an action does, what a return counts. Those
not in :data:`FREE` are refused, so a new one is safe by default. ``envs.time_limit`` is refused,
since returns and lengths in the log would not be comparable. ``behavior.gamma`` is free: no
discount is stored, and the critic adapts to it as it adapts to a better policy.
"""

from __future__ import annotations

import contextlib
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
from emerald_jax.run.files import LOCK_FILE, write_atomic, write_json

CONFIG_FILE = "config.json"
METRICS_FILE = "metrics.jsonl"
EPISODES_FILE = "episodes.jsonl"
#: Episodes in the format of Crafter's own recorder.
STATS_FILE = "stats.jsonl"
#: One row per resume: open episodes of host environments end there, as they cannot be saved.
RESUMES_FILE = "resumes.jsonl"
PICTURES_DIR = "pictures"
TENSORBOARD_DIR = "tensorboard"
CHECKPOINTS_DIR = "checkpoints"
REPLAY_DIR = "replay"
#: In each checkpoint: JSON with the keys ``step``, ``leaves``, ``run`` and ``replay``.
METADATA_FILE = "metadata.json"

#: Rows kept in memory while they cannot be written; beyond this the oldest are dropped.
_WAITING_ROWS = 10_000

_log = logging.getLogger(__name__)

#: Settings that may change; ``group.*`` is a complete group.
FREE = (
    *("preset", "steps", "max_minutes", "train_ratio", "seed", "logdir", "devices"),
    *("envs.workers", "envs.processes", "envs.worker_timeout", "envs.max_worker_failures"),
    *("model.dropout", "model.dtype", "model.remat", "model.unimix"),
    *("replay.best_of", "replay.capacity", "replay.prefill"),
    *("loss.*", "behavior.*", "optim.*", "log.*"),
)

#: The settings that decide how many updates are due after so many steps.
PACE = ("train_ratio", "replay.prefill")


class Difference(NamedTuple):
    """One setting, such as ``optim.model_lr``, that differs from the checkpoint's."""

    name: str
    before: Any
    now: Any

    @property
    def free(self) -> bool:
        """Whether a run may be resumed with it."""
        if self.name == "init_from":  # of no effect on a resumed run, unless it names other weights
            return not self.now
        return self.name in FREE or f"{self.name.partition('.')[0]}.*" in FREE

    def __str__(self) -> str:
        return f"{self.name}: {self.before!r} -> {self.now!r}"


def compare_settings(before: Config, now: Config) -> list[Difference]:
    """The settings that differ, in the order of ``config.py``."""
    old, new = _flatten(before), _flatten(now)
    return [Difference(name, old[name], value) for name, value in new.items() if value != old[name]]


def refuse_other_data(logdir: Path, differences: Sequence[Difference]) -> None:
    """Refuse settings with which a run cannot be resumed: ConfigError names both values of each."""
    refused = [d for d in differences if not d.free]
    if any(d.name == "init_from" for d in refused):
        raise ConfigError(f"--init-from is for a new run: choose another logdir than {logdir}")
    if refused:
        spelled = ((d.name, *("empty" if x == "" else x for x in d[1:])) for d in refused)
        values = ", ".join(f"{name} {before}, not {now}" for name, before, now in spelled)
        raise ConfigError(
            f"logdir {logdir} holds a run with {values}: choose another --logdir, or continue it "
            "with its own settings"
        )


def read_metadata(step: Path) -> tuple[dict[str, Any], str]:
    """The metadata of one checkpoint directory, unchecked, and the name of its file.

    OSError, ValueError, KeyError or TypeError if it is missing or malformed.
    """
    old = "facts/metadata"  # of versions up to a5675e2: {"content": {..., "facts": {"run": ...}}}
    name = old if (step / old).is_file() else METADATA_FILE
    found = json.loads((step / name).read_bytes())
    if name == old:
        found = {"replay": None, **found["content"], **found["content"]["facts"]}
    if missing := {"step", "leaves", "run", "replay"} - {*found}:
        raise KeyError(f"{min(missing)} is missing")
    return found, name


def _saved_settings(logdir: Path) -> Iterator[tuple[str, Any]]:
    """Version and settings in the readable checkpoints, newest first; digests are not checked."""
    for step in sorted(saved_steps(logdir), reverse=True):
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            found, _ = read_metadata(logdir / CHECKPOINTS_DIR / str(step))
            yield found.get("version", "0.1.0"), found["run"]["config"]


def saved_config(logdir: Path) -> Config | None:
    """The settings of the newest checkpoint that this version can read, if there is one."""
    for _, settings in _saved_settings(logdir):
        with contextlib.suppress(ValueError, TypeError, AttributeError):  # or ConfigError
            return Config.from_dict(settings)
    return None


def _flatten(config: Config) -> dict[str, Any]:
    """Values by dotted name; settings have one level of groups."""
    flat = {}
    for name, value in config.to_dict().items():
        group = {f"{name}.{key}": x for key, x in value.items()} if isinstance(value, dict) else {}
        flat |= group or {name: value}
    return flat


def run_dir(config: Config) -> Path:
    """The directory of ``config``'s run: ``config.logdir``, or runs/PRESET-SEED.

    With another environment than the preset's it is runs/PRESET-ENV-SEED.
    """
    # Imported here, so that loading an agent does not need it.
    from emerald_jax.presets import PRESETS

    if config.logdir:
        return Path(config.logdir).expanduser()
    parts = [config.preset, str(config.seed)]
    if config.preset in PRESETS and config.env != PRESETS[config.preset][1].env:
        parts.insert(1, re.sub(r"[^A-Za-z0-9._]+", "-", config.env).strip("-."))
    return Path("runs", "-".join(parts))


def write_config(logdir: Path, config: Config) -> None:
    """Write ``config`` to ``logdir/config.json``, atomically."""
    write_json(Path(logdir) / CONFIG_FILE, config.to_dict())


def read_config(run: str | Path) -> Config:
    """The settings of a run.

    Args:
        run: a run directory, or an export.

    Raises:
        ConfigError: when ``run`` is neither, or its config.json cannot be read.
    """
    run = Path(run).expanduser()
    path = run / CONFIG_FILE
    if not run.exists():
        raise ConfigError(f"{run} does not exist: give the directory of a run")
    if not run.is_dir():
        raise ConfigError(f"{run} is a file: give the directory of a run")
    if not path.is_file():
        raise ConfigError(f"{run} is not a run: it holds no {CONFIG_FILE}")
    try:
        return Config.from_dict(json.loads(path.read_text(encoding="utf-8")))
    except ConfigError as error:
        version, _ = next(_saved_settings(run), ("", None))
        writer = f"another version ({version})" if version else "another version"
        raise ConfigError(f"{path} was written by {writer}: {error}") from error
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise ConfigError(f"{path} cannot be read: {error}") from error


def check_run_dir(config: Config) -> Path:
    """Refuse a run directory in which ``config`` cannot be trained; write nothing.

    A directory without a checkpoint has nothing to resume, so any settings may start there.

    Returns:
        The absolute path of the directory, which may not exist yet.

    Raises:
        ConfigError: when it is a file, is not writable, holds other files, or a run that cannot be
            resumed with these settings; or when the weights of ``init_from`` do not exist.
    """
    try:
        # Absolute, as an environment may change the working directory.
        logdir = run_dir(config).absolute()
    except OSError as error:
        raise ConfigError(f"the working directory cannot be used: {error.strerror}") from error
    if logdir.exists() and not logdir.is_dir():
        raise ConfigError(f"logdir {logdir} is a file: choose another --logdir")
    existing = next(path for path in (logdir, *logdir.parents) if path.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
        raise ConfigError(f"logdir {logdir} cannot be written in: choose another --logdir")
    begun = has_checkpoints(logdir)
    if config.init_from and not begun:
        read_config(config.init_from)
    # The lock and drafts may be left from a process that ended before it wrote anything else.
    names = [path.name for path in logdir.glob("*")]
    if all(name == LOCK_FILE or re.fullmatch(r"\..*\.tmp", name) for name in names):
        return logdir
    if not begun and CONFIG_FILE not in names:
        raise ConfigError(f"logdir {logdir} holds files but no run: choose another --logdir")
    if begun:
        # config.json may have been written by a later start that saved nothing.
        saved = saved_config(logdir) or read_config(logdir)
        refuse_other_data(logdir, compare_settings(saved, config))
    return logdir


def saved_steps(logdir: Path) -> list[int]:
    """Numbers of the checkpoints in a run directory, sound or not, in no order."""
    paths = (logdir / CHECKPOINTS_DIR).glob("*")
    return [int(path.name) for path in paths if path.name.isdecimal()]


def has_checkpoints(logdir: Path) -> bool:
    """Whether there is a checkpoint in a run directory, sound or not."""
    return bool(saved_steps(logdir))


def clear_drafts(logdir: Path) -> None:
    """Delete the drafts of killed processes; the run must be locked."""
    for path in logdir.glob(".*.tmp"):
        path.unlink(missing_ok=True)


def read_rows(path: str | Path) -> list[dict[str, Any]]:
    """The rows of a JSON-lines file, oldest first; empty without a file.

    Lines that are not JSON objects are skipped: a killed process can leave half a line.
    """
    rows = []
    with contextlib.suppress(FileNotFoundError, NotADirectoryError), open(path, "rb") as file:
        for line in file:
            with contextlib.suppress(ValueError):
                row = json.loads(line)
                rows += [row] if isinstance(row, dict) else []
    return rows


def _dump_rows(rows: Iterable[Mapping[str, Any]]) -> bytes:
    return "".join(json.dumps(_plain(row), allow_nan=False) + "\n" for row in rows).encode()


def _plain(value: Any) -> Any:
    """``value`` in JSON's own types; NaN and infinity become null."""
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
    """Appends rows to a JSON-lines file, unbuffered; the file is made with the first row.

    Rows that cannot be written, as on a full disk, are kept in memory until the next call; half a
    row is removed at once.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: IO[bytes] | None = None
        self._waiting: deque[bytes] = deque(maxlen=_WAITING_ROWS)
        self._warned = False

    def append(self, row: Mapping[str, Any]) -> None:
        """Add one row; NaN and infinity become null. A full disk is a warning."""
        self._waiting.append(_dump_rows([row]))
        try:
            if self._file is None:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                if self.path.exists() and not self.path.read_bytes().endswith(b"\n"):
                    # Half a line of a killed process would be joined with the first new row.
                    self.replace(read_rows(self.path))
                self._file = self.path.open("ab", buffering=0)
            while self._waiting:
                self._write(self._waiting[0])
                self._waiting.popleft()
            self._warned = False
        except OSError as error:
            if not self._warned:
                _log.warning("%s cannot be written to (%s): continuing", self.path, error.strerror)
            self._warned = True

    def rewind(self, step: int) -> list[dict[str, Any]]:
        """Drop the rows whose ``step`` is later than ``step``; return the others, oldest first."""
        rows = [row for row in read_rows(self.path) if row.get("step", 0) <= step]
        if self.path.exists():
            self.replace(rows)
        return rows

    def replace(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Replace the content of the file by ``rows``, atomically."""
        self.close()
        write_atomic(self.path, _dump_rows(rows))

    def close(self) -> None:
        """Close the file; the next :meth:`append` opens it again."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _write(self, row: bytes) -> None:
        """Append one row, complete or not at all."""
        end = self._file.seek(0, os.SEEK_END)
        written = 0
        try:
            while written < len(row):
                written += self._file.write(row[written:])
        except OSError:
            self._file.truncate(end)
            raise
