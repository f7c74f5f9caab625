"""Read Crafter's pictures back, tile by tile: the local map and the inventory.

Each tile of the real frame and of its reconstruction is named after the nearest of Crafter's
textures, and the names are compared. Only real tiles that match a texture almost exactly count,
which excludes noisy nights and overlapping creatures. The player's tile is excluded too.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np

#: Tiles of the local map and of the inventory below it, columns and rows.
MAP, ITEMS = (9, 7), (9, 2)
MATERIALS = (
    "water", "grass", "stone", "path", "sand", "tree", "lava", "coal", "iron", "diamond", "table",
    "furnace",
)  # fmt: skip
#: Creatures and plants, and the material below them.
OBJECTS = dict.fromkeys(("cow", "zombie", "skeleton", "plant", "plant-ripe", "sapling"), "grass")
OBJECTS["skeleton"] = "path"
INVENTORY = (
    "health", "food", "drink", "energy", "sapling", "wood", "stone", "coal", "iron", "diamond",
    "wood_pickaxe", "stone_pickaxe", "iron_pickaxe", "wood_sword", "stone_sword", "iron_sword",
)  # fmt: skip
#: Light from noon to the hour when noise begins.
_DAYLIGHT = np.linspace(1.0, 0.5, 11)
#: Largest root mean square error, in grey levels, of a real tile and its texture.
_CERTAIN = 6.0
#: Sides of the smallest tiles of map and inventory that can be read, in pixels.
SMALLEST_TILE, _SMALLEST_ITEM = 3, 5


def tile_size(image_size: int) -> int:
    """Pixels of a tile's side in a square image."""
    return image_size // 9


@cache
def _texture(name: str, size: int) -> np.ndarray:
    """`[size, size, 4]` float32: a texture of Crafter, scaled as the game scales it."""
    import crafter
    from PIL import Image

    path = Path(crafter.__file__).parent / "assets" / f"{name}.png"
    with Image.open(path) as image:
        # Crafter transposes textures, and transposes the canvas back at the end: not done here.
        small = image.convert("RGBA").resize((size, size), resample=Image.Resampling.NEAREST)
        return np.asarray(small, np.float32)


def _over(canvas: np.ndarray, texture: np.ndarray, at: int = 0) -> np.ndarray:
    """``canvas`` with a texture drawn over it, ``at`` pixels from its corner."""
    result, alpha = canvas.copy(), texture[..., 3:] / 255
    part = (slice(at, at + len(texture)),) * 2
    result[part] = alpha * texture[..., :3] + (1 - alpha) * canvas[part]
    return result


@cache
def map_templates(unit: int) -> np.ndarray:
    """`[names, hours, unit, unit, 3]` float32: materials, then objects, in falling light."""
    tiles = {name: _texture(name, unit)[..., :3] for name in MATERIALS}
    tiles |= {name: _over(tiles[ground], _texture(name, unit)) for name, ground in OBJECTS.items()}
    day = np.stack(list(tiles.values()))[:, None]
    # Crafter blends day and night; the night is pale and blue.
    grey = (day @ np.array([0.299, 0.587, 0.114], np.float32))[..., None]
    night = 0.5 * (0.4 * day + 0.6 * grey) + 0.5 * np.array([0, 16, 64], np.float32)
    light = _DAYLIGHT[None, :, None, None, None]
    return (light * day + (1 - light) * night).astype(np.float32)


@cache
def item_templates(unit: int) -> np.ndarray:
    """`[16 items, 10 amounts, unit, unit, 3]` float32; amount 0 is an empty tile."""
    found = np.zeros((len(INVENTORY), 10, unit, unit, 3), np.float32)
    for index, name in enumerate(INVENTORY):
        item = _over(found[index, 0], _texture(name, int(0.8 * unit)), int(0.1 * unit))
        for amount in range(1, 10):
            digit = _texture(str(amount), int(0.6 * unit))
            found[index, amount] = _over(item, digit, int(0.4 * unit))
    return found


def cut(images: np.ndarray, columns: int, rows: int, top: int) -> np.ndarray:
    """`[N, S, S, 3]` -> `[N, rows * columns, unit, unit, 3]` float32, from tile row ``top``."""
    unit = tile_size(images.shape[1])
    border = (images.shape[1] - 9 * unit) // 2
    high = border + top * unit
    part = images[:, high : high + rows * unit, border : border + columns * unit]
    tiles = part.reshape(len(images), rows, unit, columns, unit, 3).swapaxes(2, 3)
    return tiles.reshape(len(images), rows * columns, unit, unit, 3).astype(np.float32)


def nearest(tiles: np.ndarray, templates: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Index and root mean square error in grey levels `[N]` of the nearest of M templates.

    Tiles `[N, unit, unit, 3]`, templates `[M, unit, unit, 3]`.
    """
    a, b = (x.reshape(len(x), -1).astype(np.float64) for x in (tiles, templates))
    square = (a**2).sum(1)[:, None] - 2 * a @ b.T + (b**2).sum(1)[None]
    index = square.argmin(1)
    error = np.sqrt(np.maximum(square[np.arange(len(a)), index], 0) / a.shape[1])
    return index, error


def read_map(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """`[N, 63]` indices of the names of the map's tiles; `[N, 63]` bool, certain or not."""
    tiles = cut(images, *MAP, top=0)
    templates = map_templates(tile_size(images.shape[1]))
    names, hours = templates.shape[:2]
    flat = templates.reshape(names * hours, *templates.shape[2:])
    index, error = nearest(tiles.reshape(-1, *tiles.shape[2:]), flat)
    certain = error.reshape(tiles.shape[:2]) < _CERTAIN
    certain[:, MAP[0] * (MAP[1] // 2) + MAP[0] // 2] = False  # the player
    return (index // hours).reshape(tiles.shape[:2]), certain


def read_items(images: np.ndarray) -> np.ndarray:
    """`[N, 16]` amounts of the inventory's items."""
    tiles = cut(images, *ITEMS, top=MAP[1])
    templates = item_templates(tile_size(images.shape[1]))
    amounts = [nearest(tiles[:, i], templates[i])[0] for i in range(len(INVENTORY))]
    return np.stack(amounts, axis=1)


def details(real: np.ndarray, shown: np.ndarray) -> dict[str, np.ndarray]:
    """Shares of the tiles and items of real frames that their reconstructions show.

    Real frames are `[W, T, S, S, 3]` uint8, those shown the same in float [0, 1]. Returns
    ``tile_accuracy`` `[W]`, over certain tiles of the map that are not plain grass, from 27 pixels
    on, and ``item_accuracy`` `[W]`, over items that the player has, from 45 pixels on.
    """
    found: dict[str, np.ndarray] = {}
    frames = [x.reshape(-1, *x.shape[2:]) for x in (real, 255 * np.asarray(shown))]

    def share(right: np.ndarray, counted: np.ndarray) -> np.ndarray:
        hits, total = (x.reshape(len(real), -1).sum(1) for x in (right & counted, counted))
        return np.where(total, hits / np.maximum(total, 1), 1.0)

    if tile_size(real.shape[2]) >= SMALLEST_TILE:
        (names, certain), (guessed, _) = map(read_map, frames)
        counted = certain & (names != MATERIALS.index("grass"))
        found["tile_accuracy"] = share(names == guessed, counted)
    if tile_size(real.shape[2]) >= _SMALLEST_ITEM:
        amounts, seen = map(read_items, frames)
        found["item_accuracy"] = share(amounts == seen, amounts > 0)
    return found
