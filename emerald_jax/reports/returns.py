"""Environments without a published protocol: returns beside those of random play.

Random play is played anew where it is asked for. Otherwise it is the run's own: before the first
update actions are uniformly random. Only episodes that ended by then are known to be wholly random,
and long ones are rarer among them, which the table says.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from emerald_jax.envs.playing import is_whole, play_randomly
from emerald_jax.reports.runs import (
    NONE,
    RunFacts,
    Table,
    about,
    left_out_note,
    same_seed_note,
    spread,
)

RECENT = 100
RANDOM = "random play"
COLUMNS = ("agent", "return", "seeds", "episodes", "protocol")


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One kind of result: all seeds that may be averaged.

    Attributes:
        label: who it is.
        protocol: how the returns came about.
        returns: mean return of each seed.
        episodes: of all seeds together.
    """

    label: str
    protocol: str
    returns: list[float]
    episodes: list[int]


@dataclass(frozen=True)
class Chance:
    """Random play.

    Attributes:
        protocol: how it came about.
        scores: return of each episode.
    """

    protocol: str
    scores: list[float]


def entries(runs: Sequence[RunFacts], chance: Chance | None = None) -> list[Entry]:
    """Results of one environment's runs: training, evaluations, random play.

    Args:
        runs: all of the same environment.
        chance: random play; None takes the runs' own.
    """
    found: dict[tuple, Entry] = {}

    def add(key: tuple, label: str, protocol: str, mean: float, episodes: int) -> None:
        entry = Entry(label=label, protocol=protocol, returns=[], episodes=[])
        entry = found.setdefault((key, protocol), entry)
        entry.returns.append(mean)
        entry.episodes.append(episodes)

    for run in runs:
        recent = [row["score"] for row in run.episodes[-RECENT:]]
        if recent:
            last = f"last {len(recent)} training episodes of {about(run.env_steps)} steps"
            add(run.experiment, run.label, last, statistics.fmean(recent), len(recent))
    for run in runs:
        kinds: dict[str, dict[str, Any]] = {}
        for result in run.evaluations:
            # Another seed of the same weights is no other seed of training: the first one counts.
            kinds.setdefault(_evaluation(result), result)
        for protocol, result in kinds.items():
            add(run.experiment, run.label, protocol, result["return"], result["episodes"])
    chance = chance or chance_before_training(runs)
    if chance.scores:
        mean = statistics.fmean(chance.scores)
        add(("random",), RANDOM, chance.protocol, mean, len(chance.scores))
    return list(found.values())


def chance_before_training(runs: Sequence[RunFacts]) -> Chance:
    """The episodes that ended before a run's first update."""
    scores = [
        row["score"]
        for run in runs
        for row in run.episodes
        if row.get("step", 0) <= run.config.replay.prefill and not run.config.init_from
    ]
    return Chance("episodes that ended before the first update: short ones count too often", scores)


def chance_played(run: RunFacts, episodes: int) -> Chance:
    """Random play of so many whole episodes in the run's environment, made as the run made it.

    Raises:
        EnvError: the environment cannot be made here, or fails too often.
    """
    played = play_randomly(run.config.env, run.config.envs, episodes)[1]
    scores = [episode.score for episode in played if is_whole(episode)]
    return Chance("whole episodes, played for this report", scores)


def table(runs: Sequence[RunFacts], ours: Sequence[Entry]) -> Table:
    """Ours and random play."""
    rows = [
        (e.label, spread(e.returns, 2), _seeds(e), str(sum(e.episodes)), e.protocol) for e in ours
    ]
    notes = ["Mean ± standard deviation over seeds."]
    if any(run.config.env.startswith("gym:ALE/") for run in runs):
        notes.append(
            "Gymnasium's own Atari environments repeat actions by chance and differ in more: this "
            "is not the Atari 100k protocol, whose environments are called atari:GAME."
        )
    notes += [*left_out_note(runs), *same_seed_note(runs)]
    return Table(columns=COLUMNS, rows=rows, notes=tuple(notes))


def _seeds(entry: Entry) -> str:
    return NONE if entry.label == RANDOM else str(len(entry.returns))


def _evaluation(result: dict[str, Any]) -> str:
    """How an evaluation was played."""
    how = "sampled actions" if result["mode"] == "sample" else "likeliest action"
    left_out = f", {result['left_out']} left out" if result.get("left_out") else ""
    after = about(result.get("env_steps") or 0)
    return f"evaluation, {result['episodes']} episodes{left_out} after {after} steps, {how}"
