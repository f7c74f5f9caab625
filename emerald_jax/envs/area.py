"""Area resizing: every new pixel is the mean of the part of the old image that it covers."""

from __future__ import annotations

import functools

import numpy as np


@functools.lru_cache(maxsize=32)
def area_weights(old: int, new: int) -> np.ndarray:
    """Share of each old pixel in each new one along one axis, `[new, old]` float32; rows sum to 1.

    Args:
        old: pixels there are.
        new: pixels wanted; may be more, then old pixels are repeated and blended at their seams.
    """
    edges = np.arange(new + 1) * (old / new)
    pixels = np.arange(old)
    covered = np.minimum(edges[1:, None], pixels + 1) - np.maximum(edges[:-1, None], pixels)
    weights = (np.clip(covered, 0, None) * (new / old)).astype(np.float32)
    weights.flags.writeable = False
    return weights


def resize_area(image: np.ndarray, size: int) -> np.ndarray:
    """``image`` resized to a square, whatever its aspect ratio.

    Args:
        image: `[height, width, channels]`, any number type.
        size: height and width wanted.

    Returns:
        `[size, size, channels]` float32.
    """
    height, width, channels = image.shape
    rows = area_weights(height, size) @ image.reshape(height, -1).astype(np.float32)
    return np.matmul(area_weights(width, size), rows.reshape(size, width, channels))
