"""Atari 100k: the mean return of 100 episodes per run, normalised, and aggregates over games.

Aggregates are those of Agarwal et al. (see ``scores.py``). Published ones are over 26 games; next
to results of ours on fewer games stand the published methods' means over the same games.
"""

from __future__ import annotations

import statistics
from collections.abc import Collection, Iterable, Sequence

from emerald_jax.reports import runs
from emerald_jax.scores import Interval, aggregate, atari100k, human_normalised

STEPS, EPISODES, FRAMES, SKIP = 100_000, 100, 108_000, 4
PROTOCOL = "100 episodes after 100 k steps"
#: Published numbers that are not evaluations; the data file names every source.
PUBLISHED = {"dreamerv3": "training episodes that ended in frames 390 k to 400 k"}
AS_PUBLISHED = "as published, 100 k steps"
AGGREGATES = ("mean", "median", "iqm")
COLUMNS = ("agent", "games", "runs", "mean", "median", "IQM", "protocol", "meets it")
#: Methods shown game by game.
METHODS = ("iris", "storm", "dreamerv3", "delta_iris", "diamond")


class Entry(runs.Entry):
    """One agent: all runs that may be averaged, with the mean return of each."""

    @property
    def returns(self) -> dict[str, list[float]]:
        """Game -> mean return of each run."""
        found: dict[str, list[float]] = {}
        for run, result in zip(self.runs, self.results, strict=True):
            found.setdefault(run.config.env.partition(":")[2], []).append(result)
        return found

    @property
    def normalised(self) -> dict[str, list[float]]:
        """Game -> human-normalised score of each run."""
        return {game: [normalise(game, x) for x in each] for game, each in self.returns.items()}

    @property
    def aggregates(self) -> dict[str, Interval]:
        """``mean``, ``median`` and ``iqm`` over the games played."""
        return aggregate(self.normalised)

    @property
    def all_deviations(self) -> tuple[str, ...]:
        """Deviations, missing games among them; empty for all 26 games under the protocol."""
        missing = len(self.returns) < len(games())
        return (*self.deviations, coverage(self.returns)) if missing else self.deviations


def games() -> dict[str, dict[str, float]]:
    """Published returns by game and method."""
    return atari100k()["games"]


def coverage(some: Collection[str]) -> str:
    """The share of some games in all."""
    return f"{len(some)} of {len(games())} games"


def normalise(game: str, mean_return: float) -> float:
    """A return between random (0) and human (1)."""
    return human_normalised(mean_return, games()[game]["random"], games()[game]["human"])


def entries(found: Sequence[runs.RunFacts]) -> list[Entry]:
    """Our results; a run without an evaluation has none."""
    return runs.entries_of((result for run in found for result in _results(run)), Entry)


def _results(run: runs.RunFacts) -> Iterable[runs.Result]:
    """The mean returns of a run's evaluations, with their deviations from the protocol."""
    envs = run.config.envs
    skip = envs.frame_skip or SKIP
    fixed = runs.other_images(envs.image_size)
    if skip != SKIP:
        fixed.append(f"frame skip {skip}, not {SKIP}")
    if envs.time_limit and envs.time_limit * skip != FRAMES:
        fixed.append(f"time limit {envs.time_limit * skip:,} frames, not {FRAMES:,}")
    for result in run.evaluations:
        found = runs.deviations_of(result, steps=STEPS, slack=STEPS // 100, episodes=EPISODES)
        yield run, PROTOCOL, (*found, *fixed), result["return"]


def table(read: Sequence[runs.RunFacts], ours: Sequence[Entry]) -> runs.Table:
    """Aggregates of ours and of the published methods."""
    rows = []
    for entry in ours:
        numbers = (runs.interval(entry.aggregates[name]) for name in AGGREGATES)
        counts = (str(len(entry.returns)), str(len(entry.runs)))
        protocol = (entry.protocol, runs.meets(entry.all_deviations))
        rows.append((entry.label, *counts, *numbers, *protocol))
    for name, row in atari100k()["aggregate"].items():
        numbers = (runs.number(row.get(key), 3) for key in AGGREGATES)
        how = PUBLISHED.get(name, AS_PUBLISHED)
        rows.append((f"{name} (published)", str(len(games())), runs.NONE, *numbers, how, runs.NONE))
    parts = {tuple(sorted(entry.returns)) for entry in ours if len(entry.returns) < len(games())}
    for some in parts:
        for method in METHODS:  # from their means per game
            found = aggregate({game: [normalise(game, games()[game][method])] for game in some})
            numbers = (runs.interval(found[name]) for name in AGGREGATES)
            agent = f"{method} (published means of these games)", str(len(some)), runs.NONE
            rows.append((*agent, *numbers, PUBLISHED.get(method, AS_PUBLISHED), coverage(some)))
    notes = [
        "Human-normalised scores: 0 is random play, 1 a person. In brackets 95 % intervals from a "
        "bootstrap over runs, stratified by game; a single run per game has none."
    ]
    if any(len({len(each) for each in entry.returns.values()}) > 1 for entry in ours):
        notes.append("Games differ in their number of runs: every run counts the same in the IQM.")
    notes += runs.notes_of(read, "Never evaluated, so not in the table")
    return runs.Table(columns=COLUMNS, rows=rows, notes=tuple(notes))


def games_table(ours: Sequence[Entry]) -> runs.Table:
    """Returns game by game: ours, random play, people and published methods."""
    names = [game for game in games() if any(game in entry.returns for entry in ours)]
    rows = []
    for game in names:
        known = (runs.number(games()[game][m]) for m in ("random", "human", *METHODS))
        mine = (_returns_cell(game, entry.returns.get(game)) for entry in ours)
        rows.append((game, *mine, *known))
    headings = [f"{e.label}{' (not the protocol)' if e.deviations else ''}" for e in ours]
    notes = ("In parentheses the human-normalised score.",) if rows else ()
    columns = ("game", *headings, "random", "human", *METHODS)
    return runs.Table(columns=columns, rows=rows, notes=notes)


def _returns_cell(game: str, returns: Sequence[float] | None) -> str:
    """The mean return of some runs, normalised in parentheses, and each of several."""
    if not returns:
        return runs.NONE
    mean = statistics.fmean(returns)
    each = f" of {', '.join(f'{x:.1f}' for x in returns)}" if len(returns) > 1 else ""
    return f"{mean:.1f} ({normalise(game, mean):.2f}){each}"
