"""Reports as figures: the cost of imagination, the parts of an update, rates of everything else."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import StrMethodFormatter

from benchmarks.suite.report import (
    PARTS,
    Measured,
    Report,
    Row,
    by_benchmark,
    machine_name,
    several_machines,
)
from emerald_jax.config import ConfigError
from emerald_jax.presets import get_preset

#: The axes of imagination's grid over which its cost is drawn.
GROWTH_AXES = {"S": "decoding steps S", "H": "horizon H", "starts": "starts"}


def draw_figures(reports: Sequence[Report], folder: Path) -> list[Path]:
    """Write PNG files, one per benchmark with anything to draw.

    Args:
        reports: from :func:`read_report`.
        folder: of the files; it must exist.

    Returns:
        The files, such as ``imagination.png``.

    Raises:
        ConfigError: when a file cannot be written.
    """
    special = {"imagination": growth_figure, "train": split_figure, "decode": decode_figure}
    paths = []
    for name, rows in by_benchmark(reports).items():
        if name == "train":  # only updates that were measured in parts
            rows = [(report, row) for report, row in rows if "world_model_seconds" in row.facts]
        if rows:
            paths.append(folder / f"{name}.png")
            figure = special.get(name, bars_figure)(rows)
            FigureCanvasAgg(figure)
            try:
                figure.savefig(paths[-1], dpi=120)
            except OSError as error:
                raise ConfigError(f"{paths[-1]} cannot be written: {error.strerror}") from error
    return paths


def growth_figure(rows: Sequence[Measured]) -> Figure:
    """Seconds of one call over S, H and starts, one line per combination of the other settings."""
    figure = Figure(figsize=(13, 4.5), layout="constrained")
    for axes, (axis, label) in zip(figure.subplots(1, 3), GROWTH_AXES.items(), strict=True):
        for name, points in growth_lines(rows, axis).items():
            axes.plot(*zip(*points, strict=True), marker="o", label=name)
        axes.set(xlabel=label, ylabel="seconds per imagination")
        axes.set_ylim(bottom=0)
        axes.grid(alpha=0.3)
        if axes.lines:
            axes.legend(fontsize="x-small", loc="lower left", bbox_to_anchor=(0, 1), frameon=False)
    return figure


def growth_lines(rows: Sequence[Measured], axis: str) -> dict[str, list[tuple[float, float]]]:
    """Lines over one axis: name -> points `(x, seconds)`.

    The other two axes stay at the preset's own S, H and number of starts, so that a complete grid
    stays readable. Several measurements of a point are averaged; single points are left out.
    """
    several = several_machines(rows)
    lines: dict[str, dict[float, list[float]]] = {}
    for report, row in rows:
        if any(row.case[other] != value for other, value in _own(row).items() if other != axis):
            continue
        rest = [f"{key}={value}" for key, value in row.case.items() if key != axis]
        name = " ".join([*([machine_name(report)] if several else []), *rest])
        at = lines.setdefault(_wrap(name), {}).setdefault(row.case[axis], [])
        at.append(row.facts["seconds"])
    return {
        name: sorted((x, fmean(seconds)) for x, seconds in points.items())
        for name, points in lines.items()
        if len(points) > 1
    }


def _own(row: Row) -> dict[str, int]:
    """The preset's own point on the axes of growth."""
    config = get_preset(row.case["preset"])
    replay, behavior = config.replay, config.behavior
    starts = replay.batch * (replay.length // behavior.start_stride)
    return {"S": behavior.decode_steps, "H": behavior.horizon, "starts": starts}


def split_figure(rows: Sequence[Measured]) -> Figure:
    """A bar for every update that was measured in parts, in seconds."""
    figure = Figure(figsize=(10, 1.8 + 0.9 * len(rows)), layout="constrained")
    axes: Axes = figure.subplots()
    names = [
        _wrap(f"{row.case['preset']} {row.case['dtype']}, {machine_name(report)}")
        for report, row in rows
    ]
    places, left = range(len(rows)), [0.0] * len(rows)
    labels = ("world model", "imagination", "actor and critic", "optimiser")
    for part, label in zip(PARTS, labels, strict=True):
        widths = [row.facts[f"{part}_seconds"] for _, row in rows]
        axes.barh(places, widths, left=left, height=0.6, label=label)
        left = [start + width for start, width in zip(left, widths, strict=True)]
    complete = [row.facts["seconds"] for _, row in rows]
    axes.plot(complete, places, "k|", markersize=30, label="complete update")
    axes.set_yticks(places, names, fontsize="small")
    axes.set_xlabel("seconds per update")
    figure.legend(loc="outside upper center", ncols=5, fontsize="small", markerscale=0.4)
    return figure


def decode_figure(rows: Sequence[Measured]) -> Figure:
    """Latents per second over latents at once, one line per prior, S and machine, on log axes.

    Ratios between priors are only in the table.
    """
    several = several_machines(rows)
    lines: dict[str, list[tuple[int, Row]]] = {}
    for report, row in rows:
        if row.unit == "latents/s":
            case = row.case
            steps = f" S = {case['S']}" if case["prior"] == "maskgit" else ""
            name = [f"{case['prior']}{steps}", case["preset"], case["dtype"]]
            name += [machine_name(report)] if several else []
            lines.setdefault(_wrap(", ".join(name)), []).append((case["batch"], row))
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes: Axes = figure.subplots()
    for name, points in lines.items():
        points.sort(key=lambda point: point[0])
        batches, drawn = zip(*points, strict=True)
        axes.errorbar(batches, *_heights(drawn), marker="o", capsize=3, label=name)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    for scale in (axes.xaxis, axes.yaxis):
        scale.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    axes.yaxis.set_minor_formatter(StrMethodFormatter("{x:,.0f}"))
    axes.set(xlabel="latents at once", ylabel="latents per second")
    axes.grid(alpha=0.3)
    figure.legend(loc="outside right upper", fontsize="small")
    return figure


def bars_figure(rows: Sequence[Measured]) -> Figure:
    """A bar with its noise for every row; the settings that all share are the title."""
    cases = [{**row.case, "machine": machine_name(report)} for report, row in rows]
    common = {
        key: value for key, value in cases[0].items() if all(c.get(key) == value for c in cases)
    }
    names = [" ".join(str(v) for k, v in case.items() if k not in common) for case in cases]
    drawn = [row for _, row in rows]
    rates, noise = _heights(drawn)
    figure = Figure(figsize=(9, 1.6 + 0.35 * len(rows)), layout="constrained")
    axes: Axes = figure.subplots()
    axes.barh(range(len(rows)), rates, xerr=noise, capsize=3, color="tab:blue", ecolor="black")
    axes.set_yticks(range(len(rows)), [_wrap(name) for name in names], fontsize="small")
    axes.invert_yaxis()
    axes.set_xlabel(", ".join(dict.fromkeys(row.unit for row in drawn)))
    title = ", ".join(f"{key} {value}" for key, value in common.items())
    axes.set_title("\n".join(textwrap.wrap(title, 90)), fontsize="small")
    return figure


def _heights(rows: Sequence[Row]) -> tuple[list[float], list[list[float]]]:
    """Medians, and the distances down and up to the ends of the noise."""
    medians = [row.value.median for row in rows]
    below = [row.value.median - row.value.noise[0] for row in rows]
    above = [row.value.noise[1] - row.value.median for row in rows]
    return medians, [below, above]


def _wrap(text: str) -> str:
    return "\n".join(textwrap.wrap(text, 44))
