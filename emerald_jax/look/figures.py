"""The figures of a run's report, from plain arrays and rows; each returns the bytes of a PNG.

Learning curves from the rows a run has written.

Figures of a report: ours beside published numbers, and learning curves beside chance.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter
from PIL import Image, ImageDraw

from emerald_jax.look.film import tint
from emerald_jax.run.directory import EPISODES_FILE, METRICS_FILE, read_rows
from emerald_jax.run.pictures import ACCENT, BACKGROUND, enlarge, enlargement

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


#: Episodes averaged into the curve, as in a run's own result line.
WINDOW = 100
BLUE, GREY = "#1f5fa8", "#9aa0a8"
#: The group of metrics drawn beside the return.
LOSS_GROUP = "loss/"


def learning_curve(run: str | Path, out: str | Path) -> Path:
    """Draw a run's return and losses against environment steps.

    Args:
        run: a run directory.
        out: the picture to write; its ending chooses the format (png, svg, pdf).

    Returns:
        ``out`` as a path.

    Raises:
        ValueError: when the run has neither episodes nor losses yet.
    """
    out = Path(out)
    figure = curve_figure(run)
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out)
    return out


def curve_figure(run: str | Path) -> Figure:
    """The figure of :func:`learning_curve`; arguments and errors as there."""
    run = Path(run)
    episodes = read_rows(run / EPISODES_FILE)
    losses = loss_series(read_rows(run / METRICS_FILE))
    if not episodes and not losses:
        raise ValueError(f"{run} has no curve yet: it holds neither episodes nor losses")
    columns = 1 + bool(losses)
    figure = Figure(figsize=(5.6 * columns, 3.6), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, columns, squeeze=False)[0]
    _draw_return(axes[0], episodes)
    if losses:
        _draw_losses(axes[1], losses)
    for axis in axes:
        tidy(axis)
    return figure


def seeds_figure(
    seeds: dict[str, tuple[np.ndarray, np.ndarray]], *, title: str, goal: float | None = None
) -> Figure:
    """One quantity of several runs: every run as a thin line, their mean, and a band around it.

    Args:
        seeds: name -> (environment steps `[n]`, values `[n]`), steps rising.
        title: of the figure.
        goal: where a line is drawn across.

    Returns:
        The figure; its band holds all runs, over the steps that all of them have.
    """
    figure = Figure(figsize=(5.6, 3.6), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    axis = figure.subplots()
    begin = max(steps[0] for steps, _ in seeds.values())
    end = min(steps[-1] for steps, _ in seeds.values())
    grid = np.linspace(begin, end, 200)
    values = np.stack([np.interp(grid, *points) for points in seeds.values()])
    axis.fill_between(grid, values.min(0), values.max(0), color=BLUE, alpha=0.18, lw=0)
    for steps, found in seeds.values():
        axis.plot(steps, found, color=GREY, linewidth=0.7)
    axis.plot(grid, values.mean(0), color=BLUE, linewidth=2, label=f"mean of {len(seeds)} seeds")
    if goal is not None:
        axis.axhline(goal, color="#e25822", linewidth=1, linestyle="--", label=f"{goal:g}")
    axis.set_title(title)
    axis.legend(frameon=False, fontsize="small")
    tidy(axis)
    return figure


def rolling_mean(values: np.ndarray, window: int = WINDOW) -> np.ndarray:
    """Mean of each value and up to ``window - 1`` before it.

    Args:
        values: `[n]`.
        window: at least 1.

    Returns:
        `[n]` float64.
    """
    sums = np.concatenate([[0.0], np.cumsum(values, dtype=np.float64)])
    ends = np.arange(1, len(values) + 1)
    begins = np.maximum(ends - window, 0)
    return (sums[ends] - sums[begins]) / (ends - begins)


def loss_series(rows: list[dict[str, Any]]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """The losses in metrics rows.

    Returns:
        name without its group -> (steps `[n]`, values `[n]`); missing values are left out.
    """
    names = dict.fromkeys(k for row in rows for k in row if k.startswith(LOSS_GROUP))
    series = {}
    for name in names:
        points = [(row["step"], row[name]) for row in rows if row.get(name) is not None]
        if points:
            steps, values = np.array(points, dtype=np.float64).T
            series[name.removeprefix(LOSS_GROUP)] = (steps, values)
    return series


def _draw_return(axis: Axes, episodes: list[dict[str, Any]]) -> None:
    axis.set_title(f"Episode return, mean of the last {WINDOW}")
    rows = [row for row in episodes if row.get("score") is not None]
    if not rows:
        return
    steps, scores = np.array([(row["step"], row["score"]) for row in rows], dtype=np.float64).T
    axis.plot(steps, scores, ".", color=GREY, markersize=2, alpha=0.4, rasterized=True)
    mean = rolling_mean(scores)
    axis.plot(steps, mean, color=BLUE, linewidth=2, marker="o" if len(mean) == 1 else None)
    axis.annotate(
        f"{mean[-1]:.2f}",
        (steps[-1], mean[-1]),
        xytext=(4, 0),
        textcoords="offset points",
        color=BLUE,
        va="center",
        annotation_clip=False,
    )


def _draw_losses(axis: Axes, losses: dict[str, tuple[np.ndarray, np.ndarray]]) -> None:
    axis.set_title("Losses")
    positive = all((values > 0).all() for _, values in losses.values())
    axis.set_yscale("log" if positive else "symlog")
    for name, (steps, values) in losses.items():
        axis.plot(steps, values, linewidth=1.2, label=name)
    axis.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False, fontsize="small")


def tidy(axis: Axes) -> None:
    """Axes against environment steps, without what tells nothing."""
    axis.set_xlabel("environment steps")
    axis.xaxis.set_major_formatter(EngFormatter(sep=" "))
    axis.grid(alpha=0.25, linewidth=0.6)
    axis.spines[["top", "right"]].set_visible(False)
    axis.margins(x=0.02)


ORANGE, LIGHT = "#d9822b", "#d5d8dc"
_COLOURS = (BLUE, ORANGE, "#3a8f5c", "#8c4a9c", "#b03a3a")
_BAR = 0.3


@dataclass(frozen=True, kw_only=True)
class Bar:
    """One bar.

    Attributes:
        label: who it is.
        value: its length.
        low: lower end of its error bar, or NaN.
        high: upper end.
        ours: drawn in colour; published numbers are grey.
        meets: hatched when it does not meet the protocol.
    """

    label: str
    value: float
    low: float = math.nan
    high: float = math.nan
    ours: bool = False
    meets: bool = True


def new_figure(width: float, height: float) -> Figure:
    """An empty figure that no window shows, sizes in inches."""
    figure = Figure(figsize=(width, height), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def bar_figure(panels: Mapping[str, Sequence[Bar]], out: Path, *, unit: str) -> Path:
    """Horizontal bars, one panel below the other.

    Args:
        panels: title -> bars, from top to bottom.
        out: the picture to write.
        unit: what the bars measure.
    """
    figure = new_figure(8.5, 1.0 + sum(0.7 + _BAR * len(bars) for bars in panels.values()))
    heights = [2 + len(bars) for bars in panels.values()]
    axes = figure.subplots(len(panels), 1, squeeze=False, height_ratios=heights)[:, 0]
    for axis, (title, bars) in zip(axes, panels.items(), strict=True):
        draw_bars(axis, bars)
        axis.set_title(title, loc="left", fontsize="medium")
        axis.set_xlabel(unit)
    figure.savefig(out)
    return out


def draw_bars(axis: Axes, bars: Sequence[Bar]) -> None:
    """Horizontal bars with their numbers, the first on top."""
    rows = np.arange(len(bars))
    for row, bar in zip(rows, bars, strict=True):
        axis.barh(
            row,
            bar.value,
            color=(BLUE if bar.meets else "white") if bar.ours else LIGHT,
            edgecolor=BLUE if bar.ours else LIGHT,
            hatch="" if bar.meets else "////",
            height=0.7,
        )
        end = bar.value
        if not math.isnan(bar.low):
            axis.plot([bar.low, bar.high], [row, row], color="black", linewidth=1.2)
            end = max(end, bar.high)
        text = f"{bar.value:.1f}" if abs(bar.value) >= 10 else f"{bar.value:.3g}"
        axis.annotate(
            text,
            (max(end, 0.0), row),
            xytext=(4, 0),
            textcoords="offset points",
            va="center",
            fontsize="small",
        )
    axis.set_yticks(rows, [bar.label for bar in bars], fontsize="small")
    axis.invert_yaxis()
    axis.axvline(0, color=GREY, linewidth=0.8)
    axis.spines[["top", "right", "left"]].set_visible(False)
    axis.tick_params(axis="y", length=0)
    axis.margins(x=0.12)


def rates_figure(rates: Mapping[str, Mapping[str, float]], ours: int, out: Path) -> Path:
    """Success rates of Crafter's achievements, one row each.

    Args:
        rates: who -> achievement -> per cent.
        ours: how many of them, the first ones, are ours.
        out: the picture to write.
    """
    names = sorted(set().union(*rates.values()))
    figure = new_figure(8.5, 1.2 + 0.3 * len(names) + 0.2 * len(rates))
    axis = figure.subplots()
    rows = np.arange(len(names))
    for index, (who, row) in enumerate(rates.items()):
        mine = index < ours
        axis.plot(
            [row.get(name, math.nan) for name in names],
            rows,
            marker="o" if mine else "|",
            markersize=6 if mine else 11,
            markeredgewidth=1 if mine else 2.5,
            linestyle="",
            color=_COLOURS[index % len(_COLOURS)] if mine else (GREY, "black")[index % 2],
            label=who,
        )
    axis.set_yticks(rows, [name.replace("_", " ") for name in names], fontsize="small")
    axis.invert_yaxis()
    axis.set_xlim(-2, 102)
    axis.set_xlabel("episodes in which it was achieved, %")
    axis.grid(alpha=0.25, linewidth=0.6)
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(loc="lower left", bbox_to_anchor=(0, 1.0), frameon=False, fontsize="small")
    figure.savefig(out)
    return out


def returns_figure(
    curves: Mapping[str, Sequence[tuple[np.ndarray, np.ndarray]]],
    chance: float | None,
    out: Path,
    *,
    title: str,
) -> Path:
    """Learning curves, mean of the last 100 training episodes, one thin line per seed.

    Args:
        curves: who -> per seed, steps `[n]` and returns `[n]` of its training episodes.
        chance: return of random play; None when it is not known.
        out: the picture to write.
        title: above it.
    """
    figure = new_figure(7.5, 4.2)
    axis = figure.subplots()
    for index, (who, seeds) in enumerate(curves.items()):
        colour = _COLOURS[index % len(_COLOURS)]
        for number, (steps, scores) in enumerate(seeds):
            mean = rolling_mean(scores)
            label = f"{who} ({len(seeds)} seeds)" if len(seeds) > 1 else who
            axis.plot(
                steps, mean, color=colour, linewidth=1.6, label=label if number == 0 else None
            )
    if chance is not None:
        axis.axhline(chance, color=GREY, linestyle="--", label=f"random play, {chance:.2f}")
    axis.set_title(title, loc="left", fontsize="medium")
    axis.set_xlabel("environment steps")
    axis.set_ylabel("return, mean of the last 100 episodes")
    axis.xaxis.set_major_formatter(EngFormatter(sep=" "))
    axis.grid(alpha=0.25, linewidth=0.6)
    axis.spines[["top", "right"]].set_visible(False)
    if curves:
        axis.legend(frameon=False, fontsize="small")
    figure.savefig(out)
    return out
