"""What a run directory offers a report, and which runs are seeds of one and the same experiment.

Tables as Markdown, and numbers as they are written in them.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from emerald_jax.config import Config, ConfigError
from emerald_jax.presets import PRESETS
from emerald_jax.run.directory import EPISODES_FILE, METRICS_FILE, read_config, read_rows
from emerald_jax.run.evaluations import read_evaluations
from emerald_jax.run.log import RESUMES_FILE, is_whole_row
from emerald_jax.scores import Interval

#: Settings that do not make another experiment. Steps are told in every row instead.
_FREE = ("preset", "env", "seed", "logdir", "devices", "max_minutes", "steps")
_FREE_GROUPS = (
    "log.",
    "envs.worker",
    "envs.processes",
    "envs.max_worker_failures",
    "model.dtype",
    "model.remat",
)
#: Environments whose state a checkpoint holds, so that no episode is lost by an interruption.
_EXACT = ("gymnax", "craftax")
_SHOWN = 4


@dataclass(frozen=True, kw_only=True)
class RunFacts:
    """One run, read from disk.

    Attributes:
        path: its directory.
        config: its settings.
        episodes: rows of its whole training episodes, in the order in which they ended.
        faults: training episodes that a fault cut short; they do not count.
        left_open: training episodes that an interruption cut and that were not recorded.
        evaluations: results, of the oldest weights first.
        env_steps: environment steps at its last sign of life.
    """

    path: Path
    config: Config
    episodes: list[dict[str, Any]]
    faults: int
    left_open: int
    evaluations: list[dict[str, Any]]
    env_steps: int

    @property
    def label(self) -> str:
        """The preset, and the settings that were changed."""
        changed = changed_settings(self.config)
        shown = [f"{name} {value}" for name, value in list(changed.items())[:_SHOWN]]
        more = [f"{len(changed) - _SHOWN} more changed"] if len(changed) > _SHOWN else []
        return ", ".join([f"ours: {self.config.preset}", *shown, *more])

    @property
    def experiment(self) -> tuple[tuple[str, Any], ...]:
        """What seeds of one experiment share: every setting that matters, less the environment."""
        return (("preset", self.config.preset), *changed_settings(self.config).items())


def read_run(path: str | Path) -> RunFacts:
    """One run.

    Raises:
        ConfigError: ``path`` is no run directory.
    """
    path = Path(path)
    config = read_config(path)
    rows = [row for row in read_rows(path / EPISODES_FILE) if row.get("score") is not None]
    whole = [row for row in rows if is_whole_row(row)]
    last = [row.get("step", 0) for row in (*rows[-1:], *read_rows(path / METRICS_FILE)[-1:])]
    resumes = {row.get("step") for row in read_rows(path / RESUMES_FILE)}
    lost = 0 if config.env.partition(":")[0] in _EXACT else config.envs.count * len(resumes)
    return RunFacts(
        path=path,
        config=config,
        episodes=whole,
        faults=len(rows) - len(whole),
        left_open=lost,
        evaluations=read_evaluations(path),
        env_steps=max(last, default=0),
    )


def read_runs(paths: Iterable[str | Path]) -> list[RunFacts]:
    """Several runs.

    Raises:
        ConfigError: one is no run directory, or is given twice.
    """
    paths = list(paths)
    seen = set()
    for path in paths:
        if Path(path).resolve() in seen:
            raise ConfigError(f"{path} is given twice: a run counts once")
        seen.add(Path(path).resolve())
    return [read_run(path) for path in paths]


def changed_settings(config: Config) -> dict[str, Any]:
    """Settings that differ from the preset's, less those that make no other experiment."""
    preset = PRESETS[config.preset][1] if config.preset in PRESETS else Config()
    ours, theirs = _flat(config.to_dict()), _flat(preset.to_dict())
    return {
        name: value
        for name, value in ours.items()
        if value != theirs.get(name) and name not in _FREE and not name.startswith(_FREE_GROUPS)
    }


def left_out_note(runs: Sequence[RunFacts]) -> tuple[str, ...]:
    """How many training episodes do not count, and why; nothing when all do."""
    faults, lost = sum(run.faults for run in runs), sum(run.left_open for run in runs)
    parts = []
    if faults:
        parts.append(f"{faults} that a fault of the environment cut short")
    if lost:
        parts.append(f"{lost} that were open when a run was interrupted")
    return (f"Training episodes left out: {' and '.join(parts)}.",) if parts else ()


def same_seed_note(runs: Sequence[RunFacts]) -> tuple[str, ...]:
    """A warning when runs that are averaged share a seed."""
    keys = [(run.experiment, run.config.env, run.config.seed) for run in runs]
    twice = sorted(
        {run.config.seed for run, key in zip(runs, keys, strict=True) if keys.count(key) > 1}
    )
    if not twice:
        return ()
    return (
        f"Runs of one experiment share a seed ({', '.join(map(str, twice))}): their spread is "
        "no spread over seeds.",
    )


def about(steps: int) -> str:
    """A number of steps to two digits, so that seeds of one length fall together."""
    digits = max(len(str(steps)) - 2, 0)
    return f"{round(steps, -digits):,}"


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings by their full names."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        nested = isinstance(value, dict)
        flat |= _flat(value, f"{prefix}{name}.") if nested else {f"{prefix}{name}": value}
    return flat


#: What stands where there is no number.
NONE = "–"


@dataclass(frozen=True, kw_only=True)
class Table:
    """A table and what must be read with it.

    Attributes:
        columns: their headings.
        rows: one text per column.
        notes: lines below it.
    """

    columns: tuple[str, ...]
    rows: list[tuple[str, ...]]
    notes: tuple[str, ...] = ()

    def markdown(self) -> str:
        """The table and its notes."""
        lines = [self.columns, tuple("---" for _ in self.columns), *self.rows]
        text = "".join(f"| {' | '.join(map(_cell, line))} |\n" for line in lines)
        return text + "".join(f"\n{note}\n" for note in self.notes)


def spread(values: Sequence[float], digits: int = 1) -> str:
    """Mean ± standard deviation over seeds; a single one stands alone."""
    mean = f"{statistics.fmean(values):.{digits}f}"
    return mean if len(values) == 1 else f"{mean} ± {statistics.stdev(values):.{digits}f}"


def interval(found: Interval, digits: int = 3) -> str:
    """A number and its 95 % interval."""
    text = f"{found.value:.{digits}f}"
    if found.low != found.low:  # NaN: a single run has no interval
        return text
    return f"{text} [{found.low:.{digits}f}, {found.high:.{digits}f}]"


def number(value: float | None, digits: int = 1) -> str:
    """A number, or the sign that there is none."""
    return NONE if value is None else f"{value:.{digits}f}"


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")
