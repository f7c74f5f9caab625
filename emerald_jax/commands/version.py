"""``emerald-jax version``."""

from __future__ import annotations

import platform
from importlib import metadata

from emerald_jax import __version__
from emerald_jax.commands.words import Parser, table, tell


def run(words: list[str]) -> int:
    """Tell the versions of this package and of what it stands on."""
    Parser("version").parse_args(words)
    rows = {"emerald-jax": __version__, "python": platform.python_version()}
    for package in ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy"):
        try:
            rows[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            rows[package] = "not installed"
    return tell(table(rows))
