"""Every action gets its own key, in any environment."""

from __future__ import annotations

import crafter
import pytest

from emerald_jax.look.play_server import idle_action, key_bindings

CRAFTER = tuple(crafter.constants.actions)
ATARI = ("noop", "fire", "up", "right", "left", "down", "upright", "upleft", "downright")


@pytest.mark.parametrize("names", [CRAFTER, ATARI, tuple(f"thing_{i}" for i in range(20)), ()])
def test_keys_are_distinct_and_not_used_by_the_page(names: tuple[str, ...]) -> None:
    count = len(names) or 7
    keys = key_bindings(names, count)
    idle = idle_action(names)
    given = [key for action, key in enumerate(keys) if action != idle]
    assert len(keys) == count
    assert all(given)
    assert len(set(given)) == len(given)
    assert not {"p", "r"} & set(given)
    assert idle is None or keys[idle] == ""


def test_crafter_has_the_usual_keys() -> None:
    keys = dict(zip(CRAFTER, key_bindings(CRAFTER, len(CRAFTER)), strict=True))
    arrows = {f"move_{way}": f"Arrow{way.title()}" for way in ("left", "right", "up", "down")}
    assert keys.items() >= (arrows | {"do": " ", "sleep": "z", "noop": ""}).items()


def test_actions_without_names_are_numbered() -> None:
    assert key_bindings((), 12) == [*"1234567890", "a", "b"]
    assert idle_action(()) is None


def test_some_actions_have_no_key_when_the_keys_run_out() -> None:
    keys = key_bindings(tuple(f"act {i}" for i in range(60)), 60)
    assert len({key for key in keys if key}) == len([key for key in keys if key]) > 30
