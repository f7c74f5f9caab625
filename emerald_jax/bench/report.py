"""What a benchmark leaves behind: rows of JSON that name the machine, the versions and the shapes.

A report is one JSON object::

    format     "emerald-jax bench 1"
    created    UTC time, ISO 8601
    command    the words it was started with
    complete   false while measuring, and for ever when it was interrupted
    machine    processor, cores, memory, accelerator
    versions   of Python and of the packages that decide speed
    rows       what was measured
    left_out   lines: what was not measured, and why

A row is :class:`Row`. Its ``benchmark`` and ``case`` tell it from every other row; comparisons pair
rows by them.
"""

from __future__ import annotations

import dataclasses
import datetime
import importlib.metadata
import json
import os
import platform
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from emerald_jax import __version__
from emerald_jax.config import ConfigError
from emerald_jax.saving.files import write_atomic

FORMAT = "emerald-jax bench 1"

#: The parts of an update that ``train`` times, in their order; a row's facts name them so.
PARTS = ("world_model", "imagination", "actor_critic", "optimizer")

#: Packages whose versions decide how fast things are.
_PACKAGES = (
    "jax",
    "jaxlib",
    "flax",
    "optax",
    "numpy",
    "gymnasium",
    "crafter",
    "numba",
    "ale-py",
    "gymnax",
    "craftax",
)


@dataclass(frozen=True)
class Spread:
    """Repeated measurements of one number.

    Attributes:
        median, q1, q3, lowest, highest: of the repeats, in the row's unit.
        repeats: how many there were, warm-up not counted.
    """

    median: float
    q1: float
    q3: float
    lowest: float
    highest: float
    repeats: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """The spread of at least one value."""
        low, high = min(values), max(values)
        if len(values) > 1:
            q1, _, q3 = statistics.quantiles(values, n=4, method="inclusive")
        else:
            q1 = q3 = values[0]
        return cls(statistics.median(values), q1, q3, low, high, len(values))

    @property
    def noise(self) -> tuple[float, float]:
        """Where another measurement of the same thing is to be expected.

        Half of the repeats lie between the quartiles. Below eight repeats quartiles say little, and
        the lowest and highest stand in.
        """
        return (self.lowest, self.highest) if self.repeats < 8 else (self.q1, self.q3)


@dataclass(frozen=True, kw_only=True)
class Row:
    """One measured number and what belongs to it.

    Attributes:
        benchmark: name, such as ``imagination``.
        case: what was measured: sizes, types, devices. Scalars only.
        unit: of the value, such as ``imagined states/s``; a higher value is better, always.
        value: :class:`Spread` of the repeats.
        facts: everything else that was counted or measured, by name; units are in the names.
    """

    benchmark: str
    case: dict[str, Any]
    unit: str
    value: Spread
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def identity(self) -> str:
        """The same for the same measurement in another report."""
        return f"{self.benchmark} {describe(self.case)}"

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Row:
        """The inverse of :func:`dataclasses.asdict`."""
        return cls(**{**values, "value": Spread(**values["value"])})


@dataclass(kw_only=True)
class Report:
    """Everything one command measured; see the module docstring."""

    command: str
    machine: dict[str, Any]
    versions: dict[str, str]
    created: str
    rows: list[Row] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    complete: bool = False

    @classmethod
    def begin(cls, command: str) -> Report:
        """An empty report of this machine, at this moment."""
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        return cls(command=command, machine=machine(), versions=versions(), created=now)

    def to_json(self) -> str:
        """The text of the file."""
        return json.dumps({"format": FORMAT, **dataclasses.asdict(self)}, indent=1) + "\n"


def describe(case: dict[str, Any]) -> str:
    """A case as words: ``preset=crafter S=3``."""
    return " ".join(f"{name}={value}" for name, value in case.items())


def write_report(path: Path, report: Report) -> None:
    """Write or replace a report; a reader sees the old one or the new one, whole.

    Raises:
        ConfigError: when it cannot be written.
    """
    try:
        write_atomic(path, report.to_json().encode())
    except OSError as error:
        raise ConfigError(f"{path} cannot be written: {error.strerror}") from error


def check_writable(path: Path) -> None:
    """Refuse now what :func:`write_report` would refuse after an hour of measuring.

    Raises:
        ConfigError: when there is no such folder, or no file can be made in it.
    """
    if not path.parent.is_dir():
        raise ConfigError(f"--out {path}: there is no folder {path.parent}")
    if path.is_dir():
        raise ConfigError(f"--out {path} is a folder: give the name of a file")
    probe = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise ConfigError(f"--out {path} cannot be written: {error.strerror}") from error


def read_report(path: Path) -> Report:
    """Read a report back.

    Raises:
        ConfigError: when it cannot be read or is none.
    """
    try:
        values = json.loads(path.read_text())
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise ConfigError(f"{path} is no JSON: {error}") from error
    if not isinstance(values, dict) or values.pop("format", None) != FORMAT:
        raise ConfigError(f"{path} is no result of emerald-jax bench")
    try:
        rows = [Row.from_dict(row) for row in values.pop("rows")]
        return Report(**values, rows=rows)
    except (TypeError, KeyError, AttributeError) as error:
        raise ConfigError(f"{path} is no whole result of emerald-jax bench: {error}") from error


def machine() -> dict[str, Any]:
    """What the numbers depend on; asks JAX for its devices."""
    import jax

    devices = jax.local_devices()
    return {
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0))
        if hasattr(os, "sched_getaffinity")
        else os.cpu_count(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "load_before": round(os.getloadavg()[0], 2),
        "system": f"{platform.system()} {platform.machine()}",
        "backend": jax.default_backend(),
        "devices": len(devices),
        "device_kind": devices[0].device_kind,
        "xla_flags": os.environ.get("XLA_FLAGS", "").strip(),
    }


def versions() -> dict[str, str]:
    """Versions of Python, this package and what its speed depends on; absent ones are left out."""
    found = {"python": platform.python_version(), "emerald-jax": __version__}
    for package in _PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _processor() -> str:
    """The processor's name and what it has for matrix products, as Linux tells it."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return platform.processor() or platform.machine()
    pairs = (line.partition(":") for line in text.splitlines())
    lines = {name.strip(): value.strip() for name, _, value in pairs}
    flags = set(lines.get("flags", "").split())
    fast = [flag for flag in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if flag in flags]
    return " ".join([lines.get("model name", platform.machine()), *fast])
