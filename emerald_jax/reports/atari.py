"""Atari 100k: the mean return of 100 episodes per run, normalised, and aggregates over games.

Aggregates are those of Agarwal et al. (see ``scores.py``). Published ones are over 26 games;
beside fewer games of ours, the published methods' means over the same games are told too.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from emerald_jax.reports.runs import (
    NONE,
    RunFacts,
    Table,
    about,
    interval,
    left_out_note,
    number,
    same_seed_note,
)
from emerald_jax.scores import Interval, aggregate, atari100k, human_normalised

STEPS, EPISODES, FRAMES, IMAGE, SKIP = 100_000, 100, 108_000, 64, 4
PROTOCOL = "100 episodes after 100 k steps"
#: Published numbers that are no evaluation episodes; the data file names every source.
PUBLISHED = {"dreamerv3": "training episodes that ended in frames 390 k to 400 k"}
COLUMNS = ("agent", "games", "runs", "mean", "median", "IQM", "protocol", "meets it")
#: Methods shown game by game, beside the reference columns.
METHODS = ("iris", "storm", "dreamerv3", "delta_iris", "diamond")


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One agent: all runs that may be averaged.

    Attributes:
        label: who it is.
        deviations: in what it is not the protocol.
        returns: game -> mean return of each run.
    """

    label: str
    deviations: tuple[str, ...]
    returns: dict[str, list[float]] = field(default_factory=dict)

    @property
    def normalised(self) -> dict[str, list[float]]:
        """Game -> human-normalised score of each run."""
        return {game: [normalise(game, x) for x in runs] for game, runs in self.returns.items()}

    @property
    def aggregates(self) -> dict[str, Interval]:
        """``mean``, ``median`` and ``iqm`` over the games played."""
        return aggregate(self.normalised)

    @property
    def meets(self) -> bool:
        """All 26 games under the protocol."""
        return not self.deviations and len(self.returns) == len(games())


def games() -> dict[str, dict[str, float]]:
    """Published returns by game and method."""
    return atari100k()["games"]


def published_aggregates() -> dict[str, dict[str, float]]:
    """Published aggregates over the 26 games: method -> ``mean``, ``median``, ``iqm``."""
    return atari100k()["aggregate"]


def normalise(game: str, mean_return: float) -> float:
    """A return between random (0) and human (1)."""
    return human_normalised(mean_return, games()[game]["random"], games()[game]["human"])


def entries(runs: Sequence[RunFacts]) -> list[Entry]:
    """Our results; a run without an evaluation has none."""
    found: dict[tuple, Entry] = {}
    for run in runs:
        for deviations, result in _results(run):
            entry = found.setdefault(
                (run.experiment, deviations), Entry(label=run.label, deviations=deviations)
            )
            game = run.config.env.partition(":")[2]
            entry.returns.setdefault(game, []).append(result["return"])
    return list(found.values())


def table(runs: Sequence[RunFacts], ours: Sequence[Entry]) -> Table:
    """Aggregates of ours and of the published methods."""
    total = len(games())
    rows = []
    for entry in ours:
        found = entry.aggregates
        few = () if len(entry.returns) == total else (f"{len(entry.returns)} of {total} games",)
        deviations = (*entry.deviations, *few)
        rows.append(
            (
                entry.label,
                str(len(entry.returns)),
                str(sum(map(len, entry.returns.values()))),
                *(interval(found[name]) for name in ("mean", "median", "iqm")),
                PROTOCOL,
                "yes" if not deviations else f"**no**: {'; '.join(deviations)}",
            )
        )
    for name, row in published_aggregates().items():
        numbers = (number(row.get(key), 3) for key in ("mean", "median", "iqm"))
        how = PUBLISHED.get(name, "as published, 100 k steps")
        rows.append((f"{name} (published)", str(total), NONE, *numbers, how, NONE))
    played = {frozenset(entry.returns) for entry in ours if len(entry.returns) < total}
    for some in played:
        rows += list(_same_games(sorted(some)))
    notes = (
        "Human-normalised scores: 0 is random play, 1 a person. In brackets 95 % intervals from a "
        "bootstrap over runs, stratified by game; a single run per game has none.",
        *_unequal_note(ours),
        *left_out_note(runs),
        *same_seed_note(runs),
        *_unscored_note(runs),
    )
    return Table(columns=COLUMNS, rows=rows, notes=notes)


def games_table(ours: Sequence[Entry]) -> Table:
    """Returns game by game: ours, chance, people and published methods."""
    names = [game for game in games() if any(game in entry.returns for entry in ours)]
    rows = []
    for game in names:
        known = games()[game]
        mine = []
        for entry in ours:
            runs = entry.returns.get(game, [])
            normalised = f" ({normalise(game, statistics.fmean(runs)):.2f})" if runs else ""
            each = ", ".join(f"{x:.1f}" for x in runs)
            many = f" of {each}" if len(runs) > 1 else ""
            mine.append(f"{statistics.fmean(runs):.1f}{normalised}{many}" if runs else NONE)
        rows.append((game, *mine, *(number(known[m]) for m in ("random", "human", *METHODS))))
    headings = [f"{e.label}{'' if not e.deviations else ' (not the protocol)'}" for e in ours]
    return Table(
        columns=("game", *headings, "random", "human", *METHODS),
        rows=rows,
        notes=("In parentheses the human-normalised score.",) if rows else (),
    )


def _same_games(some: Sequence[str]) -> Iterable[tuple[str, ...]]:
    """Published methods over some games only, from their means per game."""
    for method in METHODS:
        found = aggregate({game: [normalise(game, games()[game][method])] for game in some})
        numbers = (interval(found[name]) for name in ("mean", "median", "iqm"))
        who = f"{method} (published means of these games)"
        how = PUBLISHED.get(method, "as published, 100 k steps")
        yield who, str(len(some)), NONE, *numbers, how, f"{len(some)} of {len(games())} games"


def _results(run: RunFacts) -> Iterable[tuple[tuple[str, ...], dict[str, Any]]]:
    """Evaluations of a run, one per kind, and in what each is not the protocol."""
    envs = run.config.envs
    skip = envs.frame_skip or SKIP
    fixed = []
    if envs.image_size != IMAGE:
        fixed.append(f"images of {envs.image_size} pixels, not {IMAGE}")
    if skip != SKIP:
        fixed.append(f"frame skip {skip}, not {SKIP}")
    if envs.time_limit and envs.time_limit * skip != FRAMES:
        fixed.append(f"time limit {envs.time_limit * skip:,} frames, not {FRAMES:,}")
    kinds: dict[tuple[str, ...], dict[str, Any]] = {}
    for result in run.evaluations:
        steps, deviations = result.get("env_steps") or 0, []
        if abs(steps - STEPS) > STEPS // 100:
            deviations.append(f"after {about(steps)} of {STEPS:,} steps")
        if result["episodes"] < EPISODES:
            deviations.append(f"{result['episodes']} of {EPISODES} episodes")
        if result["mode"] != "sample":
            deviations.append("likeliest action")
        if result.get("left_out"):
            deviations.append(f"{result['left_out']} episodes left out")
        kinds.setdefault((*deviations, *fixed), result)
    return kinds.items()


def _unequal_note(ours: Sequence[Entry]) -> tuple[str, ...]:
    if all(len({len(runs) for runs in entry.returns.values()}) < 2 for entry in ours):
        return ()
    return ("Games differ in their number of runs: every run counts the same in the IQM.",)


def _unscored_note(runs: Sequence[RunFacts]) -> tuple[str, ...]:
    missing = [str(run.path) for run in runs if not run.evaluations]
    if not missing:
        return ()
    return (f"Never evaluated, so not in the table: {', '.join(missing)} (emerald-jax eval RUN).",)
