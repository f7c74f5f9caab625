"""Crafter under its two protocols, whose results are not comparable.

*Training*: the benchmark's own. Every training episode counts, in the order in which they ended,
until their lengths add up to 1 M steps. *Evaluation*: that of EMERALD and delta-IRIS. A checkpoint
of 10 M steps plays 256 new episodes per seed, sampling actions, with a time limit of 10 000 steps.
The benchmark's own scripts average one score per seed; the score of all episodes pooled is a little
higher. The table has both.
"""

from __future__ import annotations

import bisect
import itertools
import statistics
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from emerald_jax.reports import runs
from emerald_jax.run.log import achievements_of
from emerald_jax.scores import crafter, crafter_score, success_rates

BUDGET, SLACK = 1_000_000, 10_000
EVAL_STEPS, EVAL_EPISODES, TIME_LIMIT = 10_000_000, 256, 10_000
TRAINING, EVALUATION = "training episodes of the first 1 M steps", "256 episodes after 10 M steps"
COLUMNS = ("agent", "score %", "pooled %", "return", "seeds", "episodes", "protocol", "meets it")


class SeedScore(NamedTuple):
    """One seed under one protocol: success rates in per cent, mean return, number of episodes."""

    rates: dict[str, float]
    mean_return: float
    episodes: int

    @property
    def score(self) -> float:
        """Crafter's score in per cent."""
        return crafter_score(self.rates)


class Entry(runs.Entry):
    """One agent under one protocol: all seeds that may be averaged, each a :class:`SeedScore`."""

    @property
    def score(self) -> float:
        """Mean over seeds, in per cent."""
        return statistics.fmean(seed.score for seed in self.results)

    @property
    def title(self) -> str:
        """Name, protocol and deviations in one line."""
        kind = "training" if self.protocol == TRAINING else "evaluation"
        deviations = f", {'; '.join(self.deviations)}" if self.deviations else ""
        return f"{self.label}, {kind}{deviations}"

    @property
    def pooled_rates(self) -> dict[str, float]:
        """Success rates over all episodes of all seeds."""
        total = sum(seed.episodes for seed in self.results)
        return {
            name: sum(seed.rates[name] * seed.episodes for seed in self.results) / total
            for name in self.results[0].rates
        }


def entries(found: Sequence[runs.RunFacts]) -> list[Entry]:
    """Our results, those of the training protocol first."""
    kinds = (_training, _evaluations)
    return runs.entries_of((row for kind in kinds for run in found for row in kind(run)), Entry)


def table(read: Sequence[runs.RunFacts], ours: Sequence[Entry]) -> runs.Table:
    """Ours and the published numbers, protocol by protocol."""
    rows = []
    for protocol in (TRAINING, EVALUATION):
        for entry in (entry for entry in ours if entry.protocol == protocol):
            scores = runs.mean_and_deviation([seed.score for seed in entry.results])
            pooled = f"{crafter_score(entry.pooled_rates):.1f}"
            returns = runs.mean_and_deviation([seed.mean_return for seed in entry.results], 2)
            counts = len(entry.results), sum(seed.episodes for seed in entry.results)
            how = protocol, runs.meets(entry.deviations)
            rows.append((entry.label, scores, pooled, returns, *map(str, counts), *how))
        for name, row in published_scores(protocol).items():
            error = f" ± {row['score_std']:.1f}" if "score_std" in row else ""
            score = f"{row['score']:g}{error}"
            pooled = name == "emerald_released_runs"
            scores = (runs.NONE, score) if pooled else (score, runs.NONE)
            counts = runs.NONE, runs.number(row.get("episodes"), 0)
            numbers = (*scores, runs.number(row.get("return")), *counts)
            rows.append((f"{name.replace('_', ' ')} (published)", *numbers, protocol, "yes"))
    human = crafter()["human_experts"]
    scores = (f"{human['score']:g} ± {human['score_std']:g}", f"{human['score_pooled']:g}")
    counts = (runs.number(human["return"]), runs.NONE, str(human["episodes"]))
    rows.append(("human experts (published)", *scores, *counts, "100 episodes of play", "yes"))
    notes = (
        "Score: mean ± standard deviation over seeds; pooled: over all episodes of all seeds. "
        "Rows of different protocols cannot be compared.",
        *runs.notes_of(read, "Never evaluated"),
    )
    return runs.Table(columns=COLUMNS, rows=rows, notes=notes)


def rates_table(ours: Sequence[Entry]) -> runs.Table:
    """Success rates of ours, of the authors' released runs and of people, in per cent."""
    columns = {entry.title: entry.pooled_rates for entry in ours} | published_rates()
    rows = [
        (name, *(runs.number(rates.get(name)) for rates in columns.values()))
        for name in sorted(next(iter(published_rates().values())))
    ]
    return runs.Table(columns=("achievement", *columns), rows=rows)


def published_rates() -> dict[str, dict[str, float]]:
    """Published success rates, of the authors' released runs and of people, in per cent."""
    released = crafter()["evaluated_at_10M"]["emerald_released_runs"]["rates"]
    return {
        "EMERALD, released runs (published)": released,
        "human experts (published)": crafter()["human_experts"]["rates"],
    }


def published_scores(protocol: str) -> dict[str, dict[str, float]]:
    """Published results under a protocol, best score first: name -> ``score``, ``return``, …."""
    found = crafter()["training_episodes_first_1M"]
    if protocol != TRAINING:
        found = crafter()["evaluated_at_10M"]
        found = {**found, "emerald_paper": {"score": found["emerald_paper"]}}
    return dict(sorted(found.items(), key=lambda item: -item[1]["score"]))


def _training(run: runs.RunFacts) -> Iterable[runs.Result]:
    """The result of a run under the training protocol; none before an episode ended."""
    totals = list(itertools.accumulate(row["length"] for row in run.episodes))
    counted = run.episodes[: bisect.bisect_right(totals, BUDGET)]
    unlocked = [achievements_of(row) for row in counted]
    if not counted or not all(unlocked):
        return
    steps, envs = totals[len(counted) - 1], run.config.envs
    few = (f"{runs.about(steps)} of {BUDGET:,} steps",) if steps < BUDGET - SLACK else ()
    rates = success_rates(unlocked, sorted(unlocked[0]))
    mean = statistics.fmean(row["score"] for row in counted)
    seed = SeedScore(rates, mean, len(counted))
    yield run, TRAINING, (*few, *_settings(envs.image_size, envs.time_limit)), seed


def _evaluations(run: runs.RunFacts) -> Iterable[runs.Result]:
    """The results of a run under the evaluation protocol."""
    for result in run.evaluations:
        if "rates" not in result:
            continue
        found = runs.deviations_of(result, steps=EVAL_STEPS, slack=SLACK, episodes=EVAL_EPISODES)
        settings = _settings(result.get("image_size"), result.get("time_limit"))
        seed = SeedScore(result["rates"], result["return"], result["episodes"])
        yield run, EVALUATION, (*found, *settings), seed


def _settings(image: int | None, limit: int | None) -> tuple[str, ...]:
    """Deviations in the environment's settings."""
    other = [] if limit in (0, TIME_LIMIT) else [f"time limit {limit}, not {TIME_LIMIT:,}"]
    return (*runs.other_images(image), *other)
