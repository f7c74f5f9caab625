"""From the numbers of finished cells to intervals, a table and figures.

Intervals are 95 % bootstrap intervals of the mean, drawn in two stages: seeds with replacement,
then windows within each seed. With one seed they tell the spread over windows alone, and the table
says so.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from emerald_jax.ops.scores import Interval
from emerald_jax.reports.tables import Table, interval

_DRAWS = 2000
#: Colours that stay apart for colour-blind readers (Okabe and Ito).
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")


def bootstrap(samples: Sequence[np.ndarray], seed: int = 0) -> Interval:
    """Mean and its interval.

    Args:
        samples: one array `[W]` per seed; lengths may differ.
        seed: of the resampling.
    """
    rng, means = np.random.default_rng(seed), []
    arrays = [np.asarray(x, np.float64) for x in samples]
    for _ in range(_DRAWS):
        chosen = [arrays[i] for i in rng.integers(len(arrays), size=len(arrays))]
        means.append(np.mean([x[rng.integers(len(x), size=len(x))].mean() for x in chosen]))
    low, high = np.quantile(means, [0.025, 0.975])
    return Interval(float(np.mean([x.mean() for x in arrays])), float(low), float(high))


#: Results of a study: row label -> metric -> one array `[W]` or `[W, H]` per seed.
Results = dict[str, dict[str, list[np.ndarray]]]


def table(results: Results, headings: dict[str, str], digits: int = 4) -> Table:
    """One row per label, one column per metric; metrics over steps are averaged over them.

    Args:
        results: of all finished cells.
        headings: metric -> heading, in order; rows without a metric leave its cell empty,
            and a metric that no row has is left out.
        digits: significant digits.
    """
    headings = {k: v for k, v in headings.items() if any(k in m for m in results.values())}
    rows, seeds = [], set()
    for label, metrics in results.items():
        cells = [label]
        for name in headings:
            if name not in metrics:
                cells.append("–")
                continue
            samples = [x.mean(axis=tuple(range(1, x.ndim))) for x in metrics[name]]
            seeds.add(len(samples))
            found = bootstrap(samples)
            cells.append(interval(found, _places(found.value, digits)))
        rows.append(tuple(cells))
    note = f"Mean [95 % bootstrap interval] over {_count(seeds)} and held-out windows."
    if seeds == {1}:
        note += " With one seed the interval is over windows alone."
    return Table(columns=("", *headings.values()), rows=rows, notes=(note,))


def means(results: Results) -> dict[str, dict[str, Any]]:
    """The numbers behind table and figures, as JSON.

    Returns:
        label -> metric -> ``mean``, ``low`` and ``high`` of :func:`bootstrap` and the mean of each
        of the ``seeds``; of a metric over steps a list with one value per step each.
    """
    return {
        label: {name: _mean(samples) for name, samples in metrics.items()}
        for label, metrics in results.items()
    }


def _mean(samples: Sequence[np.ndarray]) -> dict[str, Any]:
    steps = samples[0].ndim > 1
    found = (
        [bootstrap([x[:, i] for x in samples]) for i in range(samples[0].shape[1])]
        if steps
        else [bootstrap(samples)]
    )
    seeds = [x.mean(0).tolist() for x in samples]
    named = {
        "mean": [f.value for f in found],
        "low": [f.low for f in found],
        "high": [f.high for f in found],
    }
    return {**{k: v if steps else v[0] for k, v in named.items()}, "seeds": seeds}


def _places(value: float, digits: int) -> int:
    """Decimal places that show ``digits`` significant digits."""
    if not value or not np.isfinite(value):
        return digits
    return max(0, digits - 1 - int(np.floor(np.log10(abs(value)))))


def _count(seeds: set[int]) -> str:
    if not seeds:
        return "no seed"
    low, high = min(seeds), max(seeds)
    return f"{low} seed{'s' * (low > 1)}" if low == high else f"{low} to {high} seeds"


def step_figure(results: Results, metrics: dict[str, str], out: Path) -> Path:
    """Metrics against imagined steps, one line per label, seeds and windows as a band.

    Args:
        results: of all finished cells.
        metrics: metric over steps -> heading of its panel.
        out: the picture to write.
    """
    figure, panels = _figure(len(metrics))
    for axis, (name, heading) in zip(panels, metrics.items(), strict=True):
        lines = {k: m[name] for k, m in results.items() if name in m}
        for colour, (label, samples) in zip(_cycle(len(lines)), lines.items(), strict=True):
            steps = np.arange(1, samples[0].shape[1] + 1)
            found = [bootstrap([x[:, i] for x in samples]) for i in range(len(steps))]
            axis.plot(steps, [f.value for f in found], color=colour, label=label)
            axis.fill_between(
                steps, [f.low for f in found], [f.high for f in found], color=colour, alpha=0.15
            )
        axis.set_xlabel("imagined steps")
        axis.set_title(heading, fontsize=10)
    panels[0].legend(frameon=False, fontsize=8)
    return _save(figure, out)


def point_figure(results: Results, metrics: dict[str, str], out: Path) -> Path:
    """One point with its interval per label, one panel per metric.

    Args:
        results: of all finished cells.
        metrics: metric -> heading of its panel.
        out: the picture to write.
    """
    figure, panels = _figure(len(metrics))
    for axis, (name, heading) in zip(panels, metrics.items(), strict=True):
        rows = {k: m[name] for k, m in results.items() if name in m}
        for place, (colour, samples) in enumerate(
            zip(_cycle(len(rows)), rows.values(), strict=True)
        ):
            found = bootstrap([x.mean(axis=tuple(range(1, x.ndim))) for x in samples])
            axis.plot([place], [found.value], "o", color=colour)
            axis.plot([place, place], [found.low, found.high], color=colour)
        axis.set_xticks(range(len(rows)), rows, rotation=30, ha="right", fontsize=8)
        axis.set_title(heading, fontsize=10)
    return _save(figure, out)


def _cycle(count: int) -> list[str]:
    return [_COLOURS[i % len(_COLOURS)] for i in range(count)]


def _figure(panels: int) -> tuple[Figure, list]:
    figure = Figure(figsize=(4.2 * panels, 3.4), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    axes = list(figure.subplots(1, panels, squeeze=False)[0])
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(alpha=0.25)
    return figure, axes


def _save(figure: Figure, out: Path) -> Path:
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out)
    return out
