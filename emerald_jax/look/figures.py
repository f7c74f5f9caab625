"""Figures of runs and reports, from arrays and rows, in one style: palette, fonts, room for names.

A figure function returns a Matplotlib figure, already fitted to its labels. Long names cannot break
it: labels are wrapped or shortened to the room they have, and a figure grows where its labels would
leave less than :data:`SHARE` of it to the axes. Build a figure with :func:`new_figure`,
:func:`heading`, :func:`name_rows`, :func:`add_legend`, and :func:`fit` it.
"""

from __future__ import annotations

import functools
import math
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from itertools import cycle
from pathlib import Path
from typing import Any, Literal

import matplotlib
import numpy as np
from cycler import cycler
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg, RendererAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.ticker import EngFormatter

from emerald_jax.run import pictures
from emerald_jax.run.directory import EPISODES_FILE, METRICS_FILE, read_rows
from emerald_jax.run.pictures import ACCENT, PAPER, Canvas, enlarge, enlargement, tint

#: Real things are blue, imagined ones orange, everything else grey.
BLUE, ORANGE = (f"#{bytes(colour).hex()}" for colour in (pictures.BLUE, pictures.ACCENT))
GREY, LIGHT = "#9aa0a8", "#d5d8dc"
#: Colours of lines without a meaning of their own; colour-blind readers can tell them apart.
COLOURS = (BLUE, ORANGE, "#2f9e77", "#8c4a9c", "#c9a227", "#56b4e9", "#282a30")
LINES = cycler(linestyle=["-", "--", ":"]) * cycler(color=COLOURS)
STYLE = {"axes.axisbelow": True, "axes.prop_cycle": LINES}
STYLE |= {"axes.spines.right": False, "axes.spines.top": False}
STYLE |= {"axes.grid": True, "grid.alpha": 0.25, "grid.linewidth": 0.6}
DPI = 120
#: The axes have at least this share of a figure's width and height.
SHARE = 0.55
#: Font sizes in points, and the height in inches of a line of small text.
MEDIUM, SMALL, LINE_INCHES = 10.0, 8.3, 0.17
#: Width in inches of names next to an axis, and of a legend on the right.
NAME_INCHES, SIDE_INCHES = 2.8, 1.6
#: Height in inches of a horizontal bar.
BAR_INCHES = 0.3
#: Episodes averaged into a learning curve, as in a run's own result line.
WINDOW = 100
#: Entries of an action that have a curve.
MOST_ENTRIES = 8
#: The group of metrics drawn next to the return.
LOSS_GROUP = "loss/"

#: Name -> (steps `[n]`, values `[n]`).
Series = Mapping[str, tuple[np.ndarray, np.ndarray]]


def new_figure(
    width: float, height: float, rows: int = 1, columns: int = 1, **options: Any
) -> tuple[Figure, list[Axes]]:
    """An empty figure of so many inches, and its axes row by row; it opens no window."""
    figure = Figure(figsize=(width, height), dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)
    with matplotlib.rc_context(STYLE):
        axes = figure.subplots(rows, columns, squeeze=False, **options)
    return figure, list(axes.flat)


def wrap(text: str, inches: float, *, size: float = SMALL, lines: int = 2) -> str:
    """Break a text into lines of some inches; shorten it with "…" where they do not suffice."""
    columns = max(4, int(inches * 72 / (0.3 * size)))
    while True:
        parts = textwrap.wrap(text, columns) or [""]
        if len(parts) > lines:
            parts[lines - 1 :] = [parts[lines - 1][: columns - 2].rstrip(" ,") + " …"]
        widest = max(sum(_width(letter, size) for letter in part) for part in parts)
        if widest <= inches or columns <= 4:
            return "\n".join(parts)
        columns = max(4, min(columns - 1, int(columns * inches / widest) + 1))


@functools.lru_cache(maxsize=4096)
def _width(letter: str, size: float) -> float:
    """Width in inches of a letter, as Matplotlib draws it."""
    font = FontProperties(size=size)
    # Measured in a row: a single letter is rounded up to pixels.
    width, _, _ = RendererAgg(1, 1, DPI).get_text_width_height_descent(9 * letter, font, False)
    return width / DPI / 9


def heading(axis: Axes, text: str) -> None:
    """Set the title of axes, at most as wide as the figure until :func:`fit` knows the axes."""
    width = axis.figure.get_figwidth() / axis.get_subplotspec().get_gridspec().ncols
    axis.set_title(wrap(text, width, size=MEDIUM, lines=3), loc="left", fontsize=MEDIUM)


def name_rows(axis: Axes, names: Sequence[str]) -> None:
    """Name the rows 0, 1, … of axes at their left side, the first one on top."""
    axis.set_yticks(range(len(names)), [wrap_name(name) for name in names], fontsize=SMALL)
    axis.invert_yaxis()


def wrap_name(name: str) -> str:
    """Wrap a name that stands next to an axis."""
    return wrap(name, NAME_INCHES, lines=3)


def add_legend(
    figure: Figure, *, side: Literal["lower", "right"] = "lower", columns: int = 1
) -> Figure:
    """Name the labelled lines outside the axes; returns the figure, grown by the legend."""
    handles, labels = [], []
    for axis in figure.axes:
        for found, more in zip((handles, labels), axis.get_legend_handles_labels(), strict=True):
            found += more
    if not labels:
        return figure
    room = SIDE_INCHES if side == "right" else (figure.get_figwidth() - 0.3) / columns - 0.6
    wrapped = [wrap(label, room) for label in labels]
    if side == "right":
        figure.set_figwidth(figure.get_figwidth() + SIDE_INCHES)
        place = "outside right upper"
    else:
        rows = sum(text.count("\n") + 1 for text in wrapped) / columns
        figure.set_figheight(figure.get_figheight() + LINE_INCHES * rows)
        place = "outside lower left"
    figure.legend(handles, wrapped, loc=place, ncols=columns, fontsize=SMALL, frameon=False)
    return figure


def fit(figure: Figure) -> Figure:
    """Wrap titles and axis labels to their axes, and enlarge the figure where labels fill it."""
    _grow(figure)
    for axis in figure.axes:
        width, height = axis.get_window_extent().size / figure.dpi
        if title := axis.get_title(loc="left"):
            title = wrap(title, width, size=MEDIUM, lines=3)
            axis.set_title(title, loc="left", fontsize=MEDIUM)
        for label, room in ((axis.xaxis.label, width), (axis.yaxis.label, height)):
            label.set_text(wrap(label.get_text(), room, size=label.get_size()))
    _grow(figure)
    return figure


def _grow(figure: Figure) -> None:
    """Give the axes their share of the figure."""
    figure.get_layout_engine().execute(figure)
    sides: tuple[dict, dict] = ({}, {})
    for axis in figure.axes:
        if spot := axis.get_subplotspec():
            width, height = axis.get_window_extent().size / figure.dpi
            sides[0][spot.colspan.start] = width
            sides[1][spot.rowspan.start] = height
    inside = np.array([sum(found.values()) for found in sides])
    size = figure.get_size_inches()
    figure.set_size_inches(np.maximum(size, (size - inside) / (1 - SHARE)))


def png_of(picture: Figure | np.ndarray) -> bytes:
    """A figure, or `[height, width, 3]` uint8, as the bytes of a PNG file."""
    if not isinstance(picture, Figure):
        return pictures.encode_png(picture)
    buffer = BytesIO()
    picture.savefig(buffer, format="png")
    return buffer.getvalue()


def save(figure: Figure, out: str | Path) -> Path:
    """Write a figure; the ending of ``out`` decides the format (png, svg, pdf)."""
    out = Path(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out)
    return out


def over_steps(axis: Axes) -> None:
    """Format axes whose x axis counts environment steps."""
    axis.set_xlabel("environment steps")
    axis.xaxis.set_major_formatter(EngFormatter(sep=" "))
    axis.margins(x=0.02)


def write_value(axis: Axes, text: str, point: tuple[float, float], colour: str) -> None:
    """Write a number to the right of a point."""
    place = dict(xytext=(4, 0), textcoords="offset points", va="center", annotation_clip=False)
    axis.annotate(text, point, color=colour, fontsize=SMALL, **place)


def lines(series: Series, *, title: str, share: bool = False) -> Figure:
    """Several quantities against environment steps; ``share``: the values are shares of 1."""
    figure, (axis,) = new_figure(6.4, 3.2)
    heading(axis, title)
    for name, (steps, values) in series.items():
        # A line through a single point would be invisible.
        dot = "o" if len(steps) == 1 else None
        axis.plot(steps, values, label=name, marker=dot, markersize=4)
    axis.ticklabel_format(axis="y", useOffset=False)
    if share:
        axis.set_ylim(0, 1)
    over_steps(axis)
    if len(series) > 1 or share:
        add_legend(figure, columns=2)
    return fit(figure)


def action_histogram(names: Sequence[str], shares: Mapping[str, np.ndarray]) -> Figure:
    """The frequency of each action: ``shares`` maps a setting to `[A]` shares of 1."""
    figure, (axis,) = new_figure(7.2, 3.2)
    places, thick = np.arange(len(names)), 0.8 / max(1, len(shares))
    for i, (label, values) in enumerate(shares.items()):
        shift = (i - (len(shares) - 1) / 2) * thick
        axis.bar(places + shift, 100 * values, thick, color=COLOURS[i], label=label)
    labels = [wrap(name.replace("_", " "), 1.4, lines=1) for name in names]
    axis.set_xticks(places, labels, rotation=60, ha="right", rotation_mode="anchor", fontsize=SMALL)
    axis.set_ylabel("per cent")
    return fit(add_legend(figure, columns=2))


def action_curves(names: Sequence[str], curves: Mapping[str, np.ndarray]) -> Figure:
    """Actions over time: ``curves`` maps a setting to `[T, A]` entries in [-1, 1].

    One row per entry, the first :data:`MOST_ENTRIES` of them.
    """
    names = names[:MOST_ENTRIES]
    figure, axes = new_figure(7.2, 1.1 * len(names) + 0.8, rows=len(names), sharex=True)
    for row, (name, axis) in enumerate(zip(names, axes, strict=True)):
        for i, (label, values) in enumerate(curves.items()):
            options = dict(color=COLOURS[i], markersize=3, label=None if row else label)
            axis.plot(np.arange(1, len(values) + 1), values[:, row], ".-", **options)
        axis.set_ylim(-1.1, 1.1)
        axis.set_ylabel(wrap(name, 1.0), fontsize=SMALL)
    axes[-1].set_xlabel("steps")
    return fit(add_legend(figure, columns=2))


def attention_map(weights: np.ndarray, ages: Sequence[int]) -> Figure:
    """How far back each head of each block looks.

    ``weights`` is `[blocks, heads, C + 1]`, mean attention by distance, nearest first; ``ages`` are
    the distances to mark on the axis.
    """
    blocks, heads, reach = weights.shape
    figure, (axis,) = new_figure(7.2, 1.2 + 0.2 * blocks * heads)
    flat = weights.reshape(blocks * heads, reach)
    image = axis.imshow(flat, aspect="auto", cmap="viridis", interpolation="nearest", vmin=0)
    axis.grid(visible=False)
    figure.colorbar(image, ax=axis, label="mean weight")
    labels = [f"block {b + 1}, head {h + 1}" for b in range(blocks) for h in range(heads)]
    axis.set_yticks(range(blocks * heads), labels, fontsize="x-small")
    axis.set_xticks([age for age in ages if age < reach])
    axis.set_xlabel("steps back; 0 is the newest token")
    return fit(figure)


def imagined_rewards(
    real: np.ndarray, predicted: np.ndarray, cont: np.ndarray, context: int
) -> Figure:
    """Imagined and real reward along recorded episodes, all `[B, T]`.

    ``cont`` is the predicted probability to continue; the dream starts after ``context`` steps.
    """
    figure, axes = new_figure(7.2, 1.6 * len(real) + 0.6, rows=len(real), sharex=True)
    steps = np.arange(real.shape[1]) - context + 1
    curves = {
        "real reward": (real, "o-", BLUE),
        "imagined reward": (predicted, "-", ORANGE),
        "probability to continue": (cont, ":", GREY),
    }
    for row, axis in enumerate(axes):
        for name, (values, kind, colour) in curves.items():
            label = None if row else name
            axis.plot(steps, values[row], kind, color=colour, markersize=3, label=label)
        axis.axvline(0.5, color=ORANGE, linewidth=0.8)
    axes[-1].set_xlabel("imagined steps")
    return fit(add_legend(figure, columns=3))


#: Minimum side in pixels of a frame in a decoding strip, and pixels between two frames.
STRIP_PX, STRIP_GAP = 128, 6


def decoding_strip(
    frames: np.ndarray, masked: np.ndarray, confidence: np.ndarray, real: np.ndarray
) -> np.ndarray:
    """Draw S decoding steps of a latent, followed by the real frame: `[height, width, 3]` uint8.

    Upper row: the decoded latent after each step. Lower row: the same, tinted where the model is
    uncertain, with one dot per tenth of a position's tokens that were masked before the step.
    ``frames`` is `[S, height, width, 3]` uint8, ``masked`` `[S, h, w]` the share of a position's
    tokens that were masked, ``confidence`` `[S, h, w]` their mean probability.
    """
    # A position is wide enough for a row of five dots.
    factor = enlargement(*real.shape[:2], max(STRIP_PX, 30 * max(masked.shape[1:])))
    height, width = (side * factor for side in real.shape[:2])
    count, gap, top = len(frames), STRIP_GAP, 18
    canvas = Canvas((count + 1) * (width + gap) + gap, top + 2 * (height + gap) + gap)
    for s, small in enumerate([*frames, real]):
        x, frame = gap + s * (width + gap), enlarge(small, factor)
        name = f"step {s + 1}" if s < count else "real"
        canvas.write(name, x + width // 2, top - 4, anchor="ms")
        canvas.paste(frame, x, top)
        if s < count:
            canvas.paste(tint(frame, confidence[s]), x, top + height + gap)
            _draw_dots(canvas, masked[s], (x, top + height + gap), (height, width))
    return canvas.pixels()


def _draw_dots(canvas: Canvas, share: np.ndarray, corner: tuple, size: tuple) -> None:
    """One dot per tenth of a position's tokens that was masked."""
    rows, columns = share.shape
    for row, column in np.ndindex(rows, columns):
        for dot in range(round(10 * share[row, column])):
            x = corner[0] + column * size[1] / columns + 4 + 5 * (dot % 5)
            y = corner[1] + row * size[0] / rows + 4 + 5 * (dot // 5)
            canvas.pen.rectangle((x, y, x + 2, y + 2), fill=PAPER, outline=ACCENT)


def curve_figure(run: str | Path) -> Figure:
    """A run's return and losses; ValueError when it has neither yet."""
    run = Path(run)
    episodes = [row for row in read_rows(run / EPISODES_FILE) if row.get("score") is not None]
    losses = loss_series(read_rows(run / METRICS_FILE))
    if not episodes and not losses:
        raise ValueError(f"{run} has no curve yet: it holds neither episodes nor losses")
    columns = 1 + bool(losses)
    figure, axes = new_figure(5.6 * columns, 3.6, columns=columns)
    heading(axes[0], f"Episode return, mean of the last {WINDOW}")
    if episodes:
        steps, scores = np.array([(row["step"], row["score"]) for row in episodes], np.float64).T
        grey = dict(color=GREY, markersize=2, alpha=0.4, rasterized=True)
        axes[0].plot(steps, scores, ".", **grey)
        mean, dot = rolling_mean(scores), "o" if len(scores) == 1 else None
        axes[0].plot(steps, mean, "-", color=BLUE, linewidth=2, marker=dot)
        write_value(axes[0], f"{mean[-1]:.2f}", (steps[-1], mean[-1]), BLUE)
    if losses:
        heading(axes[1], "Losses")
        positive = all((values > 0).all() for _, values in losses.values())
        axes[1].set_yscale("log" if positive else "symlog")
        for name, (steps, values) in losses.items():
            axes[1].plot(steps, values, linewidth=1.2, label=name)
    for axis in axes:
        over_steps(axis)
    return fit(add_legend(figure, side="right"))


def rolling_mean(values: np.ndarray, window: int = WINDOW) -> np.ndarray:
    """Mean `[n]` float64 of each value and up to ``window - 1`` values before it."""
    sums = np.concatenate([[0.0], np.cumsum(values, dtype=np.float64)])
    ends = np.arange(1, len(values) + 1)
    begins = np.maximum(ends - window, 0)
    return (sums[ends] - sums[begins]) / (ends - begins)


def series_of(rows: list[dict[str, Any]], names: Sequence[str]) -> Series:
    """Metrics in rows, by name; missing values are left out, and so are names without a value."""
    series = {}
    for name in names:
        points = [(row["step"], row[name]) for row in rows if row.get(name) is not None]
        if points:
            steps, values = np.array(points, dtype=np.float64).T
            series[name] = (steps, values)
    return series


def loss_series(rows: list[dict[str, Any]]) -> Series:
    """The losses in metrics rows, by name without its group; missing values are left out."""
    names = dict.fromkeys(k for row in rows for k in row if k.startswith(LOSS_GROUP))
    return {k.removeprefix(LOSS_GROUP): v for k, v in series_of(rows, list(names)).items()}


@dataclass(frozen=True, kw_only=True)
class Bar:
    """One bar, with an error bar from ``low`` to ``high`` unless they are NaN.

    ``ours`` is drawn in colour, published numbers are grey; a bar is hatched unless the result
    ``meets`` its protocol.
    """

    label: str
    value: float
    low: float = math.nan
    high: float = math.nan
    ours: bool = False
    meets: bool = True


def bar_figure(panels: Mapping[str, Sequence[Bar]], *, unit: str) -> Figure:
    """Horizontal bars with their numbers in ``unit``, one panel (title -> bars) below the other."""
    ratios = [0.6 + _rows_inches([bar.label for bar in bars]) for bars in panels.values()]
    height = 1.0 + 0.1 * len(ratios) + sum(ratios)
    figure, axes = new_figure(8.5, height, rows=len(panels), height_ratios=ratios)
    for axis, (title, bars) in zip(axes, panels.items(), strict=True):
        for row, bar in enumerate(bars):
            face = (BLUE if bar.meets else "white") if bar.ours else LIGHT
            kind = dict(edgecolor=BLUE if bar.ours else LIGHT, hatch="" if bar.meets else "////")
            axis.barh(row, bar.value, color=face, height=0.7, **kind)
            end = bar.value
            if not math.isnan(bar.low):
                axis.plot([bar.low, bar.high], [row, row], "-", color="black", linewidth=1.2)
                end = max(end, bar.high)
            text = f"{bar.value:.1f}" if abs(bar.value) >= 10 else f"{bar.value:.3g}"
            write_value(axis, text, (max(end, 0.0), row), "black")
        name_rows(axis, [bar.label for bar in bars])
        axis.axvline(0, color=GREY, linewidth=0.8)
        axis.spines["left"].set_visible(False)
        axis.grid(visible=False, axis="y")
        axis.tick_params(axis="y", length=0)
        axis.margins(x=0.12)
        heading(axis, title)
        axis.set_xlabel(unit)
    return fit(figure)


def _rows_inches(names: Sequence[str]) -> float:
    """Height of one row per name, of which none overlaps the next."""
    most = max((wrap_name(name).count("\n") + 1 for name in names), default=1)
    return len(names) * max(BAR_INCHES, LINE_INCHES * (most + 0.5))


def rates_figure(rates: Mapping[str, Mapping[str, float]], ours: int) -> Figure:
    """Success rates of Crafter's achievements, one row each.

    ``rates``: agent -> achievement -> per cent; the first ``ours`` agents are ours.
    """
    names = sorted(set().union(*rates.values()))
    readable = [name.replace("_", " ") for name in names]
    figure, (axis,) = new_figure(8.5, 1.2 + _rows_inches(readable))
    for index, (agent, row) in enumerate(rates.items()):
        if index < ours:
            kind = dict(marker="o", markersize=6, color=COLOURS[index % len(COLOURS)])
        else:
            colour = (GREY, "black")[index % 2]
            kind = dict(marker="|", markersize=11, markeredgewidth=2.5, color=colour)
        shares = [row.get(name, math.nan) for name in names]
        axis.plot(shares, range(len(names)), linestyle="", label=agent, **kind)
    name_rows(axis, readable)
    axis.set_xlim(-2, 102)
    axis.set_xlabel("episodes in which it was achieved, %")
    return fit(add_legend(figure))


def returns_figure(
    curves: Mapping[str, Sequence[tuple[np.ndarray, np.ndarray]]],
    chance: float | None,
    *,
    title: str,
) -> Figure:
    """Learning curves, mean of the last 100 training episodes, one line per seed.

    ``curves``: agent -> per seed, steps `[n]` and returns `[n]` of its training episodes.
    ``chance``: return of random play; None when it is not known.
    """
    figure, (axis,) = new_figure(7.5, 4.2)
    for kind, (agent, seeds) in zip(cycle(LINES), curves.items(), strict=False):
        name = f"{agent} ({len(seeds)} seeds)" if len(seeds) > 1 else agent
        for number, (steps, scores) in enumerate(seeds):
            label = None if number else name
            axis.plot(steps, rolling_mean(scores), linewidth=1.6, label=label, **kind)
    if chance is not None:
        axis.axhline(chance, color=GREY, linestyle="--", label=f"random play, {chance:.2f}")
    heading(axis, title)
    over_steps(axis)
    axis.set_ylabel(f"return, mean of the last {WINDOW} episodes")
    return fit(add_legend(figure))
