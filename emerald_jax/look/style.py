"""The one style of all figures: palette, fonts, room for names.

Long names cannot break a figure: labels are wrapped or shortened to the room they have, and a
figure grows where its labels would leave less than :data:`SHARE` of it to the axes. Build a figure
with :func:`new_figure`, :func:`heading`, :func:`name_rows`, :func:`add_legend`, and :func:`fit` it.
"""

from __future__ import annotations

import functools
import textwrap
from collections.abc import Sequence
from io import BytesIO
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

#: Real things are blue, imagined ones orange, everything else grey.
BLUE, ORANGE = (f"#{bytes(colour).hex()}" for colour in (pictures.BLUE, pictures.ACCENT))
GREY, LIGHT = "#9aa0a8", "#d5d8dc"
#: Colours of lines without a meaning of their own; colour-blind readers can tell them apart.
COLOURS = (BLUE, ORANGE, "#2f9e77", "#8c4a9c", "#c9a227", "#56b4e9", "#282a30")
LINES = cycler(linestyle=["-", "--", ":"]) * cycler(color=COLOURS)
STYLE = {
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.prop_cycle": LINES,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "grid.alpha": 0.25,
    "grid.linewidth": 0.6,
}
DPI = 120
#: The axes have at least this share of a figure's width and height.
SHARE = 0.55
#: Font sizes in points, and the height in inches of a line of small text.
MEDIUM, SMALL, LINE_INCHES = 10.0, 8.3, 0.17
#: Width in inches of names next to an axis, and of a legend on the right.
NAME_INCHES, SIDE_INCHES = 2.8, 1.6


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
) -> None:
    """Name the labelled lines of a figure outside its axes; the figure grows by the legend."""
    handles, labels = [], []
    for axis in figure.axes:
        for found, more in zip((handles, labels), axis.get_legend_handles_labels(), strict=True):
            found += more
    if not labels:
        return
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
