"""Atari 100k: the mean return of 100 episodes per run, normalised, and aggregates over games.

Aggregates are those of Agarwal et al. (see ``scores.py``). Published ones are over 26 games; next
to results of ours on fewer games stand the published methods' means over the same games.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence

from emerald_jax.reports import runs
from emerald_jax.reports.runs import (
    NONE,
    Result,
    RunFacts,
    Table,
    deviations_of,
    entries_of,
    interval,
    meets,
    notes_of,
    number,
)
from emerald_jax.scores import Interval, aggregate, atari100k, human_normalised

STEPS, EPISODES, FRAMES, IMAGE, SKIP = 100_000, 100, 108_000, 64, 4
PROTOCOL = "100 episodes after 100 k steps"
#: Published numbers that are not evaluations; the data file names every source.
PUBLISHED = {"dreamerv3": "training episodes that ended in frames 390 k to 400 k"}
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
            found.setdefault(run.game, []).append(result)
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
    def coverage(self) -> str:
        """The games played, of all games."""
        return f"{len(self.returns)} of {len(games())} games"

    @property
    def all_deviations(self) -> tuple[str, ...]:
        """Deviations, missing games among them."""
        missing = len(self.returns) < len(games())
        return (*self.deviations, self.coverage) if missing else self.deviations

    @property
    def meets(self) -> bool:
        """All 26 games under the protocol."""
        return not self.all_deviations


def games() -> dict[str, dict[str, float]]:
    """Published returns by game and method."""
    return atari100k()["games"]


def published_aggregates() -> dict[str, dict[str, float]]:
    """Published aggregates over the 26 games: method -> ``mean``, ``median``, ``iqm``."""
    return atari100k()["aggregate"]


def normalise(game: str, mean_return: float) -> float:
    """A return between random (0) and human (1)."""
    return human_normalised(mean_return, games()[game]["random"], games()[game]["human"])


def entries(found: Sequence[RunFacts]) -> list[Entry]:
    """Our results; a run without an evaluation has none."""
    return entries_of((result for run in found for result in _results(run)), Entry)


def _results(run: RunFacts) -> Iterable[Result]:
    """The mean returns of a run's evaluations, with their deviations from the protocol."""
    envs = run.config.envs
    skip = envs.frame_skip or SKIP
    fixed = []
    if envs.image_size != IMAGE:
        fixed.append(f"images of {envs.image_size} pixels, not {IMAGE}")
    if skip != SKIP:
        fixed.append(f"frame skip {skip}, not {SKIP}")
    if envs.time_limit and envs.time_limit * skip != FRAMES:
        fixed.append(f"time limit {envs.time_limit * skip:,} frames, not {FRAMES:,}")
    for result in run.evaluations:
        found = deviations_of(result, steps=STEPS, slack=STEPS // 100, episodes=EPISODES)
        yield run, PROTOCOL, (*found, *fixed), result["return"]


def table(read: Sequence[RunFacts], ours: Sequence[Entry]) -> Table:
    """Aggregates of ours and of the published methods."""
    rows = []
    for entry in ours:
        found = entry.aggregates
        rows.append(
            (
                entry.label,
                str(len(entry.returns)),
                str(len(entry.runs)),
                *(interval(found[name]) for name in AGGREGATES),
                entry.protocol,
                meets(entry.all_deviations),
            )
        )
    for name, row in published_aggregates().items():
        numbers = (number(row.get(key), 3) for key in AGGREGATES)
        how = PUBLISHED.get(name, "as published, 100 k steps")
        rows.append((f"{name} (published)", str(len(games())), NONE, *numbers, how, NONE))
    for some in {frozenset(entry.returns) for entry in ours if len(entry.returns) < len(games())}:
        rows += list(_same_games(sorted(some)))
    notes = [
        "Human-normalised scores: 0 is random play, 1 a person. In brackets 95 % intervals from a "
        "bootstrap over runs, stratified by game; a single run per game has none."
    ]
    if any(len({len(each) for each in entry.returns.values()}) > 1 for entry in ours):
        notes.append("Games differ in their number of runs: every run counts the same in the IQM.")
    notes += notes_of(read, "Never evaluated, so not in the table")
    return Table(columns=COLUMNS, rows=rows, notes=tuple(notes))


def _same_games(some: Sequence[str]) -> Iterable[tuple[str, ...]]:
    """Published methods over some games only, from their means per game."""
    for method in METHODS:
        found = aggregate({game: [normalise(game, games()[game][method])] for game in some})
        numbers = (interval(found[name]) for name in AGGREGATES)
        how = PUBLISHED.get(method, "as published, 100 k steps")
        agent = f"{method} (published means of these games)"
        yield agent, str(len(some)), NONE, *numbers, how, f"{len(some)} of {len(games())} games"


def games_table(ours: Sequence[Entry]) -> Table:
    """Returns game by game: ours, random play, people and published methods."""
    names = [game for game in games() if any(game in entry.returns for entry in ours)]
    rows = []
    for game in names:
        known = (number(games()[game][m]) for m in ("random", "human", *METHODS))
        mine = (_returns_cell(game, entry.returns.get(game, [])) for entry in ours)
        rows.append((game, *mine, *known))
    headings = [f"{e.label}{' (not the protocol)' if e.deviations else ''}" for e in ours]
    return Table(
        columns=("game", *headings, "random", "human", *METHODS),
        rows=rows,
        notes=("In parentheses the human-normalised score.",) if rows else (),
    )


def _returns_cell(game: str, returns: Sequence[float]) -> str:
    """The mean return of some runs, normalised in parentheses, and each of several."""
    if not returns:
        return NONE
    mean = statistics.fmean(returns)
    each = f" of {', '.join(f'{x:.1f}' for x in returns)}" if len(returns) > 1 else ""
    return f"{mean:.1f} ({normalise(game, mean):.2f}){each}"
