"""Films in TensorBoard are image summaries with an animated GIF."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import tensorboardX
from PIL import Image
from tensorboardX.proto.event_pb2 import Event

from emerald_jax.run.log import add_animation, encode_gif
from emerald_jax.run.pictures import ACCENT, side_by_side


def film(steps: int = 5) -> np.ndarray:
    frames = np.zeros((steps, 12, 18, 3), np.uint8)
    for t in range(steps):
        frames[t, :, 3 * t : 3 * t + 3] = (250, 40, 30)
    return frames


def events(path: Path) -> list[Event]:
    """Records of an event file: length, its checksum, the event, its checksum."""
    data, found, at = path.read_bytes(), [], 0
    while at < len(data):
        size = int.from_bytes(data[at : at + 8], "little")
        found.append(Event.FromString(data[at + 12 : at + 12 + size]))
        at += size + 16
    return found


def test_a_film_is_an_image_that_moves(tmp_path: Path) -> None:
    with tensorboardX.SummaryWriter(str(tmp_path)) as writer:
        add_animation(writer, "dream/animated", film(), 32)
    (path,) = tmp_path.iterdir()
    (event,) = [e for e in events(path) if e.summary.value]
    (value,) = event.summary.value
    assert (value.tag, event.step) == ("dream/animated", 32)
    assert (value.image.height, value.image.width) == (12, 18)
    gif = Image.open(io.BytesIO(value.image.encoded_image_string))
    assert (gif.format, gif.n_frames, gif.info["loop"]) == ("GIF", 5, 0)
    gif.seek(3)
    np.testing.assert_allclose(np.asarray(gif.convert("RGB")), film()[3], atol=24)


def test_the_frame_rate_is_kept() -> None:
    gif = Image.open(io.BytesIO(encode_gif(film(), 8.0)))
    assert gif.info["duration"] in (120, 130)  # GIF counts hundredths of a second


def test_arrays_of_other_shapes_are_refused(tmp_path: Path) -> None:
    with (
        tensorboardX.SummaryWriter(str(tmp_path)) as writer,
        pytest.raises(ValueError, match="an animation is"),
    ):
        add_animation(writer, "dream", film()[0], 0)


def test_side_by_side_frames_the_imagined_images() -> None:
    real, recon, dream = (np.full((2, 4, 16, 16, 3), v, np.uint8) for v in (10, 20, 30))
    frames = side_by_side(real, recon, dream, 2)
    assert frames.shape == (4, 2 * (64 + 4), 3 * (64 + 4), 3)
    thirds = np.split(frames, 3, axis=2)
    values = [[int(third[t, 34, 34, 0]) for third in thirds] for t in range(4)]
    assert values == [[10, 20, 20], [10, 20, 20], [10, 20, 30], [10, 20, 30]]
    framed = [(third == ACCENT).all(-1).any((1, 2)).tolist() for third in thirds]
    assert framed == [[False] * 4, [False] * 4, [False, False, True, True]]
