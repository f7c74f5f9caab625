"""``emerald-jax presets``."""

from __future__ import annotations

from emerald_jax.commands.words import Parser, preset_list, tell


def run(words: list[str]) -> int:
    """List the named configurations."""
    Parser("presets").parse_args(words)
    return tell(preset_list())
