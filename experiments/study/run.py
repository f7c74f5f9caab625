"""Run a study: every variant with every seed is a cell, and each cell is computed once.

A cell is a world model, trained on recorded play and measured in one or more readings (with other
decoding steps, for instance), or an agent, trained in its environment. A finished cell is a JSON
file; a study that was stopped resumes with the missing cells.
"""

from __future__ import annotations

import dataclasses
import json
import sys
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np

from benchmarks.suite.machine import machine_line
from emerald_jax.agent.dream import open_loop, read
from emerald_jax.agent.state import RunError, init_carry
from emerald_jax.cli import guarded
from emerald_jax.commands import Parser, number
from emerald_jax.config import ConfigError
from emerald_jax.look.figures import decoding_strip, png_of
from emerald_jax.look.inspect import decoding_trace
from emerald_jax.process import StoppedError
from emerald_jax.run.directory import EPISODES_FILE, read_rows, write_atomic, write_json
from emerald_jax.run.machine import prepare_jax
from emerald_jax.run.pictures import report_strip
from emerald_jax.training.train import INTERRUPTED, train
from emerald_jax.types import Batch, Before
from experiments.study import measures, tiles, worlds
from experiments.study.plan import PROBE, Scale, Study, Variant, change, config_of
from experiments.study.results import TIMING_FILE, digits, write_results
from experiments.study.worlds import Recorded, World

#: Training episodes that count as an agent's score.
_LAST_EPISODES = 100
#: Sizes of a scale that the command line can change.
_SIZES = ("seeds", "updates", "windows", "horizon")
#: Samples of each latent where pairs of tokens are measured.
_DRAWS = 4
#: Sequences and frames of a strip.
_SEQUENCES, _FRAMES = 2, 24


def main(study: Study, arguments: Sequence[str] | None = None) -> int:
    """Run the study of an experiment file from the command line; None takes the process's.

    Returns:
        The exit code: 0 done, 2 refused with one line on standard error, 130 interrupted, 75 when
        a signal stopped an agent's run. Finished cells are kept; the same command resumes.
    """

    def command(words: list[str]) -> int:
        parser = Parser(study.name, f"python -m experiments.{study.name}", study.claim)
        parser.description = f"{study.claim} The same command resumes a study that was stopped."
        add = parser.add_argument
        add("--scale", choices=tuple(study.scales), default="smoke")
        add("--out", type=Path, help="results (default: runs/studies/NAME-SCALE)")
        add("--data", type=Path, help="a recorded data set to train on")
        add("--worlds", type=Path, help="shared folder of trained models (default: OUT/worlds)")
        for name in _SIZES:
            add(f"--{name}", type=number(1), help=f"replaces the scale's {name}")
        options = parser.parse_args(words)
        out = options.out or Path("runs/studies") / f"{study.name}-{options.scale}"
        sizes = {name: value for name in _SIZES if (value := getattr(options, name))}
        scale = dataclasses.replace(study.scales[options.scale], **sizes)
        prepare_jax()
        try:
            run(study, scale, out, options.data, options.worlds)
        except StoppedError:
            return INTERRUPTED
        return 0

    return guarded(command, list(sys.argv[1:] if arguments is None else arguments))


def run(
    study: Study, scale: Scale, out: Path, data: Path | None = None, kept: Path | None = None
) -> Path:
    """Compute the missing cells, then write the page, its figures and ``result.json``.

    Args:
        study: the comparison.
        scale: its size.
        out: directory of the results; it is returned.
        data: a data set to train on; None records one into ``out`` first.
        kept: folder of trained models; None keeps them in ``out``.

    Raises:
        ConfigError: a variant's settings are invalid, or ``out`` holds cells of other settings.
    """
    variants, rows = study.variants(scale), []
    cells = [(variant, seed) for variant in variants for seed in range(scale.seeds)]
    for variant in variants:
        config_of(scale, variant).validate()
    work = Work(study, scale, out, data, kept or out / "worlds")
    sizes = dataclasses.asdict(scale)
    del sizes["seeds"]  # it may grow later
    for turn, (variant, seed) in enumerate(cells, start=1):
        path = out / "cells" / f"{_file_name(variant.label)}-{seed}.json"
        settings = {"scale": sizes, "variant": dataclasses.asdict(variant), "seed": seed}
        settings = json.loads(json.dumps(settings))
        if not path.is_file():
            label = variant.label or study.name
            print(f"cell {turn} of {len(cells)}: {label}, seed {seed}", flush=True)
            began = time.monotonic()
            measured = work.agent(variant, seed) if variant.agent else work.world(variant, seed)
            seconds = round(time.monotonic() - began, 1)
            cell = {"settings": settings, "seconds": seconds, "machine": machine_line()}
            write_atomic(path, f"{json.dumps(cell | measured)}\n".encode())
        found = json.loads(path.read_text())
        if found["settings"] != settings:
            raise ConfigError(f"{path} is a cell of other settings: choose another --out")
        rows.append((variant, found))
    work.finish(variants)
    print(write_results(study, scale, rows, out).read_text(), flush=True)
    return out


@dataclasses.dataclass
class Work:
    """Computes the cells of one study, and its pictures; fields as :func:`run` has them."""

    study: Study
    scale: Scale
    out: Path
    data: Path | None
    kept: Path
    _recorded: dict[str, Recorded] = dataclasses.field(default_factory=dict)

    def recorded(self, variant: Variant) -> Recorded:
        """The recorded play of a variant; only the newest kind stays in memory."""
        if variant.data not in self._recorded:
            config = config_of(self.scale, variant)
            if variant.data:
                found = worlds.probe_play(self.scale, config, variant.data)
            else:
                folder, record = self.data or self.out / "data", self.data is None
                found = worlds.recorded_play(self.scale, config, folder, record=record)
            self._recorded = {variant.data: found}
        return self._recorded[variant.data]

    def trained(self, variant: Variant, seed: int) -> World:
        """The trained world model of a variant."""
        asked = (config_of(self.scale, variant), self.recorded(variant))
        updates = variant.updates or self.scale.updates
        return worlds.kept_world(self.kept, *asked, updates=updates, seed=seed)

    def windows(self, variant: Variant) -> Batch:
        """Held-out windows: the same for all variants and seeds."""
        delay, held_out = variant.data.removeprefix(PROBE), self.recorded(variant).held_out
        length = int(delay) + 1 if delay else self.scale.context + self.scale.horizon
        return worlds.whole_windows(held_out, self.scale.windows, length, seed=0)

    def world(self, variant: Variant, seed: int) -> dict[str, Any]:
        """Train a world model and measure it in every reading."""
        world, windows = self.trained(variant, seed), self.windows(variant)
        env, readings = self.recorded(variant).env, {}
        large = tiles.tile_size(windows.image.shape[2]) >= tiles.SMALLEST_TILE
        pictures = large and env == "crafter" and "tile_accuracy" in self.study.metrics
        draws = _DRAWS if "pair_score" in self.study.metrics else 1
        for label, reading in _readings(world, variant):
            if variant.data:
                values = measures.recall(reading, windows, seed=seed)
            else:
                context = self.scale.context
                options = {"seed": seed, "pictures": pictures, "draws": draws}
                values = measures.measure(reading, windows, context, **options)
            if pictures:
                recon = values.pop("recon")
                values |= tiles.details(windows.image[: len(recon)], recon)
            readings[label] = {name: digits(x) for name, x in values.items()}
        sizes = {n: sum(x.size for x in jax.tree.leaves(tree)) for n, tree in world.params.items()}
        updates = variant.updates or self.scale.updates
        return {
            "data": env,
            "readings": readings,
            "curve": world.curve,
            "parameters": {**sizes, "total": sum(sizes.values())},
            "updates": updates,
            "seconds_per_update": round(world.seconds / updates, 5),
            # The training's, which another study may have done.
            "machine": world.machine or machine_line(),
        }

    def finish(self, variants: Sequence[Variant]) -> None:
        """Draw dreams of the first seed's models and time their decoding, where still missing."""
        timing_file, found = self.out / TIMING_FILE, {}
        timed = "decode_us" in self.study.metrics and not timing_file.is_file()
        for variant in variants:
            name = f"strip-{_file_name(variant.label)}".rstrip("-")
            path = self.out / f"{name}.png"
            if variant.agent or variant.data or (path.exists() and not timed):
                continue
            world = self.trained(variant, seed=0)
            if not path.exists():
                draw(world, self.windows(variant), self.scale.context, path)
            found |= {f"{variant.label} {k}".strip(): w for k, w in _readings(world, variant)}
        if timed:
            times = {k: digits(x) for k, x in measures.decoding_times(found).items()}
            write_json(timing_file, {"decode_us": times, "machine": machine_line()})

    def agent(self, variant: Variant, seed: int) -> dict[str, Any]:
        """Train an agent, or resume its run, and read the returns of its training episodes.

        ``score`` has the returns of the last ones; ``score_over_run`` the means of equal parts of
        all of them, which distinguishes the faster of two agents with the same end.
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
        over_run = digits(np.array([part.mean() for part in parts]))
        found = {"score": scores[-_LAST_EPISODES:], "score_over_run": over_run}
        return {"readings": {"": found}, "episodes": len(scores)}


def _readings(world: World, variant: Variant) -> list[tuple[str, World]]:
    """The trained model with the settings of every reading."""
    learner = world.learner
    return [
        (label, world._replace(learner=learner._replace(config=change(learner.config, changes))))
        for label, changes in variant.readings.items()
    ]


def draw(world: World, windows: Batch, context: int, path: Path) -> None:
    """Draw dreams next to reality after ``context`` frames of ``windows`` `[W, T]`.

    ``path`` is ``strip-NAME.png``; next to it, ``decoding-NAME.png`` is how a MaskGIT decodes the
    first imagined latent of the first sequence.
    """
    learner, params, key = world.learner, {"world_model": world.params}, jax.random.key(0)
    count, length = min(_SEQUENCES, len(windows.action)), min(_FRAMES, windows.action.shape[1])
    part = jax.tree.map(lambda x: x[:count, :length], windows._replace(carry=None))
    part = part._replace(carry=init_carry(learner, count))
    dream = jax.jit(partial(open_loop, learner=learner, context=context))
    seen = jax.device_get(dream(params, part, jax.random.split(key, count)))
    recon, dreamt = (np.round(255 * x).astype(np.uint8) for x in (seen.recon, seen.dream))
    write_atomic(path, png_of(report_strip(part.image, recon, dreamt, context)))
    model, steps = learner.config.model, learner.config.behavior.decode_steps
    if model.prior == "maskgit" and model.positions > 1:
        sequence = (part.image[0, : context + 1, None], part.action[0, : context + 1, None])
        _, states = jax.jit(partial(read, learner=learner))(params, *sequence, key)
        trace = jax.jit(partial(decoding_trace, learner=learner, steps=steps))
        before = Before(states.z[-2, 0], part.action[0, context])
        made = jax.device_get(trace(params, states.h[-1, 0], before, key))
        masked, sure = (
            x.astype(np.float32).mean(-1).reshape(steps, model.grid, model.grid)
            for x in (made.masked, made.confidence)
        )
        strip = decoding_strip(made.frame, masked, sure, part.image[0, context])
        write_atomic(path.with_name(path.name.replace("strip", "decoding", 1)), png_of(strip))


def _file_name(label: str) -> str:
    return "".join(c if c.isalnum() else "_" for c in label)
