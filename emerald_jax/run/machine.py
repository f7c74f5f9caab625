"""Settings of JAX and of its compiler for this machine."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import jax

from emerald_jax.target import target

#: Flags for CPUs. The concurrency-optimised scheduler keeps all buffers alive: XLA plans 20 GiB for
#: the paper's world-model gradient instead of 9. YNNPACK may compute products, fused with the
#: operations around them, but not convolutions, which it runs on one core. The tree rewriter splits
#: each sum into windows: two slow operations for one (a fifth of the quickstart's operations).
_CPU_FLAGS = {
    "--xla_cpu_enable_concurrency_optimized_scheduler": "false",
    "--xla_cpu_experimental_ynn_fusion_type": "dot",
    "--xla_disable_hlo_passes": "tree_reduction_rewriter",
    # Small models are trained on two virtual devices (`training.devices.training_devices`). If a
    # process pauses for long, with its laptop for example, their collective must not end it.
    "--xla_force_host_platform_device_count": "2",
    "--xla_cpu_collective_call_terminate_timeout_seconds": "86400",
}


def prepare_jax() -> None:
    """Configure JAX for a run; call it before the first computation.

    Compiled programs are cached in a directory of the user, across processes, if it is writable.
    Some of XLA's CPU defaults are changed (:data:`_CPU_FLAGS`); accelerators ignore them.
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


def compile_program(program: Any, *, often: bool = True) -> Any:
    """Compile a lowered program, which runs ``often`` or may be slow.

    On a CPU the matrix products are library calls; LLVM's higher levels make the rest no faster but
    take a third longer to compile (own measurement, quickstart's train step). A level given in
    ``XLA_FLAGS`` is kept.
    """
    option = "xla_backend_optimization_level"
    if target().platform != "cpu" or option in os.environ.get("XLA_FLAGS", ""):
        return program.compile()
    return program.compile(compiler_options={option: int(often)})
