"""Crafter under its two protocols, which are not comparable with one another.

*Training*: the benchmark's own. Every training episode counts, in the order in which they ended,
until their lengths add up to 1 M steps. *Evaluation*: EMERALD's and delta-IRIS'. A checkpoint of
10 M steps plays 256 fresh episodes per seed, sampling actions, with a time limit of 10 000 steps.

A score per seed, averaged, is what the benchmark's own scripts compute; the score of all episodes
pooled is a little larger. Both are told.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from emerald_jax.reports.runs import (
    NONE,
    RunFacts,
    Table,
    about,
    left_out_note,
    number,
    same_seed_note,
    spread,
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
        episodes: how many there are.
    """

    rates: dict[str, float]
    mean_return: float
    episodes: int

    @property
    def score(self) -> float:
        """Crafter's score in per cent."""
        return crafter_score(self.rates)


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One agent under one protocol: all seeds that may be averaged.

    Attributes:
        label: who it is.
        protocol: :data:`TRAINING` or :data:`EVALUATION`.
        deviations: in what it is not the protocol; empty when it meets it.
        seeds: one or more.
    """

    label: str
    protocol: str
    deviations: tuple[str, ...]
    seeds: list[SeedScore]

    @property
    def score(self) -> float:
        """Mean over seeds, in per cent."""
        return statistics.fmean(seed.score for seed in self.seeds)

    @property
    def title(self) -> str:
        """Who it is and what it is not, in one line."""
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


def entries(runs: Sequence[RunFacts]) -> list[Entry]:
    """Our results, those of the training protocol first."""
    found: dict[tuple, Entry] = {}
    pairs = [(run, *result) for run in runs for result in (*_training(run), *_evaluations(run))]
    for run, protocol, deviations, seed in sorted(pairs, key=lambda pair: pair[1] != TRAINING):
        key = (run.experiment, protocol, deviations)
        entry = Entry(label=run.label, protocol=protocol, deviations=deviations, seeds=[])
        found.setdefault(key, entry).seeds.append(seed)
    return list(found.values())


def table(runs: Sequence[RunFacts], ours: Sequence[Entry]) -> Table:
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
        *left_out_note(runs),
        *same_seed_note(runs),
        *_unscored_note(runs),
    )
    return Table(columns=COLUMNS, rows=rows, notes=notes)


def rates_table(ours: Sequence[Entry]) -> Table:
    """Success rates of ours, of the authors' released runs and of people, in per cent."""
    columns = {entry.title: entry.pooled_rates for entry in ours}
    columns["EMERALD, released runs (published)"] = released_rates()
    columns["human experts (published)"] = human_rates()
    names = sorted(released_rates())
    return Table(
        columns=("achievement", *columns),
        rows=[(name, *(number(rates.get(name)) for rates in columns.values())) for name in names],
    )


def released_rates() -> dict[str, float]:
    """Success rates of the authors' released runs, in per cent."""
    return crafter()["evaluated_at_10M"]["emerald_released_runs"]["rates"]


def human_rates() -> dict[str, float]:
    """Success rates of human experts, in per cent."""
    return crafter()["human_experts"]["rates"]


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
        spread([seed.score for seed in entry.seeds]),
        f"{crafter_score(entry.pooled_rates):.1f}",
        spread([seed.mean_return for seed in entry.seeds], 2),
        str(len(entry.seeds)),
        str(sum(seed.episodes for seed in entry.seeds)),
        entry.protocol,
        "yes" if not entry.deviations else f"**no**: {'; '.join(entry.deviations)}",
    )


def _training(run: RunFacts) -> Iterable[tuple[str, tuple[str, ...], SeedScore]]:
    """The training protocol's result of a run; none before an episode ended."""
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
    yield (
        TRAINING,
        (*few, *_settings(run.config.envs.image_size, run.config.envs.time_limit)),
        SeedScore(
            rates=success_rates(unlocked, sorted(unlocked[0])),
            mean_return=statistics.fmean(row["score"] for row in counted),
            episodes=len(counted),
        ),
    )


def _evaluations(run: RunFacts) -> Iterable[tuple[str, tuple[str, ...], SeedScore]]:
    """The evaluation protocol's results of a run, one per kind of evaluation."""
    kinds: dict[tuple[str, ...], dict[str, Any]] = {}
    for result in run.evaluations:
        if "rates" not in result:
            continue
        steps, deviations = result.get("env_steps") or 0, []
        if steps < EVAL_STEPS - SLACK or steps > EVAL_STEPS + SLACK:
            deviations.append(f"after {about(steps)} of {EVAL_STEPS:,} steps")
        if result["episodes"] < EVAL_EPISODES:
            deviations.append(f"{result['episodes']} of {EVAL_EPISODES} episodes")
        if result["mode"] != "sample":
            deviations.append("likeliest action")
        if result.get("left_out"):
            deviations.append(f"{result['left_out']} episodes left out")
        deviations += _settings(result.get("image_size"), result.get("time_limit"))
        # Another seed of the same weights is no other seed of training: the first one counts.
        kinds.setdefault(tuple(deviations), result)
    for deviations, result in kinds.items():
        seed = SeedScore(
            rates=result["rates"], mean_return=result["return"], episodes=result["episodes"]
        )
        yield EVALUATION, deviations, seed


def _settings(image: int | None, limit: int | None) -> tuple[str, ...]:
    """Deviations in the environment's settings."""
    found = []
    if image != IMAGE:
        found.append(f"images of {image} pixels, not {IMAGE}")
    if limit not in (0, TIME_LIMIT):
        found.append(f"time limit {limit}, not {TIME_LIMIT:,}")
    return tuple(found)


def _unscored_note(runs: Sequence[RunFacts]) -> tuple[str, ...]:
    missing = [str(run.path) for run in runs if not run.evaluations]
    if not missing:
        return ()
    return (f"Never evaluated: {', '.join(missing)} (emerald-jax eval RUN).",)
