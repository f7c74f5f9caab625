"""The canvas of all pictures drawn pixel by pixel, and strips that compare a dream with reality.

Everything here works on plain arrays; nothing needs a model.
"""

from __future__ import annotations

import math
from io import BytesIO

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image, ImageDraw, ImageFont

#: Colours of everything the package draws, as red, green and blue.
BACKGROUND = (250, 250, 248)
PAPER = (255, 255, 255)
INK = (40, 42, 48)
FAINT = (140, 144, 152)
LINE = (222, 222, 218)
#: Everything imagined.
ACCENT = (226, 88, 34)
#: Everything real.
BLUE = (31, 95, 168)

FONT_SIZE = 12
#: A frame is enlarged until its shorter side has at least this many pixels.
MIN_FRAME_PX = 48
#: A latent position of confidence 0 is covered by this share of the tint.
TINT_SHARE = 0.6
#: Pixels between two frames, between two sequences, and at the border.
GAP, GROUP_GAP, MARGIN = 2, 14, 10
#: Pixels of the column of row labels and of the line of step numbers.
LABEL_WIDTH, HEADER_HEIGHT = 84, 18


class Canvas:
    """A picture of fixed size; ``pen`` has Pillow's functions for lines, boxes and ellipses."""

    def __init__(self, width: int, height: int) -> None:
        """Fill it with the background colour."""
        self._image = Image.new("RGB", (width, height), BACKGROUND)
        self._font = ImageFont.load_default(FONT_SIZE)
        self.pen = ImageDraw.Draw(self._image)

    def paste(self, frame: np.ndarray, x: int, y: int) -> None:
        """Draw ``frame``, `[height, width, 3]` uint8, with its upper left corner at x, y."""
        self._image.paste(Image.fromarray(frame), (x, y))

    def write(
        self,
        text: str,
        x: float,
        y: float,
        colour: tuple[int, int, int] = INK,
        *,
        anchor: str = "ls",
        room: float | None = None,
    ) -> None:
        """Draw one line of text at x, y, in pixels from the upper left corner.

        ``anchor`` is the point of the text that lies there, as in Pillow. A text longer than
        ``room`` pixels is shortened and ends in "…".
        """
        while room is not None and len(text) > 1 and self._font.getlength(text) > room:
            text = text.removesuffix("…")[:-1].rstrip() + "…"
        self.pen.text((x, y), text, colour, self._font, anchor=anchor)

    @staticmethod
    def width_of(text: str) -> int:
        """Pixels that a line of text needs."""
        return math.ceil(ImageFont.load_default(FONT_SIZE).getlength(text))

    def pixels(self) -> np.ndarray:
        """The picture, `[height, width, 3]` uint8."""
        return np.asarray(self._image)


def report_strip(
    real: UInt8[np.ndarray, "*B T height width 3"],
    recon: UInt8[np.ndarray, "*B T height width 3"],
    dream: UInt8[np.ndarray, "*B shown height width 3"],
    context: int,
) -> UInt8[np.ndarray, "picture_height picture_width 3"]:
    """Real frames, their reconstructions and an imagined continuation in one picture.

    Four rows per sequence: ``real``; ``decoded`` (the posterior's reconstruction of every frame);
    ``imagined`` (reconstructions up to ``context``, 1 to T - 1, then, right of an orange line, the
    open-loop imagination); ``error`` (|real - imagined|, brighter is worse). Small frames are
    enlarged by an integer factor. B may be absent. ``dream`` has the frames from ``context`` on, or
    as many as ``real``, of which the first ``context`` are not shown.
    """
    real, recon, dream = (np.asarray(x) for x in (real, recon, dream))
    if real.ndim == 4:
        real, recon, dream = real[None], recon[None], dream[None]
    _check(real, recon, dream, context)
    if dream.shape[1] == real.shape[1]:
        dream = dream[:, context:]
    imagined = np.concatenate([recon[:, :context], dream], axis=1)
    error = np.abs(real.astype(np.int16) - imagined.astype(np.int16)).astype(np.uint8)
    rows = {"real": real, "decoded": recon, "imagined": imagined, "error": error}
    return _draw(rows, context)


def side_by_side(
    real: np.ndarray, recon: np.ndarray, dream: np.ndarray, context: int
) -> np.ndarray:
    """The content of :func:`report_strip` as a film `[T, height, width, 3]`, a picture per step.

    A row per sequence, with the real frame, its reconstruction and the imagined frame; the last has
    an orange border as soon as it is imagined. All are `[B, T, height, width, 3]` uint8; the first
    ``context`` frames of ``dream`` are replaced by ``recon``.
    """
    _check(real, recon, dream, context)
    shown = np.concatenate([recon[:, :context], dream[:, context:]], axis=1)
    factor = enlargement(*real.shape[2:4], 64)
    edge = ((0, 0), (0, 0), (GAP, GAP), (GAP, GAP), (0, 0))
    columns = []
    for frames in (real, recon, shown):
        framed = np.full_like(np.pad(enlarge(frames, factor), edge), BACKGROUND[0])
        if frames is shown:
            framed[:, context:] = ACCENT
        framed[:, :, GAP:-GAP, GAP:-GAP] = enlarge(frames, factor)
        columns.append(framed)
    rows = np.concatenate(columns, axis=3)
    return np.concatenate(list(rows), axis=1)


def encode_png(array: np.ndarray) -> bytes:
    """``array``, `[height, width, 3]` uint8, as the bytes of a PNG file."""
    buffer = BytesIO()
    Image.fromarray(array).save(buffer, format="PNG")
    return buffer.getvalue()


def enlarge(image: np.ndarray, factor: int) -> np.ndarray:
    """Repeat every pixel of `[..., height, width, 3]` ``factor`` times in both directions."""
    return image.repeat(factor, axis=-3).repeat(factor, axis=-2)


def enlargement(height: int, width: int, least: int = MIN_FRAME_PX) -> int:
    """The smallest integer factor that makes the shorter side at least ``least`` pixels."""
    return max(1, -(-least // min(height, width)))


def tint(
    frame: UInt8[np.ndarray, "height width 3"], confidence: Float[np.ndarray, "h w"]
) -> UInt8[np.ndarray, "height width 3"]:
    """Cover the latent positions of a frame with orange, more where the model was less certain.

    ``confidence`` is `[h, w]` in [0, 1]; h and w divide height and width.
    """
    height, width, _ = frame.shape
    rows, columns = confidence.shape
    share = TINT_SHARE * (1 - np.clip(confidence, 0, 1))
    share = share.repeat(-(-height // rows), axis=0)[:height]
    share = share.repeat(-(-width // columns), axis=1)[:, :width, None]
    mixed = frame * (1 - share) + np.array(ACCENT) * share
    return np.round(mixed).astype(np.uint8)


def _check(real: np.ndarray, recon: np.ndarray, dream: np.ndarray, context: int) -> None:
    if real.ndim != 5 or real.shape[-1] != 3:
        raise ValueError(f"real is [B, T, height, width, 3], not {real.shape}")
    batch, length, *frame = real.shape
    if not 1 <= context < length:
        raise ValueError(f"context {context} must lie between 1 and {length - 1}")
    for name, array in (("real", real), ("recon", recon), ("dream", dream)):
        shapes = [real.shape] + [(batch, length - context, *frame)] * (name == "dream")
        if array.shape not in shapes:
            raise ValueError(f"{name} is {array.shape}: it must be {' or '.join(map(str, shapes))}")
        if array.dtype != np.uint8:
            raise ValueError(f"{name} is {array.dtype}: frames are uint8")


def _draw(rows: dict[str, np.ndarray], context: int) -> np.ndarray:
    """Draw rows of frames `[B, T, height, width, 3]` uint8, by label from top to bottom."""
    batch, length, height, width, _ = next(iter(rows.values())).shape
    factor = enlargement(height, width)
    height, width = height * factor, width * factor
    group = len(rows) * (height + GAP) - GAP + GROUP_GAP

    def corner(sequence: int, row: int, step: int) -> tuple[int, int]:
        # The wider gap before imagination holds the line.
        x = MARGIN + LABEL_WIDTH + step * (width + GAP) + (3 * GAP if step >= context else 0)
        return x, MARGIN + HEADER_HEIGHT + sequence * group + row * (height + GAP)

    right, bottom = corner(batch - 1, len(rows) - 1, length - 1)
    canvas = Canvas(right + width + MARGIN, bottom + height + MARGIN)

    for step in range(length):
        x, y = corner(0, 0, step)
        ink = ACCENT if step >= context else FAINT
        offset = step - context + 1  # of the last frame seen it is 0
        canvas.write(f"{offset:+d}" if offset else "0", x + width // 2, y - 5, ink, anchor="ms")
    line = corner(0, 0, context)[0] - 2 * GAP - 1
    canvas.pen.line([(line, MARGIN), (line, bottom + height)], ACCENT, width=2)
    for sequence in range(batch):
        for row, (name, frames) in enumerate(rows.items()):
            x, y = corner(sequence, row, 0)
            canvas.write(name, x - 8, y + height // 2, anchor="rm")
            for step in range(length):
                canvas.paste(enlarge(frames[sequence, step], factor), *corner(sequence, row, step))
    return canvas.pixels()
