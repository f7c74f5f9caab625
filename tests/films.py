"""Reading films back, for tests."""

import subprocess
from pathlib import Path

import imageio_ffmpeg
import numpy as np


def read_mp4(path: Path, shape: tuple[int, int, int]) -> np.ndarray:
    """Frames `[T, height, width, 3]` uint8 of a film, by ffmpeg: imageio's reader leaks a pipe."""
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-i", path]
    raw = subprocess.run(
        [*command, "-f", "rawvideo", "-pix_fmt", "rgb24", "-"], capture_output=True, check=True
    ).stdout
    return np.frombuffer(raw, np.uint8).reshape(-1, *shape)
