"""Crafter under its two protocols, whose results are not comparable.

*Training*: the benchmark's own. Every training episode counts, in the order in which they ended,
until their lengths add up to 1 M steps. *Evaluation*: that of EMERALD and delta-IRIS. A checkpoint
of 10 M steps plays 256 new episodes per seed, sampling actions, with a time limit of 10 000 steps.

The benchmark's own scripts average one score per seed; the score of all episodes pooled is a little
higher. The table has both.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from emerald_jax.reports import runs
from emerald_jax.reports.runs import (
    NONE,
    Result,
    RunFacts,
    Table,
    about,
    deviations_of,
    entries_of,
    mean_and_deviation,
    meets,
    notes_of,
    number,
)
from emerald_jax.run.log import achievements_of
from emerald_jax.scores import crafter, crafter_score, success_rates

BUDGET, SLACK = 1_000_000, 10_000
EVAL_STEPS, EVAL_EPISODES, TIME_LIMIT, IMAGE = 10_000_000, 256, 10_000, 64
TRAINING, EVALUATION = "training episodes of the first 1 M steps", "256 episodes after 10 M steps"
COLUMNS = ("agent", "score %", "pooled %", "return", "seeds", "episodes", "protocol", "meets it")


@dataclass(frozen=True, kw_only=True)
class SeedScore:
    """One seed under one protocol.

    Attributes:
        rates: success rates in per cent.
        mean_return: of its episodes.
        episodes: their number.
    """

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
    def seeds(self) -> list[SeedScore]:
        """The results."""
        return self.results

    @property
    def score(self) -> float:
        """Mean over seeds, in per cent."""
        return statistics.fmean(seed.score for seed in self.seeds)

    @property
    def title(self) -> str:
        """Name, protocol and deviations in one line."""
        kind = "training" if self.protocol == TRAINING else "evaluation"
        deviations = f", {'; '.join(self.deviations)}" if self.deviations else ""
        return f"{self.label}, {kind}{deviations}"

    @property
    def pooled_rates(self) -> dict[str, float]:
        """Success rates over all episodes of all seeds."""
        total = sum(seed.episodes for seed in self.seeds)
        return {
            name: sum(seed.rates[name] * seed.episodes for seed in self.seeds) / total
            for name in self.seeds[0].rates
        }


def entries(found: Sequence[RunFacts]) -> list[Entry]:
    """Our results, those of the training protocol first."""
    training = [result for run in found for result in _training(run)]
    evaluations = [result for run in found for result in _evaluations(run)]
    return entries_of([*training, *evaluations], Entry)


def table(read: Sequence[RunFacts], ours: Sequence[Entry]) -> Table:
    """Ours and the published numbers, protocol by protocol."""
    rows = []
    for protocol in (TRAINING, EVALUATION):
        rows += [_our_row(entry) for entry in ours if entry.protocol == protocol]
        rows += list(_published_rows(protocol))
    human = crafter()["human_experts"]
    rows.append(
        (
            "human experts (published)",
            f"{human['score']:g} ± {human['score_std']:g}",
            f"{human['score_pooled']:g}",
            number(human["return"]),
            NONE,
            str(human["episodes"]),
            "100 episodes of play",
            "yes",
        )
    )
    notes = (
        "Score: mean ± standard deviation over seeds; pooled: over all episodes of all seeds. "
        "Rows of different protocols cannot be compared.",
        *notes_of(read, "Never evaluated"),
    )
    return Table(columns=COLUMNS, rows=rows, notes=notes)


def rates_table(ours: Sequence[Entry]) -> Table:
    """Success rates of ours, of the authors' released runs and of people, in per cent."""
    columns = {entry.title: entry.pooled_rates for entry in ours} | published_rates()
    names = sorted(next(iter(published_rates().values())))
    return Table(
        columns=("achievement", *columns),
        rows=[(name, *(number(rates.get(name)) for rates in columns.values())) for name in names],
    )


def published_rates() -> dict[str, dict[str, float]]:
    """Published success rates, of the authors' released runs and of people, in per cent."""
    released = crafter()["evaluated_at_10M"]["emerald_released_runs"]["rates"]
    return {
        "EMERALD, released runs (published)": released,
        "human experts (published)": crafter()["human_experts"]["rates"],
    }


def published_scores(protocol: str) -> dict[str, dict[str, float]]:
    """Published results under a protocol, best score first: name -> ``score``, ``return``, …."""
    if protocol == TRAINING:
        found = dict(crafter()["training_episodes_first_1M"])
    else:
        found = dict(crafter()["evaluated_at_10M"])
        found["emerald_paper"] = {"score": found["emerald_paper"]}
    return dict(sorted(found.items(), key=lambda item: -item[1]["score"]))


def _published_rows(protocol: str) -> Iterable[tuple[str, ...]]:
    for name, row in published_scores(protocol).items():
        pooled = name == "emerald_released_runs"
        error = f" ± {row['score_std']:.1f}" if "score_std" in row else ""
        score = f"{row['score']:g}{error}"
        yield (
            f"{name.replace('_', ' ')} (published)",
            NONE if pooled else score,
            score if pooled else NONE,
            number(row.get("return")),
            NONE,
            number(row.get("episodes"), 0),
            protocol,
            "yes",
        )


def _our_row(entry: Entry) -> tuple[str, ...]:
    return (
        entry.label,
        mean_and_deviation([seed.score for seed in entry.seeds]),
        f"{crafter_score(entry.pooled_rates):.1f}",
        mean_and_deviation([seed.mean_return for seed in entry.seeds], 2),
        str(len(entry.seeds)),
        str(sum(seed.episodes for seed in entry.seeds)),
        entry.protocol,
        meets(entry.deviations),
    )


def _training(run: RunFacts) -> Iterable[Result]:
    """The result of a run under the training protocol; none before an episode ended."""
    counted, total = [], 0
    for row in run.episodes:
        total += row["length"]
        if total > BUDGET:
            break
        counted.append(row)
    unlocked = [achievements_of(row) for row in counted]
    if not counted or not all(unlocked):
        return
    steps = sum(row["length"] for row in counted)
    few = (f"{about(steps)} of {BUDGET:,} steps",) if steps < BUDGET - SLACK else ()
    envs = run.config.envs
    seed = SeedScore(
        rates=success_rates(unlocked, sorted(unlocked[0])),
        mean_return=statistics.fmean(row["score"] for row in counted),
        episodes=len(counted),
    )
    yield run, TRAINING, (*few, *_settings(envs.image_size, envs.time_limit)), seed


def _evaluations(run: RunFacts) -> Iterable[Result]:
    """The results of a run under the evaluation protocol."""
    for result in run.evaluations:
        if "rates" not in result:
            continue
        found = deviations_of(result, steps=EVAL_STEPS, slack=SLACK, episodes=EVAL_EPISODES)
        settings = _settings(result.get("image_size"), result.get("time_limit"))
        seed = SeedScore(
            rates=result["rates"], mean_return=result["return"], episodes=result["episodes"]
        )
        yield run, EVALUATION, (*found, *settings), seed


def _settings(image: int | None, limit: int | None) -> tuple[str, ...]:
    """Deviations in the environment's settings."""
    found = []
    if image != IMAGE:
        found.append(f"images of {image} pixels, not {IMAGE}")
    if limit not in (0, TIME_LIMIT):
        found.append(f"time limit {limit}, not {TIME_LIMIT:,}")
    return tuple(found)
