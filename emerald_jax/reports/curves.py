"""Benchmarks with published learning curves: Atari at 200 M frames, Procgen, DM Control's pixels.

A result is the mean score of the training episodes that ended in the window of frames before a
point, over the seeds of a game; aggregates are over games (see ``scores.py``). A run that has not
reached the first point counts with its last 100 episodes, as a deviation.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from emerald_jax.config import Config
from emerald_jax.reports import runs
from emerald_jax.scores import Interval, aggregate, atari200m, dmc_vision, human_normalised, procgen

AGGREGATES = ("median", "mean", "iqm", "gap")
COLUMNS = ("agent", "frames", "games", "median", "mean", "IQM", "optimality gap", "meets it")


class Benchmark(NamedTuple):
    """One benchmark.

    Attributes:
        title: of its section.
        numbers: its published numbers, see ``data/``.
        bounds: the scores that are 0 and 1 when normalised, of a game, for a run or the published.
        deviations: how a run's settings differ from the protocol.
        headline: the aggregate in the figure.
        file: name of the figure.
    """

    title: str
    numbers: Callable[[], dict[str, Any]]
    bounds: Callable[[str, Config | None], tuple[float, float]]
    deviations: Callable[[Config], list[str]]
    headline: str
    file: str


class Entry(runs.Entry):
    """One agent at one point: ``protocol`` is its frames; a result is (game, score, normalised)."""

    @property
    def normalised(self) -> dict[str, list[float]]:
        """Game -> normalised score of each run."""
        found: dict[str, list[float]] = {}
        for game, _, value in self.results:
            found.setdefault(game, []).append(value)
        return found


def entries(benchmark: Benchmark, found: Sequence[runs.RunFacts]) -> list[Entry]:
    """Our results at every point that they reached."""
    return runs.entries_of((row for run in found for row in _results(benchmark, run)), Entry)


def _results(benchmark: Benchmark, run: runs.RunFacts) -> Iterable[runs.Result]:
    numbers, game = benchmark.numbers(), run.config.env.partition(":")[2]
    skip, window = numbers["frames_per_step"], numbers["window"]
    fixed = tuple(benchmark.deviations(run.config))
    rows = [(row["step"] * skip, row["score"]) for row in run.episodes if "step" in row]
    low, high = benchmark.bounds(game, run.config)

    def result(scores: list[float]) -> tuple[str, float, float]:
        mean = statistics.fmean(scores)
        return game, mean, human_normalised(mean, low, high)

    for point in numbers["points"]:
        # The last episodes end shortly before the run does.
        if run.env_steps * skip >= 0.99 * point:
            scores = [score for frame, score in rows if point - window < frame <= point]
            if scores:
                yield run, f"{point:,}", fixed, result(scores)
    reached, first = run.env_steps * skip, numbers["points"][0]
    if rows and reached < 0.99 * first:
        early = f"last {min(len(rows), runs.RECENT)} training episodes, before {first:,} frames"
        scores = [score for _, score in rows[-runs.RECENT :]]
        yield run, runs.about(reached), (early, *fixed), result(scores)


def published(benchmark: Benchmark, point: int) -> dict[str, dict[str, float]]:
    """Agent -> game -> normalised score at the point; games without a number are left out."""
    numbers = benchmark.numbers()
    place = numbers["points"].index(point)
    found = {}
    for agent, row in numbers["agents"].items():
        scores = {game: values[place] for game, values in row["scores"].items()}
        found[agent] = {
            game: human_normalised(score, *benchmark.bounds(game, None))
            for game, score in scores.items()
            if score is not None
        }
    return found


def table(benchmark: Benchmark, read: Sequence[runs.RunFacts], ours: Sequence[Entry]) -> runs.Table:
    """Aggregates of ours and of the published agents at each point, over the same games."""
    numbers = benchmark.numbers()
    rows = [
        _row(entry.label, entry.protocol, entry.normalised, benchmark, entry.deviations)
        for entry in ours
    ]
    parts = {tuple(sorted(entry.normalised)) for entry in ours}
    for point in numbers["points"]:
        for agent, scores in published(benchmark, point).items():
            label = f"{agent} (published)"
            rows.append(_row(label, f"{point:,}", {g: [s] for g, s in scores.items()}, benchmark))
            for part in sorted(p for p in parts if len(p) < len(numbers["games"])):
                same = {game: [scores[game]] for game in part if game in scores}
                if same:
                    label = f"{agent} (published, these games)"
                    rows.append(_row(label, f"{point:,}", same, benchmark))
    notes = [
        "Normalised scores of training episodes. Median and mean over games of each game's mean "
        "over runs; IQM, and the optimality gap, which is how far scores stay below 1 on average, "
        "over all runs. In brackets 95 % intervals from a bootstrap over runs, stratified by game.",
        "Some published curves end before a point: that row has fewer games, so compare it only "
        "with rows of the same games.",
        *runs.notes_of(read),
    ]
    return runs.Table(columns=COLUMNS, rows=rows, notes=tuple(notes))


def _row(
    label: str,
    frames: str,
    scores: Mapping[str, Sequence[float]],
    benchmark: Benchmark,
    deviations: Collection[str] | None = None,
) -> tuple[str, ...]:
    """One line; the published agents, which have no deviations to state, have no verdict."""
    found: dict[str, Interval] = aggregate(scores)
    total = len(benchmark.numbers()["games"])
    verdict = runs.NONE
    if deviations is not None:
        few = [f"{len(scores)} of {total} games"] if len(scores) < total else []
        verdict = runs.meets([*deviations, *few])
    values = (runs.interval(found[name]) for name in AGGREGATES)
    return (label, frames, str(len(scores)), *values, verdict)


def games_table(benchmark: Benchmark, ours: Sequence[Entry]) -> runs.Table:
    """Mean score of each of our games, and the published ones at the last point."""
    numbers = benchmark.numbers()
    last, agents = numbers["points"][-1], numbers["agents"]
    columns = [f"{entry.label}, {entry.protocol} frames" for entry in ours]
    bounds = ("random", "human") if benchmark is ATARI else ("0 is", "1 is")
    rows = []
    for game in (g for g in numbers["games"] if any(g in entry.normalised for entry in ours)):
        mine = []
        for entry in ours:
            scores = [score for name, score, _ in entry.results if name == game]
            mine.append(f"{statistics.fmean(scores):.1f}" if scores else runs.NONE)
        known = [*benchmark.bounds(game, None), *(a["scores"][game][-1] for a in agents.values())]
        rows.append((game, *mine, *map(runs.number, known)))
    known = [f"{agent}, {last:,}" for agent in agents]
    return runs.Table(columns=("game", *columns, *bounds, *known), rows=rows)


def _atari_bounds(game: str, config: Config | None) -> tuple[float, float]:
    del config
    row = atari200m()["games"][game]
    return row["random"], row["human"]


def _atari_deviations(config: Config) -> list[str]:
    envs, found = config.envs, runs.other_images(config.envs.image_size)
    if envs.frame_skip not in (0, 4):
        found.append(f"frame skip {envs.frame_skip}, not 4")
    if envs.sticky != 0.25:
        found.append(f"sticky actions {envs.sticky:g}, not 0.25")
    if not envs.full_actions:
        found.append("minimal actions, not all 18")
    if envs.time_limit not in (0, 27_000):
        found.append(f"time limit {envs.time_limit * 4:,} frames, not 108,000")
    return found


def _procgen_bounds(game: str, config: Config | None) -> tuple[float, float]:
    mode = config.envs.distribution_mode if config else "hard"
    low, high = procgen()["games"][game][mode]
    return low, high


def _procgen_deviations(config: Config) -> list[str]:
    envs, found = config.envs, runs.other_images(config.envs.image_size)
    if envs.distribution_mode != "hard":
        found.append(f"{envs.distribution_mode} levels, not hard")
    if envs.num_levels:
        found.append(f"{envs.num_levels:,} levels, not all")
    if not envs.backgrounds:
        found.append("no backgrounds")
    if envs.time_limit:
        found.append(f"time limit {envs.time_limit:,}")
    return found


def _control_bounds(game: str, config: Config | None) -> tuple[float, float]:
    del game, config
    return 0, 1000


def _control_deviations(config: Config) -> list[str]:
    envs, found = config.envs, runs.other_images(config.envs.image_size)
    if envs.frame_skip not in (0, 2):
        found.append(f"frame skip {envs.frame_skip}, not 2")
    if envs.fast_render:
        found.append("fast rendering")
    if envs.time_limit not in (0, 500):
        found.append(f"time limit {envs.time_limit * 2:,} frames, not 1,000")
    return found


ATARI = Benchmark(
    *("Atari 200M", atari200m, _atari_bounds, _atari_deviations, "median", "atari200m.png")
)
PROCGEN = Benchmark(
    *("Procgen", procgen, _procgen_bounds, _procgen_deviations, "mean", "procgen.png")
)
CONTROL = Benchmark(
    *("DM Control from pixels", dmc_vision, _control_bounds, _control_deviations),
    *("mean", "dmc-vision.png"),
)


def benchmark_of(config: Config) -> Benchmark | None:
    """The benchmark of this page that a run belongs to.

    A game of Atari does if its actions are sticky or all 18; otherwise it may be Atari 100k.
    """
    family, _, game = config.env.partition(":")
    if family == "procgen":
        return PROCGEN
    if family == "dmc":
        return CONTROL if game in dmc_vision()["games"] else None
    full = config.envs.sticky or config.envs.full_actions
    return ATARI if family == "atari" and full and game in atari200m()["games"] else None
