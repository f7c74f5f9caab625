"""How every test runs: eight virtual CPU devices, strict shapes, warnings as errors.

The environment variables are set before anything imports JAX; processes that tests start inherit
them.
"""

from __future__ import annotations

import importlib.metadata
import os
from pathlib import Path

# At the sizes of the tests, compiling costs far more than running: optimise little.
os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
    " --xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
).strip()
if importlib.metadata.version("jaxlib").startswith("0.10."):  # gone in 0.11
    os.environ["XLA_FLAGS"] += " --xla_cpu_use_fusion_emitters=false"
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("MPLBACKEND", "agg")

import jax
import pytest
from jaxtyping import install_import_hook

from tests import typechecker

# Shapes of different rank meet by intention only.
jax.config.update("jax_numpy_rank_promotion", "raise")

#: Modules whose public functions say their shapes and types, which are checked in tests alone.
CHECKED = ("ops.distributions", "ops.returns", "ops.scalars")
CHECKED += ("agent.dream", "look.film", "look.inspect", "imagination", "losses")
install_import_hook([f"emerald_jax.{m}" for m in CHECKED], f"{typechecker.__name__}.check")

#: Warnings that third parties raise about themselves, by message or module. Ours are errors.
THIRD_PARTY_WARNINGS = (
    # Several test processes may share the compilation cache; a lost entry costs time only.
    "ignore:Error (reading|writing) persistent compilation cache entry:UserWarning",
)


def pytest_configure(config: pytest.Config) -> None:
    """Let the exceptions pass and keep compiled functions between test runs."""
    for line in THIRD_PARTY_WARNINGS:
        config.addinivalue_line("filterwarnings", line)
    cache = {
        "jax_compilation_cache_dir": str(config.cache.mkdir("jax")),
        "jax_persistent_cache_min_compile_time_secs": 0.2,
    }
    for name, value in cache.items():
        jax.config.update(name, value)
        os.environ[name.upper()] = str(value)


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run directory with two checkpoints, recorded frames and rows; only to be read."""
    from tests.run_cases import make_run

    return make_run(tmp_path_factory.mktemp("shared") / "run", checkpoints=(4, 9))
