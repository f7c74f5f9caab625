"""Pictures that put a dream beside reality, from plain arrays.

Nothing here knows a model: the caller hands over frames and says where imagination begins.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw, ImageFont

BACKGROUND = (250, 250, 248)
INK = (40, 42, 48)
FAINT = (140, 144, 152)
#: Where imagination begins.
ACCENT = (226, 88, 34)

#: A frame is enlarged until its side has at least so many pixels.
MIN_FRAME_PX = 48
#: Pixels between two frames, between two sequences, and around everything.
GAP, GROUP_GAP, MARGIN = 2, 14, 10
#: Pixels of the column of row labels and of the line of step numbers.
LABEL_WIDTH, HEADER_HEIGHT = 84, 18
FONT_SIZE = 12


def report_strip(
    real: UInt8[np.ndarray, "*B T height width 3"],
    recon: UInt8[np.ndarray, "*B T height width 3"],
    dream: UInt8[np.ndarray, "*B shown height width 3"],
    context: int,
) -> UInt8[np.ndarray, "picture_height picture_width 3"]:
    """Real frames, their reconstruction, and an imagined continuation beside what really happened.

    Four rows a sequence: ``real``; ``decoded`` (the posterior's reconstruction of every frame);
    ``imagined`` (reconstructions up to ``context``, then, right of an orange line, the open-loop
    imagination); ``error`` (|real - imagined|, brighter is worse). Frames keep their exact pixels:
    small ones are enlarged by a whole factor, without smoothing.

    Args:
        real: `[B, T, height, width, 3]` uint8, or one sequence without B.
        recon: the same shape, reconstructions of ``real``.
        dream: the same shape, of which only the frames from ``context`` on are shown, or just
            those, `[B, T - context, height, width, 3]`.
        context: frames the model had seen when imagination began, 1 to T - 1.

    Returns:
        `[height, width, 3]` uint8.

    Raises:
        ValueError: when the shapes or types do not fit together.
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
    """The same as :func:`report_strip` in time instead of side by side: one picture a step.

    A row per sequence; in it the real frame, its reconstruction and the imagined one, which wears
    an orange frame as soon as it is a dream.

    Args:
        real: `[B, T, height, width, 3]` uint8.
        recon: the same shape.
        dream: the same shape; up to ``context`` the reconstruction is shown instead.
        context: frames the model had seen when imagination began.

    Returns:
        `[T, height, width, 3]` uint8.
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


def enlarge(image: np.ndarray, factor: int) -> np.ndarray:
    """Repeat every pixel ``factor`` times both ways.

    Args:
        image: `[..., height, width, 3]`.
        factor: at least 1.

    Returns:
        `[..., factor * height, factor * width, 3]`.
    """
    return image.repeat(factor, axis=-3).repeat(factor, axis=-2)


def enlargement(height: int, width: int, least: int = MIN_FRAME_PX) -> int:
    """The smallest whole factor that makes the shorter side at least ``least`` pixels."""
    return max(1, -(-least // min(height, width)))


def _check(real: np.ndarray, recon: np.ndarray, dream: np.ndarray, context: int) -> None:
    if real.ndim != 5 or real.shape[-1] != 3:
        raise ValueError(f"real is [B, T, height, width, 3], not {real.shape}")
    length = real.shape[1]
    if not 1 <= context < length:
        raise ValueError(f"context {context} must lie between 1 and {length - 1}")
    if recon.shape != real.shape:
        raise ValueError(f"recon is {recon.shape}, real is {real.shape}: they must be equal")
    dreamt = (real.shape[0], length - context, *real.shape[2:])
    if dream.shape not in (real.shape, dreamt):
        raise ValueError(f"dream is {dream.shape}: it must be {real.shape} or {dreamt}")
    for name, array in (("real", real), ("recon", recon), ("dream", dream)):
        if array.dtype != np.uint8:
            raise ValueError(f"{name} is {array.dtype}: frames are uint8")


def _draw(rows: dict[str, np.ndarray], context: int) -> np.ndarray:
    """Lay the rows of every sequence out on one canvas.

    Args:
        rows: row label to frames `[B, T, height, width, 3]` uint8, from top to bottom.
        context: index of the first imagined column.
    """
    batch, length, height, width, _ = next(iter(rows.values())).shape
    factor = enlargement(height, width)
    height, width = height * factor, width * factor
    group = len(rows) * (height + GAP) - GAP + GROUP_GAP

    def corner(sequence: int, row: int, step: int) -> tuple[int, int]:
        # Imagination gets a wider gap, which holds the line.
        x = MARGIN + LABEL_WIDTH + step * (width + GAP) + (3 * GAP if step >= context else 0)
        return x, MARGIN + HEADER_HEIGHT + sequence * group + row * (height + GAP)

    right, bottom = corner(batch - 1, len(rows) - 1, length - 1)
    size = (right + width + MARGIN, bottom + height + MARGIN)
    canvas = Image.new("RGB", size, BACKGROUND)
    pen, font = ImageDraw.Draw(canvas), ImageFont.load_default(FONT_SIZE)

    for step in range(length):
        x, y = corner(0, 0, step)
        ink = ACCENT if step >= context else FAINT
        pen.text((x + width // 2, y - 5), _offset(step, context), ink, font, anchor="ms")
    line = corner(0, 0, context)[0] - 2 * GAP - 1
    pen.line([(line, MARGIN), (line, bottom + height)], ACCENT, width=2)
    for sequence in range(batch):
        for row, (name, frames) in enumerate(rows.items()):
            x, y = corner(sequence, row, 0)
            pen.text((x - 8, y + height // 2), name, INK, font, anchor="rm")
            for step in range(length):
                frame = Image.fromarray(enlarge(frames[sequence, step], factor))
                canvas.paste(frame, corner(sequence, row, step))
    return np.asarray(canvas)


def _offset(step: int, context: int) -> str:
    """A column's heading: the last frame seen is 0, the first imagined one is +1."""
    offset = step - context + 1
    return f"+{offset}" if offset > 0 else str(offset)
