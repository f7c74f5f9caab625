"""Figures of a report: ours beside published numbers, and learning curves beside chance."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter

from emerald_jax.viz.curves import BLUE, GREY, rolling_mean

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
