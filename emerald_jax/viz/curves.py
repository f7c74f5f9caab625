"""Learning curves from the rows a run has written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter

from emerald_jax.saving.rundir import EPISODES_FILE, METRICS_FILE, read_rows

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
