"""A run directory: its files, digests, settings, rows of JSON and lock. Nothing here imports JAX.

Files are written completely or not at all. ``SHA256SUMS`` in a directory lists the digest of each
of its files, as ``sha256sum`` writes it; it is the only digest scheme of the package.

A run may be resumed with other settings. Refused is one that decides the *shape* of anything saved,
or what saved *data* mean: what a replay record is, what an action does, what a return counts. Those
not in :data:`FREE` are refused, so a new one is safe by default. ``envs.time_limit`` is refused,
since returns and lengths in the log would not be comparable. ``behavior.gamma`` is free: no
discount is stored, and the critic adapts to it as it adapts to a better policy.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import logging
import math
import os
import re
import shutil
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple

from emerald_jax.config import Config, ConfigError
from emerald_jax.run.pretrained import find_run

_log = logging.getLogger(__name__)

LOCK_FILE, SUMS_FILE = "lock", "SHA256SUMS"
#: Files that have no digest in checkpoints of versions up to a5675e2; they hold only times.
_LATE = ("_CHECKPOINT_METADATA", "commit_success.txt")
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
#: The manifest of a data set that ``emerald-jax collect`` writes, and that of an export.
DATASET_FILE, EXPORT_FILE = "dataset.json", "export.json"
#: In each checkpoint: JSON with the keys ``step``, ``leaves``, ``run`` and ``replay``.
METADATA_FILE = "metadata.json"
#: Rows kept in memory while they cannot be written; beyond this the oldest are dropped.
_WAITING_ROWS = 10_000

#: Settings that may change; ``group.*`` is a complete group.
FREE = (
    *("preset", "steps", "max_minutes", "train_ratio", "seed", "logdir", "devices", "distributed"),
    *("envs.workers", "envs.processes", "envs.worker_timeout", "envs.max_worker_failures"),
    *("model.dropout", "model.dtype", "model.remat", "model.unimix"),
    *("replay.best_of", "replay.capacity", "replay.compress", "replay.prefill"),
    *("loss.*", "behavior.*", "optim.*", "log.*"),
)

#: The settings that decide how many updates are due after so many steps.
PACE = ("train_ratio", "replay.prefill")


class CheckpointError(RuntimeError):
    """Something saved cannot be used or written; the message is one line with a way out."""


class DamagedError(CheckpointError):
    """A saved file is missing, truncated or altered; an older one may still be intact."""


class RunInUseError(CheckpointError):
    """Another process uses this run directory."""


def write_atomic(path: Path, data: bytes | memoryview) -> None:
    """Write a complete file to disk; after a kill or a power cut the old content is still there.

    Parent directories are made. OSError when the disk is full or not writable.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # The process id keeps two processes from writing to the same draft.
    draft = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with draft.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(draft, path)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise
    with contextlib.suppress(OSError):  # not every file system can sync a directory
        sync_directory(path.parent)


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file by :func:`write_atomic`."""
    write_atomic(path, (json.dumps(value, indent=2) + "\n").encode())


def sync_directory(path: Path) -> None:
    """Flush a directory to disk, so that a rename inside it survives a power cut."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextlib.contextmanager
def writing_in(directory: str | Path) -> Iterator[None]:
    """Turn an OSError of the block into a CheckpointError of one line."""
    try:
        yield
    except OSError as error:
        raise CheckpointError(f"{directory} cannot be written in: {error.strerror}") from error


def first_line(error: BaseException) -> str:
    """The error's first line, at most 160 characters (orbax prints complete trees)."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    if "RESOURCE_EXHAUSTED" in str(error):  # tensorstore's name for it
        return "No space left on device"
    lines = str(error).strip().splitlines()
    return (lines[0] if lines else type(error).__name__)[:160]


def file_digest(path: Path) -> str:
    """SHA-256 of a file in hex, read in blocks."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_sums(directory: Path) -> None:
    """Write SHA256SUMS of all files below ``directory``."""
    lines = [f"{file_digest(directory / name)}  {name}\n" for name in _files_of(directory)]
    write_atomic(directory / SUMS_FILE, "".join(lines).encode())


def check_sums(directory: Path, *, only: str = "") -> None:
    """Refuse a directory in which a file is missing, altered, or was added since write_sums.

    ``only`` names a single file to check. DamagedError names the bad one.
    """
    try:
        lines = (directory / SUMS_FILE).read_text(encoding="utf-8").splitlines()
        expected = {name: found for found, name in (line.split("  ", 1) for line in lines)}
        late = {name for name in _files_of(directory) if Path(name).name in _LATE} - {*expected}
        names = {only} if only else {*expected, *_files_of(directory)} - late
        for name in sorted(names):
            if not (directory / name).is_file():
                raise DamagedError(f"{name} is missing")
            if file_digest(directory / name) != expected.get(name):
                raise DamagedError(f"{name} is not the file that was written")
    except (OSError, ValueError) as error:
        raise DamagedError(f"its files cannot be checked: {first_line(error)}") from error


def _files_of(directory: Path) -> list[str]:
    """Names of all files below ``directory`` but SHA256SUMS, in a fixed order."""
    paths = sorted(p for p in directory.rglob("*") if p.is_file() and p.name != SUMS_FILE)
    return [str(path.relative_to(directory)) for path in paths]


@contextlib.contextmanager
def new_directory(target: Path) -> Iterator[Path]:
    """Make a directory that appears complete, by a rename, or not at all.

    ``target`` must not exist. Yields the draft to write to; SHA256SUMS is added at the end.
    """
    draft = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    shutil.rmtree(draft, ignore_errors=True)
    try:
        draft.mkdir(parents=True)
        yield draft
        write_sums(draft)
        os.rename(draft, target)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


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
    old, new = flat_settings(before), flat_settings(now)
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
    for step in reversed(saved_steps(logdir)):
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            found, _ = read_metadata(logdir / CHECKPOINTS_DIR / str(step))
            yield found.get("version", "0.1.0"), found["run"]["config"]


def saved_config(logdir: Path) -> Config | None:
    """The settings of the newest checkpoint that this version can read, if there is one."""
    for _, settings in _saved_settings(logdir):
        with contextlib.suppress(ValueError, TypeError, AttributeError):  # or ConfigError
            return Config.from_dict(settings)
    return None


def flat_settings(config: Config) -> dict[str, Any]:
    """Values of all settings by dotted name; they have one level of groups."""
    flat = {}
    for name, value in config.to_dict().items():
        group = {f"{name}.{key}": x for key, x in value.items()} if isinstance(value, dict) else {}
        flat |= group or {name: value}
    return flat


def run_dir(config: Config) -> Path:
    """The directory of ``config``'s run: ``config.logdir``, or runs/PRESET-SEED.

    With another environment than the preset's it is runs/PRESET-ENV-SEED, with recorded data
    runs/PRESET-DATA-SEED, where DATA is the last part of their name.
    """
    # Imported here, so that loading an agent does not need it.
    from emerald_jax.presets import PRESETS

    if config.logdir:
        return Path(config.logdir).expanduser()
    parts = [config.preset, str(config.seed)]
    name = Path(config.data).expanduser().resolve().name if config.data else config.env
    if config.preset in PRESETS and name != PRESETS[config.preset][1].env:
        parts.insert(1, re.sub(r"[^A-Za-z0-9._]+", "-", name).strip("-."))
    return Path("runs", "-".join(parts))


def write_config(logdir: Path, config: Config) -> None:
    """Write ``config`` to ``logdir/config.json``, atomically."""
    write_json(Path(logdir) / CONFIG_FILE, config.to_dict())


def read_config(run: str | Path) -> Config:
    """The settings of a run or of an export; ConfigError if it is neither, or not readable."""
    path = (run := find_run(run)) / CONFIG_FILE
    if not run.is_dir():
        what = "is a file" if run.exists() else "does not exist"
        raise ConfigError(f"{run} {what}: give the directory of a run")
    if not path.is_file():
        inside = [config.parent for config in run.glob(f"*/{CONFIG_FILE}")]
        hint = f"; give a run in it, such as {min(inside)}" if inside else ""
        raise ConfigError(f"{run} is not a run: it holds no {CONFIG_FILE}{hint}")
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

    Returns its absolute path; it may not exist yet. ConfigError when it is a file, is not writable,
    holds other files, or a run that cannot be resumed with these settings; or when the weights of
    ``init_from`` do not exist. Without a checkpoint any settings may start there.
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
    begun = saved_steps(logdir)
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
    """Numbers of the checkpoints in a run directory, sound or not, oldest first."""
    paths = (logdir / CHECKPOINTS_DIR).glob("*")
    return sorted(int(path.name) for path in paths if path.name.isdecimal() and path.is_dir())


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


def in_use(directory: str | Path) -> bool:
    """Whether a process trains in a run directory: holds its lock. Changes nothing."""
    with contextlib.suppress(OSError), open(Path(directory) / LOCK_FILE, "rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


class RunLock(contextlib.AbstractContextManager):
    """Locks a run directory for this process until :meth:`release` or until the process ends.

    The kernel drops the lock with its process, so no stale lock is left. The file itself stays; it
    holds the owner's process id for the error message.
    """

    def __init__(self, directory: str | Path) -> None:
        """Take the lock and delete drafts of killed processes; the directory is made if needed.

        RunInUseError if another process holds it, CheckpointError if it is not writable.
        """
        path = Path(directory) / LOCK_FILE
        self._handle: int | None = None
        with writing_in(directory):
            path.parent.mkdir(parents=True, exist_ok=True)
            handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:  # in_use() of another process holds it for an instant
                time.sleep(0.1)
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            owner = os.pread(handle, 32, 0).decode(errors="replace").strip() or "unknown"
            os.close(handle)
            why = f"{directory} is in use by process {owner}: stop it, or choose another --logdir"
            raise RunInUseError(why) from None
        except OSError as error:  # a network file system without locks
            _log.warning("%s has no file locks (%s): it is not locked", directory, error.strerror)
        with contextlib.suppress(OSError):  # on a full disk the message lacks the process id
            os.ftruncate(handle, 0)
            os.pwrite(handle, f"{os.getpid()}\n".encode(), 0)
        self._handle = handle
        with writing_in(directory):
            for draft in path.parent.glob(".*.tmp"):
                draft.unlink(missing_ok=True)
        # A forked worker would inherit the file descriptor and keep the lock after this process.
        os.register_at_fork(after_in_child=self.release)

    def release(self) -> None:
        """Release the lock; safe to call twice."""
        if self._handle is not None:
            os.close(self._handle)
            self._handle = None

    def __exit__(self, *_: object) -> None:
        self.release()
