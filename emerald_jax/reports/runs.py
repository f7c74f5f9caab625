"""Runs as a report reads them, the seeds that may be averaged, and tables in Markdown.

:func:`entries` and :func:`table` are those of environments without a published protocol: our
returns and those of random play, which is played for the report or else the run's own.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from emerald_jax.config import Config, ConfigError
from emerald_jax.envs.playing import is_whole, play_randomly
from emerald_jax.presets import PRESETS
from emerald_jax.run.directory import (
    EPISODES_FILE,
    METRICS_FILE,
    compare_settings,
    read_config,
    read_rows,
)
from emerald_jax.run.evaluations import read_evaluations
from emerald_jax.run.log import RESUMES_FILE, is_whole_row
from emerald_jax.scores import Interval

#: Settings that do not make another experiment. The number of steps is stated in every row instead.
_FREE = ("preset", "env", "seed", "logdir", "devices", "max_minutes", "steps")
_FREE_GROUPS = ("log.", "envs.worker", "envs.processes", "envs.max_worker_failures")
_FREE_GROUPS += ("model.dtype", "model.remat")
#: Environments whose state is in the checkpoint, so that an interruption loses no episode.
_EXACT = ("gymnax", "craftax")
#: Changed settings in a label.
_SHOWN = 4
#: Printed where there is no number.
NONE = "–"
#: Training episodes averaged in environments without a protocol, and the columns of their table.
RECENT = 100
COLUMNS = ("agent", "return", "seeds", "episodes", "protocol")
RANDOM = "random play"

E = TypeVar("E", bound="Entry")


@dataclass(frozen=True, kw_only=True, eq=False)
class RunFacts:
    """One run, read from disk.

    Attributes:
        path: its directory.
        config: its settings.
        label: its preset and changed settings, those first that differ between the runs read.
        episodes: rows of its complete training episodes, in the order in which they ended.
        faults: training episodes that a fault cut short; they do not count.
        left_open: training episodes that an interruption cut short and that were not recorded.
        evaluations: results, of the oldest weights first.
        env_steps: environment steps in its newest row.
    """

    path: Path
    config: Config
    label: str
    episodes: list[dict[str, Any]]
    faults: int
    left_open: int
    evaluations: list[dict[str, Any]]
    env_steps: int

    @property
    def experiment(self) -> tuple[tuple[str, Any], ...]:
        """The settings that all seeds of one experiment share, without the environment."""
        return (("preset", self.config.preset), *changed_settings(self.config).items())


def read_runs(paths: Iterable[str | Path]) -> list[RunFacts]:
    """Read several runs; ConfigError where one is no run directory, or is given twice."""
    paths = [Path(path) for path in paths]
    places = [path.resolve() for path in paths]
    for path, place in zip(paths, places, strict=True):
        if places.count(place) > 1:
            raise ConfigError(f"{path} is given twice: a run counts once")
    configs = [read_config(path) for path in paths]
    return [_read_run(*found) for found in zip(paths, configs, _labels(configs), strict=True)]


def _read_run(path: Path, config: Config, label: str) -> RunFacts:
    rows = [row for row in read_rows(path / EPISODES_FILE) if row.get("score") is not None]
    complete = [row for row in rows if is_whole_row(row)]
    last = [row.get("step", 0) for row in (*rows[-1:], *read_rows(path / METRICS_FILE)[-1:])]
    resumes = {row.get("step") for row in read_rows(path / RESUMES_FILE)}
    exact = bool(config.data) or config.env.partition(":")[0] in _EXACT
    return RunFacts(
        path=path,
        config=config,
        label=label,
        episodes=complete,
        faults=len(rows) - len(complete),
        left_open=0 if exact else config.envs.count * len(resumes),
        evaluations=read_evaluations(path),
        env_steps=max(last, default=0),
    )


def _labels(configs: Sequence[Config]) -> list[str]:
    """A label for each run; runs of different experiments get different labels."""
    changed = [changed_settings(config) for config in configs]
    names = {name for settings in changed for name in settings}
    same = {name for name in names if len({repr(c.get(name)) for c in changed}) == 1}
    experiments: dict[str, list] = {}
    labels = []
    for config, settings in zip(configs, changed, strict=True):
        ordered = sorted(settings, key=lambda name: name in same)
        values = ((name, settings[name]) for name in ordered[:_SHOWN])
        shown = [f"{k} {float(f'{v:.6g}') if isinstance(v, float) else v}" for k, v in values]
        more = [f"{len(ordered) - _SHOWN} more changed"] if len(ordered) > _SHOWN else []
        label = ", ".join([f"ours: {config.preset}", *shown, *more])
        known = experiments.setdefault(label, [])
        if settings not in known:
            known.append(settings)
        number = known.index(settings) + 1
        labels.append(label if number == 1 else f"{label} ({number})")
    return labels


def world_of(config: Config) -> str:
    """The name of a run's environment, or of its data where these name none."""
    return config.env or config.data


def changed_settings(config: Config) -> dict[str, Any]:
    """Settings that differ from the preset's and make another experiment."""
    preset = PRESETS[config.preset][1] if config.preset in PRESETS else Config()
    return {
        name: value
        for name, _, value in compare_settings(preset, config)
        if name not in _FREE and not name.startswith(_FREE_GROUPS)
    }


@dataclass(frozen=True, kw_only=True)
class Entry:
    """Results of seeds that may be averaged: of one experiment, obtained in one way.

    ``label`` names the agent, ``protocol`` the way; ``deviations`` from a published protocol are
    empty if there are none.
    """

    label: str
    protocol: str
    deviations: tuple[str, ...] = ()
    runs: list[RunFacts] = field(default_factory=list)
    results: list[Any] = field(default_factory=list)


#: A run, the protocol, the deviations from it, and the result.
Result = tuple[RunFacts, str, tuple[str, ...], Any]


def entries_of(results: Iterable[Result], kind: type[E] = Entry) -> list[E]:
    """Collect the results that may be averaged, in the order of first appearance.

    Only the first result of a run counts under the same protocol with the same deviations: another
    evaluation of the same weights is not another training seed.
    """
    found: dict[tuple, E] = {}
    for run, protocol, deviations, result in results:
        key = (run.experiment, protocol, deviations)
        new = kind(label=run.label, protocol=protocol, deviations=deviations)
        entry = found.setdefault(key, new)
        if run not in entry.runs:
            entry.runs.append(run)
            entry.results.append(result)
    return list(found.values())


def deviations_of(
    result: dict[str, Any], *, steps: int, slack: int, episodes: int
) -> tuple[str, ...]:
    """How an evaluation differs from a protocol of ``steps`` ± ``slack`` steps and ``episodes``."""
    found, after = [], result.get("env_steps") or 0
    if abs(after - steps) > slack:
        found.append(f"after {about(after)} of {steps:,} steps")
    if result["episodes"] < episodes:
        found.append(f"{result['episodes']} of {episodes} episodes")
    if result["mode"] != "sample":
        found.append("likeliest action")
    if result.get("data"):
        found.append("trained on recorded data")
    if result.get("left_out"):
        found.append(f"{result['left_out']} episodes left out")
    return tuple(found)


def other_images(size: int | None) -> list[str]:
    """The deviation of images that are not of 64 x 64 pixels, as both benchmarks have them."""
    return [] if size == 64 else [f"images of {size} pixels, not 64"]


def notes_of(runs: Sequence[RunFacts], unscored: str = "") -> tuple[str, ...]:
    """Notes on the runs of a table: episodes that do not count, repeated seeds, no evaluation.

    ``unscored`` introduces the runs without an evaluation; empty leaves them out.
    """
    notes, parts = [], []
    if faults := sum(run.faults for run in runs):
        parts.append(f"{faults} that a fault of the environment cut short")
    if lost := sum(run.left_open for run in runs):
        parts.append(f"{lost} that were open when a run was interrupted")
    if parts:
        notes.append(f"Training episodes left out: {' and '.join(parts)}.")
    keys = [(run.experiment, run.config.env, run.config.seed) for run in runs]
    if twice := sorted({key[-1] for key in keys if keys.count(key) > 1}):
        notes.append(
            f"Runs of one experiment share a seed ({', '.join(map(str, twice))}): their standard "
            "deviation is not one over seeds."
        )
    missing = [str(run.path) for run in runs if not run.evaluations]
    if unscored and missing:
        notes.append(f"{unscored}: {', '.join(missing)} (emerald-jax eval RUN).")
    return tuple(notes)


@dataclass(frozen=True, kw_only=True)
class Table:
    """A table with notes below it; a row has one text per column."""

    columns: tuple[str, ...]
    rows: list[tuple[str, ...]]
    notes: tuple[str, ...] = ()

    def markdown(self) -> str:
        """The table and its notes."""
        lines = [self.columns, tuple("---" for _ in self.columns), *self.rows]
        cells = ([" ".join(text.split()).replace("|", "\\|") for text in line] for line in lines)
        rows = "".join(f"| {' | '.join(line)} |\n" for line in cells)
        return rows + "".join(f"\n{note}\n" for note in self.notes)


def meets(deviations: Sequence[str]) -> str:
    """Whether a result meets its protocol, as a cell."""
    return f"**no**: {'; '.join(deviations)}" if deviations else "yes"


def mean_and_deviation(values: Sequence[float], digits: int = 1) -> str:
    """Mean ± standard deviation over seeds; only the value where there is one seed."""
    mean = f"{statistics.fmean(values):.{digits}f}"
    return mean if len(values) == 1 else f"{mean} ± {statistics.stdev(values):.{digits}f}"


def interval(found: Interval, digits: int = 3) -> str:
    """A number and its 95 % interval."""
    text = f"{found.value:.{digits}f}"
    if found.low != found.low:  # NaN: a single run has no interval
        return text
    return f"{text} [{found.low:.{digits}f}, {found.high:.{digits}f}]"


def number(value: float | None, digits: int = 1) -> str:
    """A number, or :data:`NONE`."""
    return NONE if value is None else f"{value:.{digits}f}"


def about(steps: int) -> str:
    """A number of steps rounded to two digits, so that seeds of similar length are one row."""
    digits = max(len(str(steps)) - 2, 0)
    return f"{round(steps, -digits):,}"


class Chance(NamedTuple):
    """Random play: how it was obtained, and the return of each episode."""

    protocol: str
    scores: list[float]


def chance_before_training(read: Sequence[RunFacts]) -> Chance:
    """The episodes that ended before a run's first update, up to which actions are random.

    Long ones are less frequent among them; the table states this.
    """
    scores = [
        row["score"]
        for run in read
        for row in run.episodes
        if row.get("step", 0) <= run.config.replay.prefill and not run.config.init_from
    ]
    return Chance("episodes that ended before the first update: short ones count too often", scores)


def chance_played(run: RunFacts, episodes: int) -> Chance:
    """Play complete random episodes in a run's environment, made as the run made it."""
    played = play_randomly(run.config.env, run.config.envs, episodes)[1]
    scores = [episode.score for episode in played if is_whole(episode)]
    return Chance("complete episodes, played for this report", scores)


def entries(read: Sequence[RunFacts], chance: Chance | None = None) -> list[Entry]:
    """Training, evaluations, random play: mean return and number of episodes of each."""
    chance = chance or chance_before_training(read)
    results: list[Result] = []
    for run in read:
        if recent := [row["score"] for row in run.episodes[-RECENT:]]:
            how = f"last {len(recent)} training episodes of {about(run.env_steps)} steps"
            results.append((run, how, (), (statistics.fmean(recent), len(recent))))
    for run in read:
        for found in run.evaluations:
            how = "sampled actions" if found["mode"] == "sample" else "likeliest action"
            left_out = f", {found['left_out']} left out" if found.get("left_out") else ""
            after = f"{left_out} after {about(found.get('env_steps') or 0)} steps, {how}"
            protocol = f"evaluation, {found['episodes']} episodes{after}"
            results.append((run, protocol, (), (found["return"], found["episodes"])))
    random = [(statistics.fmean(chance.scores), len(chance.scores))] if chance.scores else []
    played = [Entry(label=RANDOM, protocol=chance.protocol, results=random)] if random else []
    return entries_of(results) + played


def table(read: Sequence[RunFacts], ours: Sequence[Entry]) -> Table:
    """Our results and random play."""
    rows = [
        (
            entry.label,
            mean_and_deviation([mean for mean, _ in entry.results], 2),
            NONE if entry.label == RANDOM else str(len(entry.runs)),
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
    return Table(columns=COLUMNS, rows=rows, notes=(*notes, *notes_of(read)))
