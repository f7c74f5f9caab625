"""Recorded play, and world models trained on it alone: no actor, no critic, no environment."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import optax

from benchmarks.suite.machine import machine_line
from emerald_jax import __version__
from emerald_jax.actions import ActionSpace
from emerald_jax.agent.state import Learner, RunError, build_learner, init_carry
from emerald_jax.config import Config, ConfigError
from emerald_jax.models.vision import learn_center
from emerald_jax.models.world_model import init_world_model
from emerald_jax.replay import COLUMNS, Replay, ReplayError, make_sampler
from emerald_jax.run import recordings
from emerald_jax.run.machine import compile_program
from emerald_jax.run.weights import read_weights, write_weights
from emerald_jax.training import evaluate
from emerald_jax.training.update import model_gradient
from emerald_jax.types import Batch, Carry, Key, Params
from experiments.study import probe
from experiments.study.plan import PROBE, Scale

#: Points of a training curve.
_POINTS = 40
#: Share of a data set's rows that no model is trained on.
HELD_OUT = 0.2
#: Batches that are searched for windows within one episode.
_TRIES = 50


class Recorded(NamedTuple):
    """Recorded play: records to train on and others to measure on, and their origin."""

    train: Replay
    held_out: Replay
    actions: ActionSpace
    env: str
    digest: str


class World(NamedTuple):
    """A trained world model."""

    learner: Learner
    params: Params  # the world model's
    curve: list[list[Any]]  # [update, metrics by name] along the training
    seconds: float  # wall time of the updates, without compilation
    machine: str = ""  # hardware and commit of the training; empty where unknown


def recorded_play(scale: Scale, config: Config, folder: Path, *, record: bool) -> Recorded:
    """Read the data set ``folder``; with ``record``, play at random first if there is none.

    ConfigError where its images have another size than the model's.
    """
    manifest, size = folder / recordings.DATASET_FILE, config.envs.image_size
    if record and not manifest.is_file():
        config = dataclasses.replace(config, env=scale.env or config.env)
        played = evaluate.record(config, scale.records, seed=0)
        facts = evaluate.facts_of(config, "random", 0, scale.records)
        recordings.write_dataset(folder, played, facts)
    found = recordings.read_dataset(folder)
    facts = found.facts
    if facts["image_shape"][0] != size:
        held = f"{folder} holds images {facts['image_shape']}"
        raise ConfigError(f"{held}: record with emerald-jax collect --image-size {size}")
    train, held_out = split(found.replay, HELD_OUT)
    digest = hashlib.sha256(manifest.read_bytes()).hexdigest()
    actions = ActionSpace(found.replay.action_sizes or (facts["num_actions"],))
    return Recorded(train, held_out, actions, facts["env"], digest)


def split(replay: Replay, held_out: float) -> tuple[Replay, Replay]:
    """The older rows to train on, and the newest ``held_out`` in (0, 1) of them to test on."""
    rows = replay.written - replay.oldest
    border = replay.oldest + max(1, min(rows - 1, round((1 - held_out) * rows)))
    return _rows(replay, replay.oldest, border), _rows(replay, border, replay.written)


def _rows(replay: Replay, start: int, stop: int) -> Replay:
    shapes = (replay.image_shape, replay.action_sizes)
    part = Replay((stop - start) * replay.num_envs, replay.num_envs, *shapes)
    index = np.arange(start, stop) % replay.rows
    for name in COLUMNS:
        part.columns[name][:] = replay.columns[name][index]
    part.restore(written=stop - start, oldest=0, holes=())
    return part


def probe_play(scale: Scale, config: Config, data: str) -> Recorded:
    """Episodes of the memory probe; ``data`` is ``probe:K``."""
    delay, size = int(data.removeprefix(PROBE)), config.envs.image_size
    steps = (scale.records, (delay + 1) * scale.windows)
    train, held_out = (probe.probe_replay(delay, n, size, seed) for seed, n in enumerate(steps))
    return Recorded(train, held_out, ActionSpace((probe.NUM_ACTIONS,)), data, f"{data}, {steps[0]}")


def whole_windows(replay: Replay, count: int, length: int, seed: int) -> Batch:
    """Draw ``count`` windows `[W, T]` of ``length`` records, uniformly among those in one episode.

    Numpy arrays without carry; ReplayError where too few episodes are that long.
    """
    sampler = make_sampler("windows", replay, 4 * count, length, seed)
    kept: list[Batch] = []
    for _ in range(_TRIES):
        batch = sampler.sample()
        inside = ~batch.reset[:, 1:].any(axis=1)
        kept.append(jax.tree.map(lambda x, inside=inside: x[inside], batch))
        if sum(len(part.action) for part in kept) >= count:
            return jax.tree.map(lambda *x: np.concatenate(x)[:count], *kept)
    raise ReplayError(f"too few recorded windows of {length} steps: shorten context and horizon")


def train_world(
    config: Config,
    replay: Replay,
    actions: ActionSpace | int,
    *,
    updates: int,
    seed: int,
    every: int = 0,
    stop: Callable[[int, dict[str, float]], bool] = lambda number, metrics: False,
) -> World:
    """Take at most ``updates`` gradient steps on the world-model loss, on recorded play.

    The curve has a row every so many updates (0: forty rows); ``stop`` is called with each row and
    ends the training by True. RunError where the loss is not finite.
    """
    learner, size = build_learner(config, actions), config.replay
    init_key, base = jax.random.split(jax.random.key(seed))
    params = jax.jit(partial(init_world_model, learner.model))(init_key)
    opt_state = jax.jit(learner.optimizers["world_model"].init)(params)
    carry = init_carry(learner, size.batch)
    sampler = make_sampler(size.sampler, replay, size.batch, size.length, config.seed + seed)

    @partial(jax.jit, donate_argnums=(0, 1, 2))
    def update(params: Params, opt_state: Any, carry: Carry, batch: Batch, key: Key) -> tuple:
        keys = jax.random.split(key, size.batch)
        batch = batch._replace(carry=carry)
        grads, (passed, metrics) = model_gradient(params, batch, keys, learner)
        change, opt_state = learner.optimizers["world_model"].update(grads, opt_state, params)
        params = optax.apply_updates(params, change)
        if config.model.center:
            params |= {"center": learn_center(params["center"], batch.image, None)}
        return params, opt_state, passed.carry, metrics

    batch = sampler.sample()
    step = compile_program(update.lower(params, opt_state, carry, batch, base))
    curve, every = [], every or max(1, updates // _POINTS)
    began = time.monotonic()
    for number in range(1, updates + 1):
        key = jax.random.fold_in(base, number - 1)
        params, opt_state, carry, metrics = step(params, opt_state, carry, batch, key)
        batch = sampler.sample()
        if number % every and number < updates:
            continue
        values = {name: float(x) for name, x in jax.device_get(metrics).items()}
        if not np.isfinite(values["loss/model"]):
            raise RunError(f"the world model's loss is not finite after {number} updates")
        curve.append([number, values])
        if stop(number, values):
            break
    jax.block_until_ready(params)
    return World(learner, params, curve, time.monotonic() - began)


def kept_world(
    folder: Path, config: Config, recorded: Recorded, *, updates: int, seed: int
) -> World:
    """A trained world model, loaded if ``folder`` has an export of the same one.

    Several studies use the same model. The name of its export is a digest of everything that
    decides it except the code: after a change of the code, choose another folder.
    """
    asked = [config.to_dict(), recorded.digest, updates, seed, __version__]
    path = folder / hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()[:20]
    names, actions = World._fields[2:], recorded.actions
    if path.is_dir():
        learner = build_learner(config, actions)
        params, _, found = read_weights(path, learner, groups=("world_model",))
        return World(learner, params["world_model"], *(found[name] for name in names))
    trained_by = machine_line()  # before the training, whose code may change meanwhile
    world = train_world(config, recorded.train, actions, updates=updates, seed=seed)
    world = world._replace(machine=trained_by)
    metadata = dict(zip(names, world[2:], strict=True))
    write_weights(path, {"world_model": world.params}, config, {"step": updates, **metadata})
    return world
