"""Grid observations as RGB pictures, inside a jitted program.

Small games describe their board as numbers `[rows, columns]` or as one layer per kind of thing
`[rows, columns, channels]`. The world model reads square images, so every channel gets a colour
of its own and every cell becomes a rectangle of pixels.
"""

from __future__ import annotations

import colorsys

import jax
import jax.numpy as jnp
import numpy as np

from emerald_jax.envs.base import EnvError


def palette(channels: int) -> np.ndarray:
    """Colours of the first ``channels`` channels, `[channels, 3]` float32 in [0, 1].

    A channel's colour does not depend on how many others there are. The first is white; the
    others step around the colour circle by the golden ratio, which keeps neighbours far apart.
    """
    colours = [(1.0, 1.0, 1.0)]
    for i in range(channels - 1):
        value, saturation = ((1.0, 1.0), (0.65, 1.0), (1.0, 0.5))[i % 3]
        colours.append(colorsys.hsv_to_rgb(i * 0.618034 % 1, saturation, value))
    return np.array(colours[:channels], np.float32)


def check_grid(name: str, shape: tuple[int, ...], size: int) -> None:
    """Refuse observations that are no grid, or a grid larger than the image.

    Args:
        name: environment, for the message.
        shape: shape of one observation.
        size: height and width of the image in pixels.

    Raises:
        EnvError: when the observation cannot be drawn.
    """
    if len(shape) not in (2, 3):
        raise EnvError(
            f"{name} observes {list(shape)}, not a grid [rows, columns] or [rows, columns, "
            "channels]: only environments that can be shown as an image are supported"
        )
    if max(shape[:2]) > size:
        raise EnvError(
            f"the {shape[0]} x {shape[1]} grid of {name} does not fit an image of {size} pixels: "
            f"choose envs.image_size of at least {max(shape[:2])}"
        )


def render_grid(grid: jax.Array, size: int) -> jax.Array:
    """Picture of a grid on black, each axis enlarged by the largest whole factor that fits.

    The axes have factors of their own: a 10 x 5 board then fills a 16 x 16 image well enough that
    its few pieces weigh something in the image loss.

    Several channels in one cell show the mean of their colours, so no channel hides another.

    Args:
        grid: `[rows, columns]` or `[rows, columns, channels]`, values in [0, 1].
        size: height and width of the image in pixels, at least rows and columns.

    Returns:
        `[size, size, 3]` uint8.
    """
    grid = grid if grid.ndim == 3 else grid[..., None]
    rows, columns, channels = grid.shape
    level = jnp.clip(grid.astype(jnp.float32), 0, 1)[..., None]
    # A sum of products and not a matmul, whose accelerated forms round differently.
    colour = (level * palette(channels)[None, None]).sum(2) / jnp.maximum(level.sum(2), 1)
    cells = jnp.round(colour * 255).astype(jnp.uint8)
    image = cells.repeat(size // rows, axis=0).repeat(size // columns, axis=1)
    top, left = (size - image.shape[0]) // 2, (size - image.shape[1]) // 2
    return (
        jnp.zeros((size, size, 3), jnp.uint8)
        .at[top : top + image.shape[0], left : left + image.shape[1]]
        .set(image)
    )
