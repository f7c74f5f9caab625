"""A study: variants, seeds and scales as cells that are each computed once.

A *cell* is one variant with one seed: a world model trained on a recorded data set and read in one
or more ways (with other decoding steps, for instance), or an agent trained in its environment. A
finished cell is a JSON file; a study that was stopped goes on with the cells that are missing.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import platform
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from emerald_jax import __version__
from emerald_jax.config import Config, ConfigError
from emerald_jax.presets import get_preset
from emerald_jax.replay import Replay
from emerald_jax.studies import datasets, measures, outcome, probe, tiles, worlds
from emerald_jax.training.loop import train
from emerald_jax.training.program import prepare_jax
from emerald_jax.training.rundir import EPISODES_FILE, read_rows, write_atomic

#: Share of a data set's rows that no model is trained on.
HELD_OUT = 0.2
#: Training episodes that count as an agent's score.
_LAST_EPISODES = 100
#: Smaller tiles, in pixels, cannot be told apart.
_SMALLEST_TILE = 5
#: ``data`` of a variant that is the memory probe, with its delay.
PROBE = "probe:"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scale:
    """How large a study is.

    Attributes:
        preset: the configuration that variants change.
        env: what is recorded; empty takes the preset's.
        records: environment steps to record, where no data set is given.
        updates: gradient steps of a world model.
        seeds: seeds of every variant.
        windows: held-out windows that are measured.
        context: real frames read before the dream.
        horizon: imagined steps measured.
        changes: dotted settings that all variants share, such as ``model.width``.
        agent_preset: preset of the agents trained for their score; empty trains none.
        agent_changes: dotted settings of those.
    """

    preset: str
    env: str = ""
    records: int
    updates: int
    seeds: int
    windows: int
    context: int
    horizon: int
    changes: dict[str, Any] = dataclasses.field(default_factory=dict)
    agent_preset: str = ""
    agent_changes: dict[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Variant:
    """One thing that is compared.

    Attributes:
        label: as tables and figures call it.
        changes: dotted settings, such as ``{"model.latent": "vector"}``.
        readings: label -> dotted settings with which one trained model is measured.
        data: empty for the scale's data set, ``probe:K`` for the memory probe.
        agent: train an agent for its score, instead of a world model.
    """

    label: str
    changes: dict[str, Any] = dataclasses.field(default_factory=dict)
    readings: dict[str, dict[str, Any]] = dataclasses.field(default_factory=lambda: {"": {}})
    data: str = ""
    agent: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class Study:
    """What an experiment file declares.

    Attributes:
        name: of its results.
        claim: one line, the docstring's first.
        scales: by name.
        variants: the variants at a scale.
        metrics: metric -> heading of its column.
        curves: metrics over imagined steps that are drawn, with their headings.
        points: metrics that are drawn as points, with their headings.
        timed: whether decoding is timed as well.
    """

    name: str
    claim: str
    scales: dict[str, Scale]
    variants: Callable[[Scale], Sequence[Variant]]
    metrics: dict[str, str]
    curves: dict[str, str] = dataclasses.field(default_factory=dict)
    points: dict[str, str] = dataclasses.field(default_factory=dict)
    timed: bool = False


def main(study: Study, words: Sequence[str] | None = None) -> Path:
    """Run a study from the command line; returns the directory of its results."""
    parser = argparse.ArgumentParser(description=study.claim)
    parser.add_argument("--scale", choices=tuple(study.scales), default="smoke")
    parser.add_argument("--out", type=Path, default=None, help="results (runs/studies/NAME-SCALE)")
    parser.add_argument("--data", type=Path, default=None, help="a recorded data set to train on")
    options = parser.parse_args(words)
    out = options.out or Path("runs/studies") / f"{study.name}-{options.scale}"
    prepare_jax()
    return run(study, study.scales[options.scale], out, options.data)


def run(study: Study, scale: Scale, out: Path, data: Path | None = None) -> Path:
    """Compute the cells that are missing, then write table, figures and JSON.

    Args:
        study: what to compare.
        scale: how large.
        out: directory of the results.
        data: a data set to train on; None records one into ``out`` first.

    Returns:
        ``out``.

    Raises:
        ConfigError: a variant's settings cannot work, or ``out`` holds cells of other settings.
    """
    cells = [(v, seed) for v in study.variants(scale) for seed in range(scale.seeds)]
    for variant, _ in cells:
        config_of(scale, variant).validate()
    source = _Source(scale, out, data)
    rows = []
    for number, (variant, seed) in enumerate(cells, start=1):
        path = out / "cells" / f"{_file_name(variant.label)}-{seed}.json"
        asked = _settings(scale, variant, seed)
        found = json.loads(path.read_text()) if path.is_file() else None
        if found is not None and found["settings"] != asked:
            raise ConfigError(f"{path} is a cell of other settings: choose another --out")
        if found is None:
            _say(f"cell {number} of {len(cells)}: {variant.label or study.name}, seed {seed}")
            began = time.monotonic()
            measured = _agent(scale, variant, seed, out) if variant.agent else None
            measured = measured or _world(study, scale, variant, seed, source)
            seconds = round(time.monotonic() - began, 1)
            found = {"settings": asked, **measured, "seconds": seconds, "machine": machine()}
            write_atomic(path, (json.dumps(found) + "\n").encode())
        rows.append((variant, found))
    return write_results(study, rows, out)


def write_results(study: Study, rows: list[tuple[Variant, dict[str, Any]]], out: Path) -> Path:
    """``table.md``, ``result.json`` and the figures of finished cells."""
    results: outcome.Results = {}
    for variant, cell in rows:
        for reading, values in cell["readings"].items():
            label = " ".join(filter(None, (variant.label, reading)))
            for name, numbers in values.items():
                found = results.setdefault(label, {}).setdefault(name, [])
                found.append(np.array(numbers))
    made = outcome.table(results, study.metrics)
    text = f"{study.claim}\n\n{made.markdown()}"
    write_atomic(out / "table.md", text.encode())
    content = {
        "study": study.name,
        "columns": made.columns,
        "rows": made.rows,
        "notes": made.notes,
        "parameters": {v.label: c["parameters"] for v, c in rows if "parameters" in c},
        "seconds": sum(cell["seconds"] for _, cell in rows),
        "machine": machine(),
    }
    write_atomic(out / "result.json", (json.dumps(content, indent=1) + "\n").encode())
    if study.curves:
        outcome.step_figure(results, study.curves, out / "curves.png")
    if study.points:
        outcome.point_figure(results, study.points, out / "points.png")
    _say(text)
    return out


def config_of(scale: Scale, variant: Variant) -> Config:
    """The configuration of a variant at a scale."""
    if variant.agent:
        return change(get_preset(scale.agent_preset), {**scale.agent_changes, **variant.changes})
    return change(get_preset(scale.preset), {**scale.changes, **variant.changes})


def change(config: Config, settings: dict[str, Any]) -> Config:
    """``config`` with dotted settings changed.

    Raises:
        ConfigError: a setting does not exist.
    """
    values = config.to_dict()
    for name, value in settings.items():
        group, _, field = name.rpartition(".")
        (values[group] if group else values)[field] = value
    return Config.from_dict(values)


def machine() -> str:
    """Where a number was measured."""
    device = jax.devices()[0].device_kind
    return (
        f"{platform.machine()}, {os.cpu_count()} cores, {device}, jax {jax.__version__}, "
        f"emerald_jax {__version__}"
    )


def _say(text: str) -> None:
    """A line for whoever waits for the study."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


class _Source:
    """The recorded play of a study, recorded when it is first asked for."""

    def __init__(self, scale: Scale, out: Path, given: Path | None) -> None:
        self.scale, self.given, self.env = scale, given, ""
        self.folder = given or out / "data"
        self.kept: dict[str, tuple[Replay, Replay, int]] = {}

    def __call__(self, data: str, config: Config) -> tuple[Replay, Replay, int]:
        """Records to train on, held-out records, and the number of actions."""
        if data not in self.kept:
            self.kept = {data: self._probe(data, config) if data else self._recorded(config)}
        return self.kept[data]

    def _probe(self, data: str, config: Config) -> tuple[Replay, Replay, int]:
        delay, size = int(data.removeprefix(PROBE)), config.envs.image_size
        train, held_out = (
            probe.probe_replay(delay, steps, size, seed)
            for seed, steps in ((0, self.scale.records), (1, (delay + 1) * self.scale.windows))
        )
        return train, held_out, probe.NUM_ACTIONS

    def _recorded(self, config: Config) -> tuple[Replay, Replay, int]:
        if not (self.folder / datasets.DATASET_FILE).is_file() and self.given is None:
            steps = self.scale.records
            config = dataclasses.replace(config, env=self.scale.env or config.env)
            _say(f"recording {steps:,} steps of {config.env}")
            played = datasets.record(config, steps, seed=0)
            facts = datasets.facts_of(config, "random", 0, steps)
            datasets.write_dataset(self.folder, played, facts)
        found, size = datasets.read_dataset(self.folder), config.envs.image_size
        if found.facts["image_shape"][0] != size:
            raise ConfigError(
                f"{self.folder} holds images {found.facts['image_shape']}, this scale's models see "
                f"{size} pixels: record with emerald-jax collect --image-size {size}"
            )
        self.env = found.facts["env"]
        return *datasets.split(found.replay, HELD_OUT), found.facts["num_actions"]


def _world(
    study: Study, scale: Scale, variant: Variant, seed: int, source: _Source
) -> dict[str, Any]:
    """Train a world model, measure it in every reading."""
    config = config_of(scale, variant)
    replay, held_out, num_actions = source(variant.data, config)
    world = worlds.train_world(config, replay, num_actions, updates=scale.updates, seed=seed)
    length = scale.context + scale.horizon
    if variant.data:
        length = int(variant.data.removeprefix(PROBE)) + 1
    windows = worlds.whole_windows(held_out, scale.windows, length, seed=0)
    readings = {}
    for label, changes in variant.readings.items():
        learner = world.learner._replace(config=change(config, changes))
        read = world._replace(learner=learner)
        if variant.data:
            values = measures.recall(read, windows, seed=seed)
        else:
            details = "tile_accuracy" in study.metrics and source.env == "crafter"
            values = _measured(read, windows, scale.context, seed, details)
        if study.timed:
            values["decode_us"] = measures.decoding_time(read)
        readings[label] = {name: np.round(x, 7).tolist() for name, x in values.items()}
    sizes = {n: sum(x.size for x in jax.tree.leaves(tree)) for n, tree in world.params.items()}
    per_update = round(world.seconds / scale.updates, 5)
    return {
        "readings": readings,
        "curve": world.curve,
        "parameters": {**sizes, "total": sum(sizes.values())},
        "seconds_per_update": per_update,
    }


def _measured(
    world: worlds.World, windows: Any, context: int, seed: int, details: bool
) -> dict[str, np.ndarray]:
    """:func:`measures.measure`, and the details of Crafter's pictures where they are asked for."""
    pictures = details and tiles.tile_size(windows.image.shape[2]) >= _SMALLEST_TILE
    values = measures.measure(world, windows, context, seed=seed, pictures=pictures)
    if pictures:
        recon = values.pop("recon")
        values |= tiles.details(windows.image[: len(recon)], recon)
    return values


def _agent(scale: Scale, variant: Variant, seed: int, out: Path) -> dict[str, Any]:
    """Train an agent, or finish its run; the score is that of its last training episodes."""
    logdir = out / "runs" / f"{_file_name(variant.label)}-{seed}"
    settings = {"seed": seed, "logdir": str(logdir), "log.quiet": True}
    train(change(config_of(scale, variant), settings))
    scores = [row["score"] for row in read_rows(logdir / EPISODES_FILE)]
    return {"readings": {"": {"score": scores[-_LAST_EPISODES:]}}, "episodes": len(scores)}


def _settings(scale: Scale, variant: Variant, seed: int) -> dict[str, Any]:
    """What decides a cell, as JSON reads it back."""
    asked = {
        "scale": dataclasses.asdict(scale),
        "variant": dataclasses.asdict(variant),
        "seed": seed,
    }
    return json.loads(json.dumps(asked))


def _file_name(label: str) -> str:
    return "".join(c if c.isalnum() else "_" for c in label)
