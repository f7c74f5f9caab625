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

from emerald_jax.look.figures import GREY, SMALL, add_legend, fit, heading, new_figure, save
from emerald_jax.reports.runs import NONE, Table, interval
from emerald_jax.run.directory import write_json
from emerald_jax.scores import Interval
from experiments.study.page import RESULT_FILE, write_study_page
from experiments.study.plan import BASELINES, Scale, Study, Variant

#: Results of a study: row label -> metric -> one array `[W]` or `[W, H]` per seed.
Results = dict[str, dict[str, list[np.ndarray]]]
#: Their means and intervals, as in ``result.json``: row label -> metric -> see :func:`means`.
Means = dict[str, dict[str, Any]]

#: Times of decoding, measured apart from the cells.
TIMING_FILE = "timing.json"
_DRAWS = 2000
#: Significant digits in tables.
_DIGITS = 4
#: More lines than these are drawn without their bands.
_BANDS = 4


def bootstrap(samples: Sequence[np.ndarray], seed: int = 0) -> Interval:
    """Mean and its interval of one array `[W, ...]` per seed; steps are averaged over first."""
    arrays = [np.reshape(x, (len(x), -1)).mean(1, dtype=np.float64) for x in samples]
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


def table(
    results: Results, headings: Mapping[str, str], samples: str = "held-out windows"
) -> Table:
    """One row per label, one column per metric -> heading; ``samples`` names those of a seed."""
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
            row[name] = [a - b for a, b in pairs if a.shape == b.shape]
    note = f"Difference from {against}, window by window, with its 95 % bootstrap interval."
    sizes = {name: float(np.mean([x.mean() for x in base[name]])) for name in headings}
    return _table(differences, headings, note, sizes)


def _table(
    results: Results, headings: Mapping[str, str], note: str, sizes: Mapping[str, float]
) -> Table:
    """Means with intervals, to four significant digits of themselves or of ``sizes``."""

    def cell(samples: Sequence[np.ndarray] | None, size: float | None) -> str:
        if not samples:
            return NONE
        found = bootstrap(samples)
        return interval(found, _places(found.value if size is None else size))

    rows = [
        (label, *(cell(metrics.get(name), sizes.get(name)) for name in headings))
        for label, metrics in results.items()
    ]
    return Table(columns=("", *headings.values()), rows=rows, notes=(note,))


def _present(results: Results | Means, headings: Mapping[str, str]) -> dict[str, str]:
    """The headings of metrics that some row has."""
    return {k: v for k, v in headings.items() if any(k in m for m in results.values())}


def _places(value: float) -> int:
    """Decimal places that show :data:`_DIGITS` significant digits."""
    if not value or not np.isfinite(value):
        return _DIGITS
    return max(0, _DIGITS - 1 - int(np.floor(np.log10(abs(value)))))


def means(results: Results) -> Means:
    """The numbers behind table and figures as JSON, by label and metric.

    ``mean``, ``low`` and ``high`` of :func:`bootstrap`, and the means of the ``seeds``. A metric
    over steps has those three of each step, and as ``whole`` those of all steps together.
    """

    def summary(samples: Sequence[np.ndarray]) -> dict[str, Any]:
        found = _named(bootstrap(samples))
        if samples[0].ndim > 1:
            found = _named(_by_step(samples)) | {"whole": found}
        return found | {"seeds": [digits(x.mean()) for x in samples]}

    return {k: {name: summary(x) for name, x in row.items()} for k, row in results.items()}


def _named(values: Sequence[Any]) -> dict[str, Any]:
    return dict(zip(("mean", "low", "high"), map(digits, values), strict=True))


def digits(values: np.ndarray | float) -> Any:
    """Nested lists with five significant digits, more than windows agree on."""
    return np.vectorize(lambda x: float(f"{x:.5g}"), otypes=[float])(values).tolist()


def draw_study(study: Study, found: Means, out: Path) -> list[Path]:
    """Write ``curves.png`` and ``points.png``, as far as ``found`` has numbers for them."""
    panel = partial(sweep, swept=study.swept) if study.swept else points
    figures = {"curves.png": (steps, study.curves), "points.png": (panel, study.points)}
    return [
        draw_figure(how, found, present, out / name)
        for name, (how, metrics) in figures.items()
        if (present := _present(found, metrics))
    ]


def draw_figure(
    panel: Callable[[Axes, Means, str], None],
    found: Means,
    metrics: Mapping[str, str],
    out: Path,
) -> Path:
    """Write one panel per metric -> heading, and one legend for all of them, to ``out``.

    ``panel`` draws the rows of one metric: :func:`steps`, :func:`points` or :func:`sweep`.
    """
    figure, axes = new_figure(4.2 * len(metrics), 3.4, columns=len(metrics))
    named: set[str] = set()
    for axis, (name, title) in zip(axes, metrics.items(), strict=True):
        panel(axis, {label: m for label, m in found.items() if name in m}, name)
        heading(axis, title)
        for handle, label in zip(*axis.get_legend_handles_labels(), strict=True):
            handle.set_label("" if label in named else label)
            named.add(label)
    add_legend(figure, columns=len(metrics))
    return save(fit(figure), out)


def steps(axis: Axes, found: Means, name: str) -> None:
    """A metric against imagined steps: one line per label, with its interval as a band."""
    for label, metrics in found.items():
        mean, low, high = (metrics[name][key] for key in ("mean", "low", "high"))
        places = np.arange(1, len(mean) + 1)
        (line,) = axis.plot(places, mean, label=label)
        if len(found) <= _BANDS:
            axis.fill_between(places, low, high, color=line.get_color(), alpha=0.15, lw=0)
    simple, label, style = BASELINES.get(name, ("", "", ""))
    if known := [m[simple]["mean"] for m in found.values() if simple in m]:
        axis.plot(np.arange(1, len(known[0]) + 1), known[0], style, color=GREY, label=label)
    axis.set_xlabel("imagined steps")
    axis.set_ylim(bottom=0)


def points(axis: Axes, found: Means, name: str) -> None:
    """One point with its interval per label."""
    _with_errors(axis, range(len(found)), [_whole(m[name]) for m in found.values()], fmt="o")
    axis.set_xticks(range(len(found)), found, rotation=30, ha="right", fontsize=SMALL)


def sweep(axis: Axes, found: Means, name: str, *, swept: str) -> None:
    """Points against NUMBER, one line per NAME, of labels ``NAME, SWEPT = NUMBER``."""
    lines: dict[str, dict[float, Interval]] = {}
    for label, metrics in found.items():
        line, number = label.rsplit(f", {swept} = ", 1)
        lines.setdefault(line, {})[float(number)] = _whole(metrics[name])
    for line, values in lines.items():
        _with_errors(axis, list(values), list(values.values()), marker="o", label=line)
    numbers = sorted({number for values in lines.values() for number in values})
    axis.set_xscale("log", base=2)
    axis.set_xticks(numbers, [f"{x:g}" for x in numbers])
    axis.set_xlabel(swept)


def _whole(metric: Mapping[str, Any]) -> Interval:
    """Over all steps, of a metric of :func:`means`."""
    values = metric.get("whole", metric)
    return Interval(values["mean"], values["low"], values["high"])


def _with_errors(
    axis: Axes, places: Sequence[float], found: Sequence[Interval], **style: str
) -> None:
    value, low, high = np.array(found).T
    axis.errorbar(places, value, (value - low, high - value), **style)


def write_results(
    study: Study, scale: Scale, rows: list[tuple[Variant, dict[str, Any]]], out: Path
) -> Path:
    """Write ``result.json``, the figures and the page of finished cells; returns the page."""
    results = collect(rows, out)
    tables = [table(results, study.metrics, study.samples)]
    if study.against:
        tables.append(difference_table(results, study.metrics, study.against))
    worlds = [(v, c) for v, c in rows if "parameters" in c]
    training = [
        {"variant": variant.label, "seed": cell["settings"]["seed"]}
        | {name: cell[name] for name in ("data", "updates", "seconds_per_update")}
        | {"last": {name: digits(value) for name, value in cell["curve"][-1][1].items()}}
        for variant, cell in worlds
    ]
    content = {
        "study": study.name,
        "claim": study.claim,
        "scale": dataclasses.asdict(scale),
        "tables": [dataclasses.asdict(found) for found in tables],
        "means": means(results),
        "parameters": {v.label: c["parameters"]["total"] for v, c in worlds},
        "training": training,
        "seconds": round(sum(cell["seconds"] for _, cell in rows), 1),
        "machine": sorted({cell["machine"] for _, cell in rows}),
    }
    write_json(out / RESULT_FILE, content)
    draw_study(study, content["means"], out)
    return write_study_page(out)


def collect(rows: list[tuple[Variant, dict[str, Any]]], out: Path) -> Results:
    """The numbers of all cells by row of the table, with the times of decoding."""
    results: Results = {}
    for variant, cell in rows:
        for reading, values in cell["readings"].items():
            row = results.setdefault(f"{variant.label} {reading}".strip(), {})
            for name, numbers in values.items():
                row.setdefault(name, []).append(np.array(numbers))
    if (out / TIMING_FILE).is_file():
        times = json.loads((out / TIMING_FILE).read_text())["decode_us"]
        for label, numbers in times.items():
            # Other load only adds to a round, so the fastest third is kept.
            results[label]["decode_us"] = [np.sort(numbers)[: max(1, len(numbers) // 3)]]
    return results
