"""A dream beside reality, as a film or as one picture, from plain arrays.

Left what really happened, right what the model imagined, uncertain places tinted; underneath, the
predicted reward (with the real one where it is known) and the predicted probability to go on.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import imageio
import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image, ImageDraw, ImageFont

from emerald_jax.viz.strips import ACCENT, BACKGROUND, FAINT, INK, enlarge, enlargement

#: Endings a dream can be saved as.
ENDINGS = (".mp4", ".gif", ".png")
#: Sides of the frames in a film and in the one picture, in pixels at least.
FILM_PX, SHEET_PX = 224, 56
#: Columns of the one picture at most.
SHEET_COLUMNS = 14
#: A place of confidence 0 is covered by this share of the tint.
TINT_SHARE = 0.6
MARGIN, GAP, STRIP_HEIGHT, HEADER = 12, 8, 44, 20
#: Pixels of a strip's caption, which stands above it.
CAPTION = 16
#: Pixels of both strips with their captions.
STRIPS = 2 * (CAPTION + STRIP_HEIGHT + GAP)
#: What frames that never were are painted with.
UNKNOWN = 232
BLUE = (31, 95, 168)

#: What Pillow's default font is, with FreeType and without.
Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


@dataclass(frozen=True, kw_only=True)
class Film:
    """What is shown: N steps, of which the first ``context`` were really seen.

    Attributes:
        real: `[N, height, width, 3]` uint8.
        dream: the same shape, reconstructions up to ``context``.
        context: frames seen before the dream began, 1 to N - 1.
        known: frames of ``real`` that did happen; the others are not shown.
        reward: `[N]` predicted reward; NaN where there is none.
        real_reward: `[N]`; NaN where it is not known.
        cont: `[N]` predicted probability to go on; NaN where there is none.
        confidence: `[N, h, w]` in [0, 1], of each latent position.
        actions: what was done at each step, one word each, or empty.
    """

    real: np.ndarray
    dream: np.ndarray
    context: int
    known: int
    reward: np.ndarray
    real_reward: np.ndarray
    cont: np.ndarray
    confidence: np.ndarray
    actions: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        n = len(self.real)
        if self.real.shape != self.dream.shape or self.real.dtype != np.uint8:
            raise ValueError(f"real {self.real.shape} and dream {self.dream.shape} differ")
        if not 1 <= self.context < n:
            raise ValueError(f"context {self.context} must lie between 1 and {n - 1}")
        for name in ("reward", "real_reward", "cont", "confidence"):
            if len(getattr(self, name)) != n:
                raise ValueError(f"{name} has {len(getattr(self, name))} steps, not {n}")


def tint(
    frame: UInt8[np.ndarray, "height width 3"], confidence: Float[np.ndarray, "h w"]
) -> UInt8[np.ndarray, "height width 3"]:
    """Cover the latent positions of a frame with orange, the more the less sure the model was.

    Args:
        frame: `[height, width, 3]` uint8.
        confidence: `[h, w]` in [0, 1]; h and w divide height and width.

    Returns:
        `[height, width, 3]` uint8.
    """
    height, width, _ = frame.shape
    rows, columns = confidence.shape
    share = TINT_SHARE * (1 - np.clip(confidence, 0, 1))
    share = share.repeat(-(-height // rows), axis=0)[:height]
    share = share.repeat(-(-width // columns), axis=1)[:, :width, None]
    mixed = frame * (1 - share) + np.array(ACCENT) * share
    return np.round(mixed).astype(np.uint8)


def film_frames(film: Film, *, tinted: bool = True) -> Iterator[np.ndarray]:
    """The pictures of a film, one a step, sides even as video codecs want them.

    Args:
        film: what to show.
        tinted: tint uncertain places.

    Yields:
        `[height, width, 3]` uint8.
    """
    height, width = film.real.shape[1:3]
    factor = enlargement(height, width, FILM_PX)
    height, width = height * factor, width * factor
    right = MARGIN + width + GAP
    size = (right + width + MARGIN, MARGIN + HEADER + height + STRIPS + MARGIN)
    size = tuple(side + side % 2 for side in size)
    font = ImageFont.load_default(12)
    for step in range(len(film.real)):
        canvas = Image.new("RGB", size, BACKGROUND)
        pen = ImageDraw.Draw(canvas)
        real = film.real[step] if step < film.known else np.full_like(film.real[0], UNKNOWN)
        dream = film.dream[step]
        if tinted and step >= film.context:
            dream = tint(enlarge(dream, factor), film.confidence[step])
        else:
            dream = enlarge(dream, factor)
        canvas.paste(Image.fromarray(enlarge(real, factor)), (MARGIN, MARGIN + HEADER))
        canvas.paste(Image.fromarray(dream), (right, MARGIN + HEADER))
        left_words, right_words = _headings(film, step)
        base = MARGIN + HEADER - 6
        pen.text((MARGIN, base), left_words, INK, font, anchor="ls")
        ink = ACCENT if step >= film.context else FAINT
        pen.text((right, base), right_words, ink, font, anchor="ls")
        top = MARGIN + HEADER + height + GAP + CAPTION
        box = (MARGIN, top, right + width, top + STRIP_HEIGHT)
        _draw_strips(pen, font, film, box, upto=step)
        yield np.asarray(canvas)


def film_sheet(film: Film, *, tinted: bool = True) -> UInt8[np.ndarray, "height width 3"]:
    """The whole film as one picture: frames in two rows, the strips underneath.

    Args:
        film: what to show; of a long one evenly spaced steps are taken.
        tinted: tint uncertain places.

    Returns:
        `[height, width, 3]` uint8.
    """
    steps = np.unique(np.linspace(0, len(film.real) - 1, SHEET_COLUMNS).round().astype(int))
    height, width = film.real.shape[1:3]
    factor = enlargement(height, width, SHEET_PX)
    height, width = height * factor, width * factor
    label = 56
    right = MARGIN + label + len(steps) * (width + 2)
    top = MARGIN + HEADER
    size = (right + MARGIN, top + 2 * (height + 2) + STRIPS + MARGIN)
    canvas = Image.new("RGB", size, BACKGROUND)
    pen, font = ImageDraw.Draw(canvas), ImageFont.load_default(12)
    for row, name in enumerate(("real", "dream")):
        y = top + row * (height + 2)
        pen.text((MARGIN, y + height // 2), name, INK, font, anchor="lm")
    for column, step in enumerate(steps):
        x = MARGIN + label + column * (width + 2)
        dreamt = step >= film.context
        offset = step - film.context + 1
        words = f"+{offset}" if dreamt else str(offset)
        pen.text((x + width // 2, top - 6), words, ACCENT if dreamt else FAINT, font, anchor="ms")
        real = film.real[step] if step < film.known else np.full_like(film.real[0], UNKNOWN)
        dream = enlarge(film.dream[step], factor)
        if tinted and dreamt:
            dream = tint(dream, film.confidence[step])
        canvas.paste(Image.fromarray(enlarge(real, factor)), (x, top))
        canvas.paste(Image.fromarray(dream), (x, top + height + 2))
    y = top + 2 * (height + 2) + GAP + CAPTION
    box = (MARGIN + label, y, right, y + STRIP_HEIGHT)
    _draw_strips(pen, font, film, box, upto=len(film.real) - 1)
    return np.asarray(canvas)


def save_film(film: Film, path: str | Path, *, fps: float = 8.0, tinted: bool = True) -> Path:
    """Write a film as .mp4 or .gif, or all of it as one .png; whole or not at all.

    Args:
        film: what to show.
        path: where to; the ending decides.
        fps: steps a second.
        tinted: tint uncertain places.

    Returns:
        ``path``.

    Raises:
        ValueError: on another ending.
    """
    path = Path(path)
    ending = path.suffix.lower()
    if ending not in ENDINGS:
        raise ValueError(f"{path} must end in {', '.join(ENDINGS)}")
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.stem}.{os.getpid()}{ending}")
    try:
        if ending == ".png":
            Image.fromarray(film_sheet(film, tinted=tinted)).save(draft)
        else:
            write_video(draft, film_frames(film, tinted=tinted), fps)
        os.replace(draft, path)
    finally:
        draft.unlink(missing_ok=True)
    return path


def write_video(path: Path, frames: Iterator[np.ndarray] | np.ndarray, fps: float) -> None:
    """Write `[height, width, 3]` uint8 frames as .mp4 (H.264) or endless .gif through imageio.

    Args:
        path: the ending decides; sides must be even for .mp4.
        frames: the pictures.
        fps: pictures a second.
    """
    if path.suffix.lower() == ".gif":
        options = {"duration": 1000 / fps, "loop": 0}
    else:
        options = {"fps": fps, "macro_block_size": 2, "quality": 8}
    with imageio.get_writer(path, **options) as writer:
        for frame in frames:
            writer.append_data(frame)


def _headings(film: Film, step: int) -> tuple[str, str]:
    """What stands over the two frames of a step."""
    action = f", {film.actions[step]}" if step < len(film.actions) and film.actions[step] else ""
    real = f"real{action}" if step < film.known else "real: not known"
    offset = step - film.context + 1
    if offset <= 0:
        return real, "reconstructed"
    over = (film.cont[film.context : step] < 0.5).any()
    return real, f"dream +{offset}{action}{': past its end' if over else ''}"


def _draw_strips(
    pen: ImageDraw.ImageDraw, font: Font, film: Film, box: tuple, *, upto: int
) -> None:
    """Predicted reward and, below it, predicted continue, up to a step.

    Args:
        pen: what draws.
        font: of the labels.
        film: what is drawn.
        box: left, top, right and bottom of the upper strip, in pixels.
        upto: the newest step.
    """
    left, top, right, bottom = box
    count = len(film.real)
    known = np.concatenate([film.reward, film.real_reward])
    known = np.abs(known[np.isfinite(known)])
    most = max(float(known.max()) if known.size else 0.0, 0.1)

    def x(step: float) -> float:
        return left + (step + 0.5) * (right - left) / count

    middle, half = (top + bottom) / 2, (bottom - top) / 2 - 4
    begin = left + film.context * (right - left) / count
    lower = bottom + GAP + CAPTION
    for y0, y1 in ((top, bottom), (lower, lower + bottom - top)):
        pen.rectangle((left, y0, right, y1), outline=(222, 222, 218), fill=(255, 255, 255))
        pen.line((begin, y0, begin, y1), fill=ACCENT)
    pen.line((left, middle, right, middle), fill=(222, 222, 218))
    bar = max(1.0, 0.3 * (right - left) / count)
    floor = lower + (bottom - top) - 4
    points = []
    for step in range(upto + 1):
        if np.isfinite(film.reward[step]):
            y = middle - half * film.reward[step] / most
            pen.rectangle((x(step) - bar, min(y, middle), x(step) + bar, max(y, middle)), ACCENT)
        if np.isfinite(film.real_reward[step]):
            y = middle - half * film.real_reward[step] / most
            pen.ellipse((x(step) - 2, y - 2, x(step) + 2, y + 2), fill=BLUE)
        if np.isfinite(film.cont[step]):
            points.append((x(step), floor - (bottom - top - 8) * film.cont[step]))
    if len(points) > 1:
        pen.line(points, fill=ACCENT, width=2)
    scale = f", full scale {most:.2g}" if known.size else ""
    words = f"reward: predicted (bars), real (dots){scale}"
    pen.text((left, top - 5), words, FAINT, font, anchor="ls")
    pen.text((left, lower - 5), "predicted chance to go on, 0 to 1", FAINT, font, anchor="ls")
