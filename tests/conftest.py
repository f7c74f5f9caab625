"""How every test runs: eight virtual CPU devices, strict shapes, warnings as errors.

The environment variables are set before anything imports JAX.
"""

from __future__ import annotations

import os

os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
).strip()
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("MPLBACKEND", "agg")

import jax
import pytest

# Shapes of different rank meet by intention only.
jax.config.update("jax_numpy_rank_promotion", "raise")

#: Warnings that third parties raise about themselves, by message or module. Ours are errors.
THIRD_PARTY_WARNINGS = (
    # Several test processes may share the compilation cache; a lost entry costs time only.
    "ignore:Error (reading|writing) persistent compilation cache entry:UserWarning",
)


def pytest_configure(config: pytest.Config) -> None:
    """Let the exceptions pass and keep compiled functions between test runs."""
    for line in THIRD_PARTY_WARNINGS:
        config.addinivalue_line("filterwarnings", line)
    jax.config.update("jax_compilation_cache_dir", str(config.cache.mkdir("jax")))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)
