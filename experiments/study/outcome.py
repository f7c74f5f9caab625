"""From the numbers of finished cells to intervals, a table and figures.

Intervals are 95 % bootstrap intervals of the mean, drawn in two stages: seeds with replacement,
then windows within each seed. With one seed they tell the spread over windows alone, and the table
says so.

What finished cells amount to: ``table.md``, ``result.json`` and the figures.

Pictures of a study's world models: dreams beside reality, and a latent being decoded.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from emerald_jax.agent.dream import decoding_trace, open_loop
from emerald_jax.agent.state import init_carry
from emerald_jax.look.figures import decoding_strip
from emerald_jax.look.style import png_of
from emerald_jax.models.world_model import Pass
from emerald_jax.reports.runs import Table, interval
from emerald_jax.run.files import write_atomic
from emerald_jax.run.pictures import report_strip
from emerald_jax.scores import Interval
from emerald_jax.types import Array, Batch, Key, Params
from experiments.study import outcome
from experiments.study.plan import Scale, Study, Variant
from experiments.study.worlds import World

_DRAWS = 2000
#: Colours that stay apart for colour-blind readers (Okabe and Ito).
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")

#: What needs no model, drawn beside a metric over steps: its metric, and its words.
BASELINES = {
    "dream_error": ("still_error", "the last frame read"),
    "moved": ("still_moved", "the last frame read"),
    "reward_error": ("zero_error", "no reward ever"),
}
#: More lines than these are drawn without their bands.
_BANDS = 4


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


def table(
    results: Results, headings: dict[str, str], digits: int = 4, samples: str = "held-out windows"
) -> Table:
    """One row per label, one column per metric; metrics over steps are averaged over them.

    Args:
        results: of all finished cells.
        headings: metric -> heading, in order; rows without a metric leave its cell empty,
            and a metric that no row has is left out.
        digits: significant digits.
        samples: what there are several of in each seed, for the note.
    """
    headings = {k: v for k, v in headings.items() if any(k in m for m in results.values())}
    rows, seeds = [], set()
    for label, metrics in results.items():
        cells = [label]
        for name in headings:
            if name not in metrics:
                cells.append("–")
                continue
            flat = [_flat(x) for x in metrics[name]]
            seeds.add(len(flat))
            found = bootstrap(flat)
            cells.append(interval(found, _places(found.value, digits)))
        rows.append(tuple(cells))
    note = f"Mean [95 % bootstrap interval] over {_count(seeds)} and {samples}."
    if seeds == {1}:
        note += f" With one seed the interval is over {samples} alone."
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
    parts = [[x[:, i] for x in samples] for i in range(samples[0].shape[1])] if steps else [samples]
    rows = np.array([bootstrap(part) for part in parts])
    columns = [[float(f"{x:.5g}") for x in column] for column in rows.T]
    named = dict(zip(("mean", "low", "high"), columns, strict=True))
    seeds = [float(f"{x.mean():.5g}") for x in samples]
    return {**{k: x if steps else x[0] for k, x in named.items()}, "seeds": seeds}


def difference_table(results: Results, headings: dict[str, str], against: str) -> Table:
    """How far each row lies from one of them, on the same seeds and windows.

    Args:
        results: of all finished cells.
        headings: metric -> heading, in order.
        against: label of the row that is subtracted.
    """
    base = results[against]
    headings = {k: v for k, v in headings.items() if k in base and k != "decode_us"}
    rows = []
    for label, metrics in results.items():
        if label == against:
            continue
        cells = [label]
        for name in headings:
            pairs = zip(metrics.get(name, ()), base[name], strict=False)
            samples = [_flat(a) - _flat(b) for a, b in pairs if a.shape == b.shape]
            if not samples:
                cells.append("–")
                continue
            found = bootstrap(samples)
            places = _places(float(np.mean([_flat(x).mean() for x in base[name]])), 4)
            cells.append(interval(found, places))
        rows.append(tuple(cells))
    note = f"Difference from {against}, window by window, with its 95 % bootstrap interval."
    return Table(columns=("", *headings.values()), rows=rows, notes=(note,))


def _flat(values: np.ndarray) -> np.ndarray:
    """One value per window: metrics over steps are averaged over them."""
    return values.mean(axis=tuple(range(1, values.ndim)))


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

    The first panel's legend names the lines of all, and stands beside it, where no line is.

    Args:
        results: of all finished cells.
        metrics: metric over steps -> heading of its panel; one that no row has is left out.
        out: the picture to write.
    """
    metrics = {n: title for n, title in metrics.items() if any(n in m for m in results.values())}
    figure, panels = _figure(len(metrics))
    for axis, (name, heading) in zip(panels, metrics.items(), strict=True):
        lines = {k: m[name] for k, m in results.items() if name in m}
        for colour, (label, samples) in zip(_cycle(len(lines)), lines.items(), strict=True):
            named = {"label": label} if axis is panels[0] else {}
            _line(axis, samples, band=len(lines) <= _BANDS, color=colour, **named)
        simple, words = BASELINES.get(name, ("", ""))
        known = [m[simple] for m in results.values() if simple in m]
        if known:
            _line(axis, known[0], band=False, color="#6b7078", linestyle="--", label=words)
        axis.set_xlabel("imagined steps")
        axis.set_ylim(bottom=0)
        axis.set_title(heading, fontsize=10)
        if known or axis is panels[0]:
            axis.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    return _save(figure, out)


def _line(axis: Axes, samples: Sequence[np.ndarray], *, band: bool, **style: Any) -> None:
    """Mean against imagined steps, and its interval as a band."""
    steps = np.arange(1, samples[0].shape[1] + 1)
    found = np.array([bootstrap([x[:, i] for x in samples]) for i in range(len(steps))])
    axis.plot(steps, found[:, 0], **style)
    if band:
        axis.fill_between(steps, found[:, 1], found[:, 2], color=style["color"], alpha=0.15, lw=0)


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
            found = bootstrap([_flat(x) for x in samples])
            axis.plot([place], [found.value], "o", color=colour)
            axis.plot([place, place], [found.low, found.high], color=colour)
        axis.set_xticks(range(len(rows)), rows, rotation=30, ha="right", fontsize=8)
        axis.set_title(heading, fontsize=10)
    return _save(figure, out)


def sweep_figure(results: Results, metrics: dict[str, str], swept: str, out: Path) -> Path:
    """Metrics against a number that labels end in, one line per what stands before it.

    Args:
        results: of all finished cells, labelled ``NAME, SWEPT = NUMBER``.
        metrics: metric -> heading of its panel.
        swept: name of the number.
        out: the picture to write.
    """
    lines: dict[str, dict[float, dict]] = {}
    for label, found in results.items():
        name, number = label.rsplit(f", {swept} = ", 1)
        lines.setdefault(name, {})[float(number)] = found
    figure, panels = _figure(len(metrics))
    for axis, (metric, heading) in zip(panels, metrics.items(), strict=True):
        for colour, (name, places) in zip(_cycle(len(lines)), lines.items(), strict=True):
            rows = np.array([bootstrap([_flat(x) for x in m[metric]]) for m in places.values()])
            errors = np.abs(rows[:, 1:] - rows[:, :1]).T
            axis.errorbar(list(places), rows[:, 0], errors, color=colour, marker="o", label=name)
        axis.set_xscale("log", base=2)
        numbers = sorted({x for places in lines.values() for x in places})
        axis.set_xticks(numbers, [f"{x:g}" for x in numbers])
        axis.set_xlabel(swept)
        axis.set_title(heading, fontsize=10)
        if axis is panels[-1]:
            axis.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1.0, 1.0))
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


#: Times of decoding, measured apart from the cells.
TIMING_FILE = "timing.json"


def write_results(
    study: Study, scale: Scale, rows: list[tuple[Variant, dict[str, Any]]], out: Path
) -> str:
    """Write what finished cells amount to.

    Args:
        study: what was compared.
        scale: how large it was.
        rows: variants with their cells, one per seed.
        out: directory of the results.

    Returns:
        The text of ``table.md``.
    """
    results = collect(rows, out)
    tables = [outcome.table(results, study.metrics, samples=study.samples)]
    if study.against:
        tables.append(outcome.difference_table(results, study.metrics, study.against))
    text = "\n".join([f"{study.claim}\n", *(made.markdown() for made in tables)])
    write_atomic(out / "table.md", text.encode())
    worlds = [(v, c) for v, c in rows if "parameters" in c]
    content = {
        "study": study.name,
        "scale": dataclasses.asdict(scale),
        "tables": [{"columns": t.columns, "rows": t.rows, "notes": t.notes} for t in tables],
        "means": outcome.means(results),
        "parameters": {v.label: c["parameters"]["total"] for v, c in worlds},
        "training": [_training(variant, cell) for variant, cell in worlds],
        "seconds": round(sum(cell["seconds"] for _, cell in rows), 1),
        "machine": sorted({cell["machine"] for _, cell in rows}),
    }
    write_atomic(out / "result.json", (json.dumps(content, indent=1) + "\n").encode())
    if study.curves:
        outcome.step_figure(results, study.curves, out / "curves.png")
    if study.swept:
        outcome.sweep_figure(results, study.points, study.swept, out / "points.png")
    elif study.points:
        outcome.point_figure(results, study.points, out / "points.png")
    return text


def collect(rows: list[tuple[Variant, dict[str, Any]]], out: Path) -> outcome.Results:
    """The numbers of all cells by row of the table, times of decoding with them."""
    results: outcome.Results = {}
    for variant, cell in rows:
        for reading, values in cell["readings"].items():
            label = row_label(variant.label, reading)
            for name, numbers in values.items():
                found = results.setdefault(label, {}).setdefault(name, [])
                found.append(np.array(numbers))
    if (out / TIMING_FILE).is_file():
        times = json.loads((out / TIMING_FILE).read_text())["decode_us"]
        for label, numbers in times.items():
            # Whatever else the machine does only adds to a round: the fastest third is kept.
            results[label]["decode_us"] = [np.sort(numbers)[: max(1, len(numbers) // 3)]]
    return results


def row_label(variant: str, reading: str) -> str:
    """How tables and figures call one reading of a variant."""
    return " ".join(filter(None, (variant, reading)))


def digits(values: np.ndarray) -> Any:
    """Nested lists with five significant digits, which is more than windows agree on."""
    return np.vectorize(lambda x: float(f"{x:.5g}"), otypes=[float])(values).tolist()


def _training(variant: Variant, cell: dict[str, Any]) -> dict[str, Any]:
    """How one world model was trained, and how well it fitted at the end."""
    return {
        "variant": variant.label,
        "seed": cell["settings"]["seed"],
        "data": cell["data"],
        "updates": cell["updates"],
        "seconds_per_update": cell["seconds_per_update"],
        "last": {k: digits(np.array(x)) for k, x in cell["curve"][-1][1].items()},
    }


#: Sequences and frames of a strip.
_SEQUENCES, _FRAMES = 2, 24


def strip_file(out: Path, name: str) -> Path:
    """Where :func:`draw` writes the strip of a variant."""
    return out / (f"strip-{name}.png" if name else "strip.png")


def draw(world: World, windows: Batch, context: int, out: Path, name: str) -> None:
    """Write ``strip-NAME.png`` and, of a MaskGIT, ``decoding-NAME.png`` (NAME may be empty).

    Args:
        world: a trained world model.
        windows: :class:`Batch` `[W, T]` within one episode each.
        context: real frames read before the dream.
        out: directory of the results.
        name: of the variant, fit for a file.
    """
    out.mkdir(parents=True, exist_ok=True)
    count = min(_SEQUENCES, windows.action.shape[0])
    length = min(_FRAMES, windows.action.shape[1])
    part = Batch(
        *(x[:count, :length] for x in windows[:-1]), carry=init_carry(world.learner, count)
    )
    keys = jax.random.split(jax.random.key(0), count)
    run = partial(open_loop, learner=world.learner, context=context)
    seen = jax.device_get(jax.jit(run)({"world_model": world.params}, part, keys))
    recon, dream = (np.round(255 * x).astype(np.uint8) for x in (seen.recon, seen.dream))
    strip = report_strip(np.asarray(part.image), recon, dream, context)
    strip_file(out, name).write_bytes(png_of(strip))
    if world.learner.config.model.prior == "maskgit" and world.learner.config.model.positions > 1:
        path = strip_file(out, name)
        path.with_name(path.name.replace("strip", "decoding")).write_bytes(
            _decoding(world, part, context)
        )


def _decoding(world: World, part: Batch, context: int) -> bytes:
    """The first imagined latent of the first sequence, decoding step by decoding step."""
    learner, steps = world.learner, world.learner.config.behavior.decode_steps
    side = learner.config.model.grid

    def trace(params: Params, sequence: Batch, key: Key) -> tuple[Array, Array, Array]:
        pass_key, decode_key = jax.random.split(key)
        passed: Pass = learner.model.apply({"params": params}, sequence, pass_key)
        h = passed.state.h[context]
        made = decoding_trace({"world_model": params}, h, decode_key, learner=learner, steps=steps)
        return made.frame, made.masked, made.confidence

    first = jax.tree.map(lambda x: x[0], part)
    made = jax.device_get(jax.jit(trace)(world.params, first, jax.random.key(0)))
    masked, sure = (x.astype(np.float32).mean(-1).reshape(steps, side, side) for x in made[1:])
    return png_of(decoding_strip(made[0], masked, sure, np.asarray(part.image)[0, context]))
