"""Published numbers, carried as package data: ``data/crafter.json`` and ``data/atari100k.json``.

Each file says under ``about`` and ``sources`` what its numbers are and who published them.
"""

from __future__ import annotations

import functools
import json
from importlib import resources
from typing import Any


@functools.cache
def crafter() -> dict[str, Any]:
    """Scores in per cent, returns and success rates of Crafter, by protocol and by method."""
    return _read("crafter.json")


@functools.cache
def atari100k() -> dict[str, Any]:
    """The protocol of Atari 100k, returns by game and method, and published aggregates."""
    return _read("atari100k.json")


def _read(name: str) -> dict[str, Any]:
    text = resources.files("emerald_jax").joinpath("data", name).read_text(encoding="utf-8")
    return json.loads(text)


def atari_game(env: str) -> dict[str, float] | None:
    """Published returns of an environment's game by method.

    Args:
        env: such as ``atari:Pong``.

    Returns:
        None for anything but one of the 26 games.
    """
    family, _, game = env.partition(":")
    return atari100k()["games"].get(game) if family == "atari" else None
