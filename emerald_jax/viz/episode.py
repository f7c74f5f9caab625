"""A film of one environment's first episode, written while it is played."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import imageio.v2 as imageio

from emerald_jax.envs.base import VectorStep
from emerald_jax.viz.strips import enlarge

#: Frames per second, and the height wanted in pixels; both are for the eye alone.
FPS, HEIGHT = 15, 256


class EpisodeFilm:
    """Shown every vector step, it keeps the first episode of environment 0 as an mp4.

    Pixels are repeated, not blended, so that what is seen is what the agent saw. A context manager:
    the file is whole when it is left.
    """

    def __init__(self, path: Path) -> None:
        """Nothing is written before the first frame.

        Args:
            path: the file, ending in ``.mp4``.
        """
        self._path = path
        self._writer: Any = None
        self._over = False

    def __enter__(self) -> EpisodeFilm:
        return self

    def __exit__(self, *exc_info: object) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def __call__(self, record: VectorStep) -> None:
        """Film a vector step."""
        if self._over:
            return
        if self._writer is None:
            self._writer = imageio.get_writer(self._path, fps=FPS, macro_block_size=2)
        image = record.image[0]
        self._writer.append_data(enlarge(image, max(1, round(HEIGHT / image.shape[0]))))
        self._over = bool(record.is_last[0])
