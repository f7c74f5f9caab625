"""Reports as figures: the cost of imagination, the parts of an update, rates of everything else."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import fmean

from matplotlib.figure import Figure
from matplotlib.ticker import StrMethodFormatter

from benchmarks.suite.report import (
    PARTS,
    Measured,
    Report,
    Row,
    by_benchmark,
    machine_name,
    refused,
)
from emerald_jax.look.figures import SMALL, add_legend, fit, heading, name_rows, new_figure, wrap
from emerald_jax.presets import get_preset

#: The axes of imagination's grid over which its cost is drawn.
GROWTH_AXES = {"S": "decoding steps S", "H": "horizon H", "starts": "starts"}


def draw_figures(reports: Sequence[Report], folder: Path) -> list[Path]:
    """Write one PNG file, such as ``imagination.png``, per benchmark with anything to draw.

    ``folder`` must exist; ConfigError when a file cannot be written.
    """
    special = {"imagination": growth_figure, "train": split_figure, "decode": decode_figure}
    paths = []
    for name, rows in by_benchmark(reports).items():
        if name == "train":  # only updates that were measured in parts
            rows = [(report, row) for report, row in rows if "world_model_seconds" in row.facts]
        if rows:
            paths.append(folder / f"{name}.png")
            with refused(paths[-1]):
                special.get(name, bars_figure)(rows).savefig(paths[-1])
    return paths


def growth_figure(rows: Sequence[Measured]) -> Figure:
    """Seconds of one call over S, H and starts, one line per combination of the other settings."""
    figure, panels = new_figure(13, 4.5, columns=3)
    for axis, (name, label) in zip(panels, GROWTH_AXES.items(), strict=True):
        for line, points in growth_lines(rows, name).items():
            axis.plot(*zip(*points, strict=True), marker="o", label=wrap(line, 3.5))
        axis.set(xlabel=label, ylabel="seconds per imagination")
        axis.set_ylim(bottom=0)
        if axis.lines:
            axis.legend(fontsize=SMALL, loc="lower left", bbox_to_anchor=(0, 1), frameon=False)
    return fit(figure)


def growth_lines(rows: Sequence[Measured], axis: str) -> dict[str, list[tuple[float, float]]]:
    """Lines over one axis: name -> points `(x, seconds)`.

    The other two axes stay at the preset's own S, H and number of starts, so that a complete grid
    stays readable. Several measurements of a point are averaged; single points are left out.
    """
    lines: dict[str, dict[float, list[float]]] = {}
    for (_, row), machine in zip(rows, _machines(rows), strict=True):
        config = get_preset(row.case["preset"])
        replay, behavior = config.replay, config.behavior
        starts = replay.batch * (replay.length // behavior.start_stride)
        own = {"S": behavior.decode_steps, "H": behavior.horizon, "starts": starts}
        if all(row.case[other] == value for other, value in own.items() if other != axis):
            name = " ".join(machine + [f"{k}={v}" for k, v in row.case.items() if k != axis])
            lines.setdefault(name, {}).setdefault(row.case[axis], []).append(row.facts["seconds"])
    return {
        name: sorted((x, fmean(seconds)) for x, seconds in points.items())
        for name, points in lines.items()
        if len(points) > 1
    }


def split_figure(rows: Sequence[Measured]) -> Figure:
    """A bar for every update that was measured in parts, in seconds."""
    figure, (axis,) = new_figure(10, 1.2 + 0.9 * len(rows))
    places, left = range(len(rows)), [0.0] * len(rows)
    labels = ("world model", "imagination", "actor and critic", "optimiser")
    for part, label in zip(PARTS, labels, strict=True):
        widths = [row.facts[f"{part}_seconds"] for _, row in rows]
        axis.barh(places, widths, left=left, height=0.6, label=label)
        left = [start + width for start, width in zip(left, widths, strict=True)]
    complete = [row.facts["seconds"] for _, row in rows]
    axis.plot(complete, places, "k|", markersize=30, label="complete update")
    names = ("{preset} {dtype}, ".format(**row.case) + machine_name(report) for report, row in rows)
    name_rows(axis, list(names))
    axis.set_xlabel("seconds per update")
    add_legend(figure, columns=5)
    return fit(figure)


def decode_figure(rows: Sequence[Measured]) -> Figure:
    """Latents per second over latents at once, one line per prior, S and machine, on log axes."""
    lines: dict[str, list[tuple[int, Row]]] = {}
    for (_, row), machine in zip(rows, _machines(rows), strict=True):
        if row.unit == "latents/s":  # ratios between priors are only in the table
            case = row.case
            steps = f" S = {case['S']}" if case["prior"] == "maskgit" else ""
            name = ", ".join([f"{case['prior']}{steps}", case["preset"], case["dtype"], *machine])
            lines.setdefault(name, []).append((case["batch"], row))
    figure, (axis,) = new_figure(6.4, 4.5)
    for name, points in lines.items():
        batches, drawn = zip(*sorted(points, key=lambda point: point[0]), strict=True)
        axis.errorbar(batches, *_heights(drawn), marker="o", capsize=3, label=name)
    axis.set_xscale("log", base=2)
    axis.set_yscale("log")
    for ticks in (axis.xaxis.set_major_formatter, axis.yaxis.set_major_formatter):
        ticks(StrMethodFormatter("{x:,.0f}"))
    axis.yaxis.set_minor_formatter(StrMethodFormatter("{x:,.0f}"))
    axis.set(xlabel="latents at once", ylabel="latents per second")
    add_legend(figure, side="right")
    return fit(figure)


def bars_figure(rows: Sequence[Measured]) -> Figure:
    """A bar with its noise for every row; the settings that all share are the title."""
    cases = [{**row.case, "machine": machine_name(report)} for report, row in rows]
    common = dict(pair for pair in cases[0].items() if all(pair in c.items() for c in cases))
    drawn = [row for _, row in rows]
    rates, noise = _heights(drawn)
    figure, (axis,) = new_figure(9, 1.6 + 0.35 * len(rows))
    axis.barh(range(len(rows)), rates, xerr=noise, capsize=3, ecolor="black")
    name_rows(axis, [" ".join(str(v) for k, v in c.items() if k not in common) for c in cases])
    axis.set_xlabel(", ".join(dict.fromkeys(row.unit for row in drawn)))
    heading(axis, ", ".join(f"{key} {value}" for key, value in common.items()))
    return fit(figure)


def _machines(rows: Sequence[Measured]) -> list[list[str]]:
    """For each row its machine, as the part of a name; nothing where all are of one machine."""
    names = [machine_name(report) for report, _ in rows]
    return [[name] if len(set(names)) > 1 else [] for name in names]


def _heights(rows: Sequence[Row]) -> tuple[list[float], list[list[float]]]:
    """Medians, and the distances down and up to the ends of the noise."""
    values = [row.value for row in rows]
    below = [value.median - value.noise[0] for value in values]
    above = [value.noise[1] - value.median for value in values]
    return [value.median for value in values], [below, above]
