"""Moving pictures for TensorBoard: a GIF inside an ordinary image summary, which it plays.

tensorboardX' own ``add_video`` needs moviepy; imageio, which writes our films, makes GIFs too.
"""

from __future__ import annotations

import io

import imageio
import numpy as np
import tensorboardX
from tensorboardX.proto.summary_pb2 import Summary


def add_animation(
    writer: tensorboardX.SummaryWriter, name: str, frames: np.ndarray, step: int, fps: float = 4.0
) -> None:
    """Add an endless animation to the images of a run.

    Args:
        writer: open writer.
        name: tag, in a group such as ``dream/animated``.
        frames: `[T, height, width, 3]` uint8.
        step: environment steps so far.
        fps: frames a second.

    Raises:
        ValueError: when ``frames`` is no such film.
    """
    frames = np.asarray(frames)
    if frames.ndim != 4 or frames.shape[-1] != 3 or frames.dtype != np.uint8:
        raise ValueError(
            f"an animation is [T, height, width, 3] uint8, not {frames.shape} {frames.dtype}"
        )
    image = Summary.Image(
        height=frames.shape[1],
        width=frames.shape[2],
        colorspace=3,
        encoded_image_string=encode_gif(frames, fps),
    )
    writer.file_writer.add_summary(Summary(value=[Summary.Value(tag=name, image=image)]), step)


def encode_gif(frames: np.ndarray, fps: float) -> bytes:
    """``frames``, `[T, height, width, 3]` uint8, as the bytes of an endless GIF."""
    buffer = io.BytesIO()
    with imageio.get_writer(buffer, format="GIF", duration=1000 / fps, loop=0) as writer:
        for frame in frames:
            writer.append_data(frame)
    return buffer.getvalue()
