"""A description of the machine for the results of benchmarks and experiments."""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

import jax
import psutil

import emerald_jax
from emerald_jax import __version__

_LIBRARIES = ("jax", "jaxlib", "flax", "optax", "numpy", "numba")
_ENVIRONMENTS = ("gymnasium", "crafter", "ale-py", "gymnax", "craftax")
#: Directory of the package.
_PACKAGE = Path(emerald_jax.__file__).resolve().parent


def describe_machine() -> dict[str, Any]:
    """Hardware, load, devices and flags, as JSON values; initialises JAX."""
    devices = jax.local_devices()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "processor": _processor(),
        "cores": cores,
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "load_before": round(os.getloadavg()[0], 2),
        "system": f"{platform.system()} {platform.machine()}",
        "backend": jax.default_backend(),
        "devices": len(devices),
        "device_kind": devices[0].device_kind,
        "xla_flags": os.environ.get("XLA_FLAGS", "").strip(),
    }


def machine_line() -> str:
    """Machine, JAX and code version in one line, for a result."""
    machine = describe_machine()
    return (
        f"{platform.machine()}, {machine['cores']} cores, {machine['device_kind']}, "
        f"jax {jax.__version__}, emerald_jax {__version__}{commit()}"
    )


def versions() -> dict[str, str]:
    """Versions of Python, this package and the packages that affect speed, where installed."""
    found = {"python": platform.python_version(), "emerald-jax": __version__}
    for package in _LIBRARIES + _ENVIRONMENTS:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[package] = importlib.metadata.version(package)
    return found


def _processor() -> str:
    """The processor's name and its extensions for matrix products, from Linux."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return platform.processor() or platform.machine()
    pairs = (line.partition(":") for line in text.splitlines())
    lines = {name.strip(): value.strip() for name, _, value in pairs}
    flags = set(lines.get("flags", "").split())
    fast = [flag for flag in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if flag in flags]
    return " ".join([lines.get("model name", platform.machine()), *fast])


def commit(package: Path = _PACKAGE) -> str:
    """`` at COMMIT`` if the package is in its own git checkout, with ``-dirty`` if it was changed.

    Otherwise empty: the commit of another project does not describe an installed copy.
    """
    try:
        if _git(package, "rev-parse", "--show-prefix") != f"{package.name}/":
            return ""
        _git(package, "ls-files", "--error-unmatch", "__init__.py")
        found = _git(package, "rev-parse", "--short", "HEAD")
        changed = _git(package, "status", "--porcelain", "--", ".")
    except (OSError, subprocess.CalledProcessError):
        return ""
    return f" at {found}{'-dirty' if changed else ''}"


def _git(folder: Path, *arguments: str) -> str:
    command = ["git", "-C", str(folder), *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
