"""A study: variants, seeds and scales as cells that are each computed once.

A *cell* is one variant with one seed: a world model trained on a recorded data set and read in one
or more ways (with other decoding steps, for instance), or an agent trained in its environment. A
finished cell is a JSON file; a study that was stopped goes on with the cells that are missing.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from emerald_jax.config import ConfigError
from emerald_jax.envs.base import EnvError
from emerald_jax.replay.store import ReplayError
from emerald_jax.run.directory import EPISODES_FILE, read_rows
from emerald_jax.run.files import CheckpointError, write_atomic
from emerald_jax.run.machine import machine_line, prepare_jax
from emerald_jax.training.faults import RunError
from emerald_jax.training.loop import INTERRUPTED, train
from emerald_jax.training.signals import StoppedError
from emerald_jax.types import Batch
from experiments.study import measures, outcome, tiles, worlds
from experiments.study.outcome import TIMING_FILE, digits, row_label, write_results
from experiments.study.plan import PROBE, Scale, Study, Variant, change, config_of, updates_of
from experiments.study.worlds import Recorded, Source, kept_world

#: Training episodes that count as an agent's score.
_LAST_EPISODES = 100
#: Sizes of a scale that the command line can change.
_SIZES = ("seeds", "updates", "windows", "horizon")


def main(study: Study, words: Sequence[str] | None = None) -> int:
    """Run a study from the command line.

    Args:
        study: of the experiment file.
        words: of the command line; those of the process when None.

    Returns:
        The exit code: 0 done, 2 refused with one line on standard error, 130 interrupted, 75 when
        a signal stopped an agent's run. What is finished is kept, the same command goes on.
    """
    try:
        _run_words(study, words)
    except StoppedError:
        return INTERRUPTED
    except KeyboardInterrupt:
        sys.stderr.write(f"{study.name}: interrupted; the same command goes on\n")
        return 130
    except (ConfigError, EnvError, ReplayError, CheckpointError, RunError) as error:
        sys.stderr.write(f"{study.name}: {error}\n")
        return 2
    return 0


def _run_words(study: Study, words: Sequence[str] | None) -> None:
    parser = argparse.ArgumentParser(description=study.claim)
    parser.add_argument("--scale", choices=tuple(study.scales), default="smoke")
    parser.add_argument("--out", type=Path, default=None, help="results (runs/studies/NAME-SCALE)")
    parser.add_argument("--data", type=Path, default=None, help="a recorded data set to train on")
    parser.add_argument(
        "--worlds",
        type=Path,
        default=None,
        help="where trained models are kept, to share them between studies (OUT/worlds)",
    )
    for name in _SIZES:
        parser.add_argument(
            f"--{name}", type=int, default=None, help=f"other {name} than the scale's"
        )
    options = parser.parse_args(words)
    out = options.out or Path("runs/studies") / f"{study.name}-{options.scale}"
    given = {name: getattr(options, name) for name in _SIZES}
    given = {name: value for name, value in given.items() if value is not None}
    scale = dataclasses.replace(study.scales[options.scale], **given)
    prepare_jax()
    run(study, scale, out, options.data, options.worlds)


def run(
    study: Study, scale: Scale, out: Path, data: Path | None = None, kept: Path | None = None
) -> Path:
    """Compute the cells that are missing, then write table, figures and JSON.

    Args:
        study: what to compare.
        scale: how large.
        out: directory of the results.
        data: a data set to train on; None records one into ``out`` first.
        kept: where trained models are kept; None keeps them in ``out``.

    Returns:
        ``out``.

    Raises:
        ConfigError: a variant's settings cannot work, or ``out`` holds cells of other settings.
    """
    cells = [(v, seed) for v in study.variants(scale) for seed in range(scale.seeds)]
    for variant, _ in cells:
        config_of(scale, variant).validate()
    source, rows = Source(scale, out, data), []
    maker = _Maker(study, scale, source, out, kept or out / "worlds")
    for number, (variant, seed) in enumerate(cells, start=1):
        path = out / "cells" / f"{_file_name(variant.label)}-{seed}.json"
        asked = _settings(scale, variant, seed)
        found = json.loads(path.read_text()) if path.is_file() else None
        if found is not None and found["settings"] != asked:
            raise ConfigError(f"{path} is a cell of other settings: choose another --out")
        if found is None:
            _say(f"cell {number} of {len(cells)}: {variant.label or study.name}, seed {seed}")
            began = time.monotonic()
            measured = maker.agent(variant, seed) if variant.agent else maker.world(variant, seed)
            seconds = round(time.monotonic() - began, 1)
            found = {"settings": asked, "seconds": seconds, "machine": machine_line(), **measured}
            write_atomic(path, (json.dumps(found) + "\n").encode())
        rows.append((variant, found))
    maker.finish(study.variants(scale))
    _say(write_results(study, scale, rows, out))
    return out


def _say(text: str) -> None:
    """A line for whoever waits for the study."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


class _Maker:
    """What computes the cells of one study."""

    def __init__(self, study: Study, scale: Scale, source: Source, out: Path, kept: Path) -> None:
        self.study, self.scale, self.source = study, scale, source
        self.out, self.kept = out, kept

    def world(self, variant: Variant, seed: int) -> dict[str, Any]:
        """Train a world model, measure it in every reading."""
        config, updates = config_of(self.scale, variant), updates_of(self.scale, variant)
        recorded = self.source(variant.data, config)
        world = kept_world(self.kept, config, recorded, updates=updates, seed=seed)
        windows = self._windows(variant, recorded)
        readings = {}
        for label, changes in variant.readings.items():
            read = world._replace(learner=world.learner._replace(config=change(config, changes)))
            if variant.data:
                values = measures.recall(read, windows, seed=seed)
            else:
                details = "tile_accuracy" in self.study.metrics and recorded.env == "crafter"
                values = _measured(read, windows, self.scale.context, seed, details)
            readings[label] = {name: digits(x) for name, x in values.items()}
        sizes = {n: sum(x.size for x in jax.tree.leaves(tree)) for n, tree in world.params.items()}
        return {
            "data": recorded.env,
            "readings": readings,
            "curve": world.curve,
            "parameters": {**sizes, "total": sum(sizes.values())},
            "updates": updates,
            "seconds_per_update": round(world.seconds / updates, 5),
            # Of the training, which may have been another study's.
            "machine": world.machine or machine_line(),
        }

    def finish(self, variants: Sequence[Variant]) -> None:
        """Draw what the first seed's models dream and time decoding, unless it has been done."""
        variants = [v for v in variants if not (v.agent or v.data)]
        names = {v.label: _file_name(v.label) for v in variants}
        missing = [v for v in variants if not outcome.strip_file(self.out, names[v.label]).exists()]
        timing = self.study.timed and not (self.out / TIMING_FILE).is_file()
        readers = {}
        for variant in variants if timing else missing:
            config, updates = config_of(self.scale, variant), updates_of(self.scale, variant)
            recorded = self.source(variant.data, config)
            world = kept_world(self.kept, config, recorded, updates=updates, seed=0)
            if variant in missing:
                windows = self._windows(variant, recorded)
                outcome.draw(world, windows, self.scale.context, self.out, names[variant.label])
            for label, changes in variant.readings.items():
                learner = world.learner._replace(config=change(config, changes))
                readers[row_label(variant.label, label)] = world._replace(learner=learner)
        if timing:
            times = {k: digits(x) for k, x in measures.decoding_times(readers).items()}
            content = {"decode_us": times, "machine": machine_line()}
            write_atomic(self.out / TIMING_FILE, (json.dumps(content) + "\n").encode())

    def _windows(self, variant: Variant, recorded: Recorded) -> Batch:
        """Held-out windows: the same for all variants and seeds."""
        length = self.scale.context + self.scale.horizon
        if variant.data:
            length = int(variant.data.removeprefix(PROBE)) + 1
        return worlds.whole_windows(recorded.held_out, self.scale.windows, length, seed=0)

    def agent(self, variant: Variant, seed: int) -> dict[str, Any]:
        """Train an agent, or finish its run, and read the returns of its training episodes.

        ``score`` are those of the last ones; ``score_over_run`` the means of equal parts of all,
        which tells the quicker of two agents that end alike.

        Raises:
            RunError: no episode ended.
            StoppedError: a signal cut the run short.
        """
        logdir = self.out / "runs" / f"{_file_name(variant.label)}-{seed}"
        settings = {"seed": seed, "logdir": str(logdir), "log.quiet": True}
        result = train(change(config_of(self.scale, variant), settings))
        if result.exit_code:
            raise StoppedError(result.stopped)
        scores = [row["score"] for row in read_rows(logdir / EPISODES_FILE)]
        if not scores:
            raise RunError(f"no episode of {logdir} has ended: train its agent for longer")
        parts = np.array_split(scores, min(_LAST_EPISODES, len(scores)))
        whole = digits(np.array([part.mean() for part in parts]))
        found = {"score": scores[-_LAST_EPISODES:], "score_over_run": whole}
        return {"readings": {"": found}, "episodes": len(scores)}


def _measured(
    world: worlds.World, windows: Any, context: int, seed: int, details: bool
) -> dict[str, np.ndarray]:
    """:func:`measures.measure`, and the details of Crafter's pictures where they are asked for."""
    pictures = details and tiles.tile_size(windows.image.shape[2]) >= tiles.SMALLEST_TILE
    values = measures.measure(world, windows, context, seed=seed, pictures=pictures)
    if pictures:
        recon = values.pop("recon")
        values |= tiles.details(windows.image[: len(recon)], recon)
    return values


def _settings(scale: Scale, variant: Variant, seed: int) -> dict[str, Any]:
    """What decides a cell, as JSON reads it back.

    How many seeds there are does not: more can be asked for later.
    """
    sizes = dataclasses.asdict(scale)
    del sizes["seeds"]
    asked = {
        "scale": sizes,
        "variant": dataclasses.asdict(variant),
        "seed": seed,
    }
    return json.loads(json.dumps(asked))


def _file_name(label: str) -> str:
    return "".join(c if c.isalnum() else "_" for c in label)
