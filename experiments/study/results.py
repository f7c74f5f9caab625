"""Turn the numbers of finished cells into intervals, tables and figures.

Intervals are 95 % bootstrap intervals of the mean, drawn in two stages: seeds with replacement,
then windows within each seed. With one seed they cover windows alone; the table's note states it.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from emerald_jax.reports.runs import Table, interval
from emerald_jax.run.files import write_atomic
from emerald_jax.scores import Interval
from experiments.study.page import RESULT_FILE, write_study_page
from experiments.study.plan import BASELINES, Scale, Study, Variant

#: Results of a study: row label -> metric -> one array `[W]` or `[W, H]` per seed.
Results = dict[str, dict[str, list[np.ndarray]]]

#: Times of decoding, measured apart from the cells.
TIMING_FILE = "timing.json"
_DRAWS = 2000
#: Significant digits in tables.
_DIGITS = 4
#: Distinguishable for colour-blind readers (Okabe and Ito).
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_FAINT = "#6b7078"
#: More lines than these are drawn without their bands.
_BANDS = 4


def bootstrap(samples: Sequence[np.ndarray], seed: int = 0) -> Interval:
    """Mean and its interval.

    Args:
        samples: one array `[W, ...]` per seed; lengths may differ. Steps are averaged over first.
        seed: of the resampling.
    """
    arrays = [_flat(np.asarray(x, np.float64)) for x in samples]
    count, lengths = len(arrays), np.array([len(x) for x in arrays])
    longest = lengths.max()
    padded = np.stack([np.pad(x, (0, longest - len(x))) for x in arrays])
    rng = np.random.default_rng(seed)
    chosen = rng.integers(count, size=(_DRAWS, count, 1))
    length = lengths[chosen]
    windows = (rng.random((_DRAWS, count, longest)) * length).astype(int)
    drawn = np.where(np.arange(longest) < length, padded[chosen, windows], 0)
    means = (drawn.sum(-1, keepdims=True) / length).mean((1, 2))
    low, high = np.quantile(means, [0.025, 0.975])
    return Interval(float(np.mean([x.mean() for x in arrays])), float(low), float(high))


def _by_step(samples: Sequence[np.ndarray]) -> np.ndarray:
    """`[3, H]` mean and bounds at every imagined step."""
    return np.array([bootstrap([x[:, i] for x in samples]) for i in range(samples[0].shape[1])]).T


def _flat(values: np.ndarray) -> np.ndarray:
    """One value per window: the mean over steps."""
    return values.mean(axis=tuple(range(1, values.ndim)))


def table(
    results: Results, headings: Mapping[str, str], samples: str = "held-out windows"
) -> Table:
    """One row per label, one column per metric; metrics over steps are averaged over them.

    Args:
        results: of all finished cells.
        headings: metric -> heading, in order; a metric that no row has is left out.
        samples: the samples within each seed, for the note.
    """
    headings = _present(results, headings)
    seeds = sorted({len(m[name]) for m in results.values() for name in headings if name in m})
    count = " to ".join(map(str, dict.fromkeys(seeds[:1] + seeds[-1:]))) or "no"
    plural = "s" if seeds and seeds[-1] > 1 else ""
    note = f"Mean [95 % bootstrap interval] over {count} seed{plural} and {samples}."
    if seeds == [1]:
        note += f" With one seed the interval is over {samples} alone."
    return _table(results, headings, note, {})


def difference_table(results: Results, headings: Mapping[str, str], against: str) -> Table:
    """Differences of each row from the row ``against``, on the same seeds and windows."""
    base = results[against]
    headings = {k: v for k, v in headings.items() if k in base and k != "decode_us"}
    differences: Results = {label: {} for label in results if label != against}
    for label, row in differences.items():
        for name in headings:
            pairs = zip(results[label].get(name, ()), base[name], strict=False)
            row[name] = [_flat(a) - _flat(b) for a, b in pairs if a.shape == b.shape]
    note = f"Difference from {against}, window by window, with its 95 % bootstrap interval."
    sizes = {name: float(np.mean([x.mean() for x in base[name]])) for name in headings}
    return _table(differences, headings, note, sizes)


def _table(
    results: Results, headings: Mapping[str, str], note: str, sizes: Mapping[str, float]
) -> Table:
    """Means with intervals, to four significant digits of themselves or of ``sizes``."""
    rows = []
    for label, metrics in results.items():
        cells = [label]
        for name in headings:
            found = bootstrap(metrics[name]) if metrics.get(name) else None
            size = sizes.get(name, found and found.value)
            cells.append("–" if found is None else interval(found, _places(size)))
        rows.append(tuple(cells))
    return Table(columns=("", *headings.values()), rows=rows, notes=(note,))


def _present(results: Results, headings: Mapping[str, str]) -> dict[str, str]:
    """The headings of metrics that some row has."""
    return {k: v for k, v in headings.items() if any(k in m for m in results.values())}


def _places(value: float) -> int:
    """Decimal places that show :data:`_DIGITS` significant digits."""
    if not value or not np.isfinite(value):
        return _DIGITS
    return max(0, _DIGITS - 1 - int(np.floor(np.log10(abs(value)))))


def means(results: Results) -> dict[str, dict[str, Any]]:
    """The numbers behind table and figures, as JSON.

    Returns:
        label -> metric -> ``mean``, ``low`` and ``high`` of :func:`bootstrap` (for a metric over
        steps one value per step), and the mean of each of the ``seeds``.
    """
    found: dict[str, dict[str, Any]] = {}
    for label, metrics in results.items():
        found[label] = {}
        for name, samples in metrics.items():
            values = _by_step(samples) if samples[0].ndim > 1 else bootstrap(samples)
            named = dict(zip(("mean", "low", "high"), map(digits, values), strict=True))
            found[label][name] = named | {"seeds": [digits(x.mean()) for x in samples]}
    return found


def digits(values: np.ndarray | float) -> Any:
    """Nested lists with five significant digits, more than windows agree on."""
    return np.vectorize(lambda x: float(f"{x:.5g}"), otypes=[float])(values).tolist()


def draw_figure(
    panel: Callable[[Axes, Results, str], None],
    results: Results,
    metrics: Mapping[str, str],
    out: Path,
) -> Path:
    """One panel per metric, and one legend for all of them below.

    Args:
        panel: draws the rows of one metric: :func:`steps`, :func:`points` or :func:`sweep`.
        results: of all finished cells.
        metrics: metric -> heading of its panel.
        out: the picture to write; it is returned.
    """
    figure, lines = Figure(figsize=(4.2 * len(metrics), 3.4), dpi=120, layout="constrained"), {}
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, len(metrics), squeeze=False)[0]
    for axis, (name, heading) in zip(axes, metrics.items(), strict=True):
        panel(axis, {label: m for label, m in results.items() if name in m}, name)
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(alpha=0.25)
        axis.set_title(heading, fontsize=10)
        handles, labels = axis.get_legend_handles_labels()
        lines |= dict(zip(labels, handles, strict=True))
    style = {"loc": "outside lower center", "frameon": False, "fontsize": 8}
    if lines:
        figure.legend(lines.values(), lines.keys(), ncols=len(metrics), **style)
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out)
    return out


def steps(axis: Axes, results: Results, name: str) -> None:
    """A metric against imagined steps: one line per label, with its interval as a band."""
    for colour, (label, metrics) in zip(_colours(results), results.items(), strict=True):
        mean, low, high = _by_step(metrics[name])
        places = np.arange(1, len(mean) + 1)
        axis.plot(places, mean, color=colour, label=label)
        if len(results) <= _BANDS:
            axis.fill_between(places, low, high, color=colour, alpha=0.15, lw=0)
    simple, label, style = BASELINES.get(name, ("", "", ""))
    known = [m[simple] for m in results.values() if simple in m]
    if known:
        values = np.mean([x.mean(axis=0) for x in known[0]], axis=0)
        places = np.arange(1, len(values) + 1)
        axis.plot(places, values, color=_FAINT, linestyle=style, label=label)
    axis.set_xlabel("imagined steps")
    axis.set_ylim(bottom=0)


def points(axis: Axes, results: Results, name: str) -> None:
    """One point with its interval per label."""
    for place, (colour, metrics) in enumerate(
        zip(_colours(results), results.values(), strict=True)
    ):
        found = bootstrap(metrics[name])
        axis.plot([place], [found.value], "o", color=colour)
        axis.plot([place, place], [found.low, found.high], color=colour)
    axis.set_xticks(range(len(results)), results, rotation=30, ha="right", fontsize=8)


def sweep(axis: Axes, results: Results, name: str, *, swept: str) -> None:
    """Points against NUMBER, one line per NAME, of labels ``NAME, SWEPT = NUMBER``."""
    lines: dict[str, dict[float, Interval]] = {}
    for label, metrics in results.items():
        line, number = label.rsplit(f", {swept} = ", 1)
        lines.setdefault(line, {})[float(number)] = bootstrap(metrics[name])
    for colour, (line, found) in zip(_colours(lines), lines.items(), strict=True):
        value, low, high = np.array(list(found.values())).T
        errors = (value - low, high - value)
        axis.errorbar(list(found), value, errors, color=colour, marker="o", label=line)
    numbers = sorted({number for found in lines.values() for number in found})
    axis.set_xscale("log", base=2)
    axis.set_xticks(numbers, [f"{x:g}" for x in numbers])
    axis.set_xlabel(swept)


def _colours(rows: Mapping[str, Any]) -> list[str]:
    return [_COLOURS[i % len(_COLOURS)] for i in range(len(rows))]


def write_results(
    study: Study, scale: Scale, rows: list[tuple[Variant, dict[str, Any]]], out: Path
) -> Path:
    """Write ``result.json``, the figures and the page of finished cells, one per variant and seed.

    Returns:
        The page's path.
    """
    results = collect(rows, out)
    tables = [table(results, study.metrics, study.samples)]
    if study.against:
        tables.append(difference_table(results, study.metrics, study.against))
    worlds = [(v, c) for v, c in rows if "parameters" in c]
    content = {
        "study": study.name,
        "claim": study.claim,
        "scale": dataclasses.asdict(scale),
        "tables": [dataclasses.asdict(found) for found in tables],
        "means": means(results),
        "parameters": {v.label: c["parameters"]["total"] for v, c in worlds},
        "training": [_training(variant, cell) for variant, cell in worlds],
        "seconds": round(sum(cell["seconds"] for _, cell in rows), 1),
        "machine": sorted({cell["machine"] for _, cell in rows}),
    }
    write_atomic(out / RESULT_FILE, (json.dumps(content, indent=1) + "\n").encode())
    if curves := _present(results, study.curves):
        draw_figure(steps, results, curves, out / "curves.png")
    if study.points:
        panel = partial(sweep, swept=study.swept) if study.swept else points
        draw_figure(panel, results, study.points, out / "points.png")
    return write_study_page(out)


def collect(rows: list[tuple[Variant, dict[str, Any]]], out: Path) -> Results:
    """The numbers of all cells by row of the table, with the times of decoding."""
    results: Results = {}
    for variant, cell in rows:
        for reading, values in cell["readings"].items():
            row = results.setdefault(row_label(variant.label, reading), {})
            for name, numbers in values.items():
                row.setdefault(name, []).append(np.array(numbers))
    if (out / TIMING_FILE).is_file():
        times = json.loads((out / TIMING_FILE).read_text())["decode_us"]
        for label, numbers in times.items():
            # Other load only adds to a round, so the fastest third is kept.
            results[label]["decode_us"] = [np.sort(numbers)[: max(1, len(numbers) // 3)]]
    return results


def row_label(variant: str, reading: str) -> str:
    """Label of one reading of a variant in tables and figures."""
    return " ".join(filter(None, (variant, reading)))


def _training(variant: Variant, cell: dict[str, Any]) -> dict[str, Any]:
    """How one world model was trained, and its last metrics."""
    kept = {name: cell[name] for name in ("data", "updates", "seconds_per_update")}
    last = {name: digits(value) for name, value in cell["curve"][-1][1].items()}
    return {"variant": variant.label, "seed": cell["settings"]["seed"], **kept, "last": last}
