"""Continuing a run with other settings: which may change on the way, and which must not.

A setting is refused when it decides the *shape* of anything saved, or what saved *data* mean: what
a record of the replay is, what an action does, what a return counts. Everything that only decides
what is learned from those data from now on, how fast and on what machine, may change. What is not
listed here is refused, so a new setting is safe until somebody thought about it.

Two cases that are not obvious: ``envs.time_limit`` is refused, because returns and episode lengths
in the log would no longer count the same thing; ``behavior.gamma`` may change, because no discount
is stored anywhere, and the critic follows it like it follows a better policy.

Nothing here imports JAX: a wrong setting is refused before anything heavy wakes up.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from emerald_jax.config import Config, ConfigError

#: Settings that may change, whole groups as ``group.*``.
FREE = (
    "preset",
    "steps",
    "max_minutes",
    "train_ratio",
    "seed",
    "logdir",
    "devices",
    "envs.workers",
    "envs.processes",
    "envs.worker_timeout",
    "envs.max_worker_failures",
    "model.dropout",
    "model.dtype",
    "model.remat",
    "model.unimix",
    "loss.*",
    "behavior.*",
    "optim.*",
    "replay.best_of",
    "replay.capacity",
    "replay.prefill",
    "log.*",
)

#: The settings that say how many updates are owed for the steps taken.
PACE = ("train_ratio", "replay.prefill")


class Difference(NamedTuple):
    """One setting that is not what the checkpoint was saved with.

    Attributes:
        name: such as ``optim.model_lr``.
        before: the checkpoint's value.
        now: ours.
    """

    name: str
    before: Any
    now: Any

    @property
    def free(self) -> bool:
        """Whether a run may go on with it."""
        if self.name == "init_from":  # it has begun; only naming another beginning is a mistake
            return not self.now
        return self.name in FREE or f"{self.name.partition('.')[0]}.*" in FREE

    def __str__(self) -> str:
        return f"{self.name}: {self.before!r} -> {self.now!r}"


def compare_settings(before: Config, now: Config) -> list[Difference]:
    """The settings that differ, in the order of ``config.py``."""
    old, new = (dict(_flatten(config.to_dict())) for config in (before, now))
    return [Difference(name, old[name], value) for name, value in new.items() if value != old[name]]


def refuse_other_data(logdir: Path, differences: Sequence[Difference]) -> None:
    """Refuse settings that a run cannot go on with.

    Raises:
        ConfigError: naming each of them with the run's value and ours.
    """
    refused = [d for d in differences if not d.free]
    if any(d.name == "init_from" for d in refused):
        raise ConfigError(
            f"logdir {logdir} holds a run that has begun: --init-from is for a new one, "
            "choose another --logdir"
        )
    if refused:
        values = ", ".join(f"{d.name} {_spell(d.before)}, not {_spell(d.now)}" for d in refused)
        raise ConfigError(
            f"logdir {logdir} holds a run with {values}: choose another --logdir, or continue it "
            "with its own settings"
        )


def saved_config(logdir: Path) -> Config | None:
    """The settings of the newest checkpoint whose facts can be read, without checking digests.

    Returns:
        None when there is none, or when another version wrote it.
    """
    steps = [p for p in (logdir / "checkpoints").glob("*") if p.name.isdecimal()]
    for step in sorted(steps, key=lambda path: -int(path.name)):
        try:
            facts = json.loads((step / "facts" / "metadata").read_bytes())
            return Config.from_dict(facts["content"]["facts"]["run"]["config"])
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            continue  # ConfigError, of another version's settings, is a ValueError
    return None


def _spell(value: Any) -> str:
    return "empty" if value == "" else str(value)


def _flatten(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value
