"""Agents that come with the package: exports in ``emerald_jax/pretrained``, each with a card."""

from __future__ import annotations

from pathlib import Path

from emerald_jax.config import ConfigError

PRETRAINED = Path(__file__).parents[1] / "pretrained"


def find_run(run: str | Path) -> Path:
    """The directory of a run or of an export; ``~`` is expanded.

    ``pretrained/NAME``, where there is no such directory, is an agent that comes with the package.
    ConfigError names those where there is none of this name.
    """
    path = Path(run).expanduser()
    if len(path.parts) != 2 or path.parts[0] != PRETRAINED.name or path.exists():
        return path
    known = sorted(card.stem for card in PRETRAINED.glob("*.md"))
    if path.name not in known:
        raise ConfigError(f"there is no agent {path.name!r} in the package: {', '.join(known)}")
    return PRETRAINED / path.name
