"""Settings of JAX for a run, and a description of the machine for its results."""

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

from emerald_jax import __version__
from emerald_jax.target import target

#: Flags for CPUs. The concurrency-optimised scheduler keeps all buffers alive: XLA plans 20 GiB for
#: the paper's world-model gradient instead of 9. The YNNPACK fusions run convolutions on one core:
#: an update of crafter-small (8 x 32 batches, 16 channels) took 6.2 s with and 3.4 s without them
#: (two cores, busy).
_CPU_FLAGS = {
    "--xla_cpu_enable_concurrency_optimized_scheduler": "false",
    "--xla_cpu_experimental_ynn_fusion_type": "",
}
_LIBRARIES = ("jax", "jaxlib", "flax", "optax", "numpy", "numba")
_ENVIRONMENTS = ("gymnasium", "crafter", "ale-py", "gymnax", "craftax")
#: Directory of this package.
_PACKAGE = Path(__file__).resolve().parents[1]


def prepare_jax() -> None:
    """Configure JAX for a run; call it before the first computation.

    Compiled programs are cached in a directory of the user, across processes, if it is writable.
    Two of XLA's CPU defaults are turned off (:data:`_CPU_FLAGS`); accelerators ignore them.
    """
    # XLA ends the process on an unknown flag; these exist in the versions we tested.
    if jax.__version_info__ < (0, 12):
        given = os.environ.get("XLA_FLAGS", "")
        ours = [f"{flag}={value}" for flag, value in _CPU_FLAGS.items() if flag not in given]
        os.environ["XLA_FLAGS"] = " ".join([given, *ours]).strip()
    if jax.config.jax_compilation_cache_dir is None and (folder := _cache_dir()) is not None:
        jax.config.update("jax_compilation_cache_dir", str(folder))


def _cache_dir() -> Path | None:
    """The user's own directory for compiled programs, as others could write to a shared one."""
    try:
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        folder = base / "emerald_jax" / "xla"
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, RuntimeError):  # RuntimeError: no HOME and no entry in the passwd file
        return None
    return folder if os.access(folder, os.W_OK) else None


def compile_program(program: Any) -> Any:
    """Compile a lowered program.

    On a CPU the matrix products are library calls; LLVM's higher levels make the rest no faster but
    take a third longer to compile (own measurement, quickstart's train step). A level given in
    ``XLA_FLAGS`` is kept.
    """
    option = "xla_backend_optimization_level"
    if target().platform != "cpu" or option in os.environ.get("XLA_FLAGS", ""):
        return program.compile()
    return program.compile(compiler_options={option: 1})


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
