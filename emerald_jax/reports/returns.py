"""Environments without a published protocol: our returns and those of random play.

Random play is played for the report where that is requested. Otherwise it is the run's own: before
the first update, actions are uniformly random. Only episodes that ended by then are known to be
random throughout, and long ones are less frequent among them; the table states this.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from emerald_jax.envs.playing import is_whole, play_randomly
from emerald_jax.reports import runs

RECENT = 100
RANDOM = "random play"
COLUMNS = ("agent", "return", "seeds", "episodes", "protocol")


class Chance(NamedTuple):
    """Random play: how it was obtained, and the return of each episode."""

    protocol: str
    scores: list[float]


def entries(read: Sequence[runs.RunFacts], chance: Chance | None = None) -> list[runs.Entry]:
    """Training, evaluations, random play: mean return and number of episodes of each."""
    chance = chance or chance_before_training(read)
    ours = runs.entries_of(_results(read))
    if not chance.scores:
        return ours
    random = runs.Entry(label=RANDOM, protocol=chance.protocol, results=[_mean(chance.scores)])
    return [*ours, random]


def _mean(scores: Sequence[float]) -> tuple[float, int]:
    """The mean return and the number of episodes."""
    return statistics.fmean(scores), len(scores)


def _results(read: Sequence[runs.RunFacts]) -> Iterable[runs.Result]:
    for run in read:
        recent = [row["score"] for row in run.episodes[-RECENT:]]
        if recent:
            how = f"last {len(recent)} training episodes of {runs.about(run.env_steps)} steps"
            yield run, how, (), _mean(recent)
    for run in read:
        for result in run.evaluations:
            yield run, _how(result), (), (result["return"], result["episodes"])


def _how(result: dict[str, Any]) -> str:
    how = "sampled actions" if result["mode"] == "sample" else "likeliest action"
    left_out = f", {result['left_out']} left out" if result.get("left_out") else ""
    after = runs.about(result.get("env_steps") or 0)
    return f"evaluation, {result['episodes']} episodes{left_out} after {after} steps, {how}"


def chance_before_training(read: Sequence[runs.RunFacts]) -> Chance:
    """The episodes that ended before a run's first update."""
    scores = [
        row["score"]
        for run in read
        for row in run.episodes
        if row.get("step", 0) <= run.config.replay.prefill and not run.config.init_from
    ]
    return Chance("episodes that ended before the first update: short ones count too often", scores)


def chance_played(run: runs.RunFacts, episodes: int) -> Chance:
    """Play complete random episodes in a run's environment, made as the run made it."""
    played = play_randomly(run.config.env, run.config.envs, episodes)[1]
    scores = [episode.score for episode in played if is_whole(episode)]
    return Chance("complete episodes, played for this report", scores)


def table(read: Sequence[runs.RunFacts], ours: Sequence[runs.Entry]) -> runs.Table:
    """Our results and random play."""
    rows = [
        (
            entry.label,
            runs.mean_and_deviation([mean for mean, _ in entry.results], 2),
            runs.NONE if entry.label == RANDOM else str(len(entry.runs)),
            str(sum(episodes for _, episodes in entry.results)),
            entry.protocol,
        )
        for entry in ours
    ]
    notes = ["Mean ± standard deviation over seeds."]
    if any(run.config.env.startswith("gym:ALE/") for run in read):
        notes.append(
            "Gymnasium's own Atari environments repeat actions at random and differ in more: this "
            "is not the Atari 100k protocol, whose environments are called atari:GAME."
        )
    return runs.Table(columns=COLUMNS, rows=rows, notes=(*notes, *runs.notes_of(read)))
