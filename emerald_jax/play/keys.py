"""Which key of the keyboard does which action, for environments that were never heard of."""

from __future__ import annotations

import string
from collections.abc import Sequence

#: Words that mean "do nothing".
IDLE = ("noop", "nop", "no op", "stay", "idle")
#: Keys by the name ``KeyboardEvent.key`` has for them, for whole action names.
_USUAL = {
    "left": "ArrowLeft",
    "right": "ArrowRight",
    "up": "ArrowUp",
    "down": "ArrowDown",
    "do": " ",
    "fire": " ",
    "interact": " ",
    "toggle": " ",
    "jump": " ",
    "sleep": "z",
}
#: Left out: the page uses them itself.
_TAKEN = ("p", "r")
_DIGITS = "1234567890"


def idle_action(names: Sequence[str]) -> int | None:
    """The action that does nothing; None when the environment names none."""
    plain = [_plain(name) for name in names]
    return next((plain.index(word) for word in IDLE if word in plain), None)


def key_bindings(names: Sequence[str], num_actions: int) -> list[str]:
    """One key per action; empty where there is none left, and for the action that does nothing.

    Arrows for directions, the space bar for the main action, then a letter of the name, then any
    letter. Actions without names get 1, 2, … 9, 0, then letters.

    Args:
        names: of the actions, or empty.
        num_actions: how many there are.

    Returns:
        ``KeyboardEvent.key`` of each action, all different.
    """
    keys = [""] * num_actions
    free = [c for c in string.ascii_lowercase if c not in _TAKEN]
    if not names:
        spare = [*_DIGITS, *free]
        return [spare[i] if i < len(spare) else "" for i in range(num_actions)]
    idle = idle_action(names)
    rest = []
    for action, name in enumerate(names):
        word = _plain(name).removeprefix("move ")
        key = _USUAL.get(word, "")
        if action == idle:
            continue
        if key and key not in keys:
            keys[action] = key
        else:
            rest.append((action, word))
    for action, word in rest:
        # Initials first: "place table" is t rather than p's neighbour l.
        initials = [part[0] for part in reversed(word.split())]
        wanted = [*initials, *word, *free, *_DIGITS]
        allowed = (c for c in wanted if c in (*free, *_DIGITS) and c not in keys)
        keys[action] = next(allowed, "")
    return keys


def _plain(name: str) -> str:
    return name.lower().replace("_", " ").replace("-", " ").strip()
