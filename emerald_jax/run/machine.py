"""The machine a run works on: JAX's settings for it, and what results say about it."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

import jax
import psutil

from emerald_jax import __version__

#: Flags for CPUs. Ordering operations for concurrency keeps everything alive at once: XLA plans
#: 20 GiB for the paper's world-model gradient instead of 9. The YNNPACK fusions run convolutions on
#: one core: an update of crafter-small, then with 8 x 32 batches and 16 channels, took 6.2 s with
#: and 3.4 s without them (two cores, busy).
_CPU_FLAGS = {
    "--xla_cpu_enable_concurrency_optimized_scheduler": "false",
    "--xla_cpu_experimental_ynn_fusion_type": "",
}


def prepare_jax() -> None:
    """Settings of JAX itself that every run wants; call it before the first computation.

    * Compiled programs are kept in a per-user directory across processes.
    * Two of XLA's CPU defaults are turned off (:data:`_CPU_FLAGS`); accelerators do not read them.
    """
    # XLA ends the process on a flag it does not know; these exist in the versions we tested.
    if jax.__version_info__ < (0, 12):
        given = os.environ.get("XLA_FLAGS", "")
        ours = [f"{flag}={value}" for flag, value in _CPU_FLAGS.items() if flag not in given]
        os.environ["XLA_FLAGS"] = " ".join([given, *ours]).strip()
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    if jax.config.jax_compilation_cache_dir is None:
        jax.config.update("jax_compilation_cache_dir", str(Path(base) / "emerald_jax" / "xla"))


def compile_program(program: Any) -> Any:
    """Compile a lowered program.

    On a CPU the matrix products are library calls; LLVM's higher levels make the rest no faster but
    take a third longer to compile (own measurement, quickstart's train step). A level in
    ``XLA_FLAGS`` wins.
    """
    option = "xla_backend_optimization_level"
    if jax.default_backend() != "cpu" or option in os.environ.get("XLA_FLAGS", ""):
        return program.compile()
    return program.compile(compiler_options={option: 1})


#: Packages whose versions decide how fast things are.
PACKAGES = (
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


def machine_facts() -> dict[str, Any]:
    """What the numbers depend on; asks JAX for its devices."""
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
    for package in PACKAGES:
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


#: Directory of this package.
_PACKAGE = Path(__file__).resolve().parents[1]


def machine_line() -> str:
    """Where a number was measured, and with which code."""
    device = jax.devices()[0].device_kind
    return (
        f"{platform.machine()}, {os.cpu_count()} cores, {device}, jax {jax.__version__}, "
        f"emerald_jax {__version__}{commit()}"
    )


def commit(package: Path = _PACKAGE) -> str:
    """`` at COMMIT`` where the package is part of its git checkout, ``-dirty`` if it was changed.

    Empty elsewhere: an installed copy may lie below somebody else's checkout, whose commit says
    nothing of it.

    Args:
        package: directory of the package.
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


def _git(folder: Path, *words: str) -> str:
    """What git says in a folder.

    Raises:
        OSError: there is no git.
        subprocess.CalledProcessError: it refuses.
    """
    command = ["git", "-C", str(folder), *words]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
