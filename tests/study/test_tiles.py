"""Tiles read from Crafter's pictures equal the state of the game."""

from __future__ import annotations

import crafter
import numpy as np
import pytest

from experiments.study import tiles


@pytest.fixture(scope="module", params=[64, 32])
def played(request):
    """Frames of random play, with the content of every tile and of the inventory."""
    rng = np.random.default_rng(0)
    frames, names, items = [], [], []
    for step in range(120):
        if step % 60 == 0:
            env = crafter.Env(size=(request.param, request.param), seed=step)
            env.reset()
        for name in tiles.INVENTORY[4:]:
            env._player.inventory[name] = int(rng.integers(0, 10))
        frame, *_ = env.step(rng.integers(0, 17))
        player, world = env._player, env._world
        row = []
        for y in range(tiles.MAP[1]):
            for x in range(tiles.MAP[0]):
                place = player.pos + np.array([x, y]) - np.array(tiles.MAP) // 2
                inside = (place >= 0).all() and (place < np.array(world.area)).all()
                material, thing = world[place] if inside else (None, None)
                row.append(thing.texture if thing else material)
        frames.append(frame)
        names.append(row)
        items.append([player.inventory[name] for name in tiles.INVENTORY])
    return np.stack(frames), np.array(names, object), np.array(items)


def test_certain_tiles_equal_the_game(played):
    frames, names, _ = played
    found, certain = tiles.read_map(frames)
    order = [*tiles.MATERIALS, *tiles.OBJECTS]
    read = np.array(order, object)[found]
    assert certain.mean() > 0.5
    assert (read == names)[certain].mean() > 0.999
    assert len(set(read[certain])) >= 4
    assert not certain[:, 31].any(), "the player's own tile"


def test_inventory_is_read_exactly(played):
    frames, _, items = played
    if frames.shape[1] < 45:
        pytest.skip("digits of two pixels")
    np.testing.assert_array_equal(tiles.read_items(frames), np.minimum(items, 9))
    assert len(np.unique(items)) == 10


def test_details_of_perfect_and_blurred_pictures(played):
    real = played[0][:40].reshape(4, 10, *played[0].shape[1:])
    same = tiles.details(real, real / 255)
    np.testing.assert_array_equal(same["tile_accuracy"], 1)
    assert ("item_accuracy" in same) == (real.shape[2] == 64)
    if "item_accuracy" not in same:
        return
    np.testing.assert_array_equal(same["item_accuracy"], 1)
    blurred = tiles.details(
        real, np.broadcast_to(real.mean((2, 3), keepdims=True), real.shape) / 255
    )
    assert blurred["tile_accuracy"].shape == (4,)
    assert (blurred["tile_accuracy"] < 0.5).all()
    assert (blurred["item_accuracy"] < 0.5).all()
    # One window's harm stays in that window.
    shown = real / 255
    shown[2, :, 49:] = 0
    hurt = tiles.details(real, shown)
    np.testing.assert_array_equal(hurt["item_accuracy"], [1, 1, 0, 1])
    np.testing.assert_array_equal(hurt["tile_accuracy"], 1)
