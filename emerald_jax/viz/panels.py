"""The figures of a run's report, from plain arrays and rows; each returns the bytes of a PNG."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from io import BytesIO

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image, ImageDraw

from emerald_jax.viz.curves import BLUE, GREY, tidy
from emerald_jax.viz.dream import tint
from emerald_jax.viz.strips import ACCENT, BACKGROUND, enlarge, enlargement

ORANGE = "#e25822"
#: Name -> (steps `[n]`, values `[n]`).
Series = Mapping[str, tuple[np.ndarray, np.ndarray]]


def png_of(picture: Figure | np.ndarray) -> bytes:
    """A figure, or `[height, width, 3]` uint8, as the bytes of a PNG."""
    buffer = BytesIO()
    if isinstance(picture, Figure):
        picture.savefig(buffer, format="png")
    else:
        Image.fromarray(picture).save(buffer, format="PNG")
    return buffer.getvalue()


def lines(series: Series, *, title: str, share: bool = False) -> bytes:
    """Several quantities against environment steps.

    Args:
        series: what to draw.
        title: of the figure.
        share: the values are shares of one whole.
    """
    figure, axis = _figure(title, width=6.4)
    for i, (name, (steps, values)) in enumerate(series.items()):
        colour = (BLUE, ORANGE, GREY)[i] if i < 3 else None
        # A line of one point would not be seen.
        dot = "o" if len(steps) == 1 else None
        axis.plot(steps, values, color=colour, label=name, marker=dot, markersize=4)
    axis.ticklabel_format(axis="y", useOffset=False)
    if share:
        axis.set_ylim(0, 1)
    if len(series) > 1 or share:
        axis.legend(frameon=False, fontsize="small")
    tidy(axis)
    return png_of(figure)


def bars(values: Mapping[str, float], *, title: str, unit: str) -> bytes:
    """One horizontal bar per name.

    Args:
        values: name to length; finite.
        title: of the figure.
        unit: written at the axis.
    """
    figure, axis = _figure(title, height=0.9 + 0.23 * len(values))
    names = [name.replace("_", " ") for name in values]
    drawn = axis.barh(names, list(values.values()), color=BLUE)
    axis.bar_label(drawn, fmt="%.3g", padding=3, fontsize="small", color=GREY)
    axis.invert_yaxis()
    axis.set_xlabel(unit)
    _plain(axis)
    axis.margins(x=0.12)
    return png_of(figure)


def action_histogram(names: Sequence[str], shares: Mapping[str, np.ndarray]) -> bytes:
    """How often each action is taken, in several settings side by side.

    Args:
        names: of the actions.
        shares: setting to `[A]` shares of one.
    """
    figure, axis = _figure("Actions", width=7.2)
    places = np.arange(len(names))
    thick = 0.8 / max(1, len(shares))
    for i, (label, values) in enumerate(shares.items()):
        shift = (i - (len(shares) - 1) / 2) * thick
        axis.bar(places + shift, 100 * values, thick, color=(BLUE, ORANGE)[i % 2], label=label)
    axis.set_xticks(places, [n.replace("_", " ") for n in names], rotation=60, ha="right")
    axis.tick_params(axis="x", labelsize="small")
    axis.set_ylabel("per cent")
    axis.set_title("")
    axis.legend(frameon=False, fontsize="small", ncols=2, loc="lower left", bbox_to_anchor=(0, 1))
    _plain(axis)
    return png_of(figure)


def attention_map(weights: np.ndarray, ages: Sequence[int]) -> bytes:
    """How far back each head of each block looks.

    Args:
        weights: `[blocks, heads, C + 1]` mean attention by distance, nearest first.
        ages: distances to mark on the axis.
    """
    blocks, heads, reach = weights.shape
    figure, axis = _figure("Attention over the past", width=7.2, height=1.2 + 0.2 * blocks * heads)
    flat = weights.reshape(blocks * heads, reach)
    image = axis.imshow(flat, aspect="auto", cmap="viridis", interpolation="nearest", vmin=0)
    figure.colorbar(image, ax=axis, label="mean weight")
    labels = [f"block {b + 1}, head {h + 1}" for b in range(blocks) for h in range(heads)]
    axis.set_yticks(range(blocks * heads), labels, fontsize="x-small")
    axis.set_xticks([age for age in ages if age < reach])
    axis.set_xlabel("steps back; 0 is what led into this step")
    return png_of(figure)


def rewards(real: np.ndarray, predicted: np.ndarray, cont: np.ndarray, context: int) -> bytes:
    """Imagined against real reward along recorded episodes.

    Args:
        real: `[B, T]`.
        predicted: `[B, T]`.
        cont: `[B, T]` predicted probability to go on.
        context: steps seen before the dream.
    """
    figure = Figure(figsize=(7.2, 1.6 * len(real) + 0.6), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(real), 1, squeeze=False, sharex=True)[:, 0]
    steps = np.arange(real.shape[1]) - context + 1
    for row, axis in enumerate(axes):
        axis.plot(steps, real[row], "o-", color=BLUE, markersize=3, label="real reward")
        axis.plot(steps, predicted[row], color=ORANGE, label="imagined reward")
        axis.plot(steps, cont[row], ":", color=GREY, label="imagined chance to go on")
        axis.axvline(0.5, color=ORANGE, linewidth=0.8)
        _plain(axis)
    axes[0].legend(
        frameon=False, fontsize="small", ncols=3, loc="lower left", bbox_to_anchor=(0, 1)
    )
    axes[-1].set_xlabel("imagined steps")
    return png_of(figure)


def decoding_strip(
    frames: np.ndarray, masked: np.ndarray, confidence: np.ndarray, real: np.ndarray
) -> np.ndarray:
    """The decoding steps of a latent, beside the frame that really came.

    Upper row: the latent as it stands after each step. Lower row: the same, places tinted by how
    unsure the model is of their tokens, and as many dots in each place as tenths of its tokens
    were still masked when the step began.

    Args:
        frames: `[S, height, width, 3]` uint8.
        masked: `[S, h, w]` share of a place's tokens that were MASK, in [0, 1].
        confidence: `[S, h, w]` mean probability of a place's tokens.
        real: `[height, width, 3]` uint8.

    Returns:
        `[height, width, 3]` uint8.
    """
    height, width, _ = real.shape
    factor = enlargement(height, width, 128)
    big = (height * factor, width * factor)
    gap, top = 6, 18
    columns = len(frames) + 1
    size = (columns * (big[1] + gap) + gap, top + 2 * (big[0] + gap) + gap)
    canvas = Image.new("RGB", size, BACKGROUND)
    pen = ImageDraw.Draw(canvas)
    for s in range(columns):
        x = gap + s * (big[1] + gap)
        last = s == len(frames)
        frame = enlarge(real if last else frames[s], factor)
        pen.text(
            (x + big[1] // 2, top - 4),
            "real" if last else f"step {s + 1}",
            (40, 42, 48),
            anchor="ms",
        )
        canvas.paste(Image.fromarray(frame), (x, top))
        if last:
            continue
        y = top + big[0] + gap
        canvas.paste(Image.fromarray(tint(frame, confidence[s])), (x, y))
        _mark(pen, masked[s], (x, y), big)
    return np.asarray(canvas)


def _mark(pen: ImageDraw.ImageDraw, share: np.ndarray, corner: tuple, size: tuple) -> None:
    """Dots for masked tokens: one for each tenth of a place's tokens."""
    rows, columns = share.shape
    high, wide = size[0] / rows, size[1] / columns
    for row in range(rows):
        for column in range(columns):
            for dot in range(round(10 * share[row, column])):
                x = corner[0] + column * wide + 4 + 5 * (dot % 5)
                y = corner[1] + row * high + 4 + 5 * (dot // 5)
                pen.rectangle((x, y, x + 2, y + 2), fill=(255, 255, 255), outline=ACCENT)


def _figure(title: str, *, width: float = 6.4, height: float = 3.2) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, height), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    axis = figure.subplots()
    axis.set_title(title)
    return figure, axis


def _plain(axis: Axes) -> None:
    axis.grid(alpha=0.25, linewidth=0.6)
    axis.spines[["top", "right"]].set_visible(False)
    axis.set_axisbelow(True)
