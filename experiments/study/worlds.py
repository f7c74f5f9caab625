"""World models trained on recorded play alone: no actor, no critic, no environment.

The recorded play that a study trains on, and the world models that it has trained.
"""

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

from emerald_jax import __version__
from emerald_jax.agent.state import Learner, build_learner, init_carry
from emerald_jax.config import Config, ConfigError
from emerald_jax.models.world_model import init_world_model
from emerald_jax.replay import Replay, ReplayError, make_sampler
from emerald_jax.run.machine import compile_program, machine_line
from emerald_jax.training import collect
from emerald_jax.training.devices import put_index
from emerald_jax.training.faults import RunError
from emerald_jax.training.update import model_gradient
from emerald_jax.types import Array, Batch, Carry, Key, Params
from experiments.study import probe, worlds
from experiments.study.plan import PROBE, Scale

#: Points of a training curve.
_POINTS = 40


class World(NamedTuple):
    """A trained world model.

    Attributes:
        learner: its networks and settings.
        params: the world model's parameters.
        curve: ``[update, metrics]`` rows along the training, metrics by name.
        seconds: wall time of the updates, compiling excluded.
        machine: where and with which code it was trained; empty where nobody noted it.
    """

    learner: Learner
    params: Params
    curve: list[list[Any]]
    seconds: float
    machine: str = ""


def train_world(
    config: Config, replay: Replay, num_actions: int, *, updates: int, seed: int
) -> World:
    """Take gradient steps on the world-model loss, as a run does, on batches of recorded play.

    Args:
        config: networks, loss, optimiser and sampler.
        replay: what batches are drawn from.
        num_actions: A.
        updates: gradient steps.
        seed: of parameters, batches and sampled latents.

    Raises:
        RunError: the loss is not finite.
        ReplayError: the replay holds too little.
    """
    learner, batch_size = build_learner(config, num_actions), config.replay.batch
    init_key, base = jax.random.split(jax.random.key(seed))
    params = jax.jit(fresh_params(learner))(init_key)
    opt_state = jax.jit(learner.optimizers["world_model"].init)(params)
    carry = init_carry(learner, batch_size)
    sampler = make_sampler(
        config.replay.sampler, replay, batch_size, config.replay.length, config.seed + seed
    )
    batch = sampler.sample()
    lowered = jax.jit(partial(_update, learner=learner), donate_argnums=(0, 1, 2)).lower(
        params, opt_state, carry, batch, base, put_index(0)
    )
    step, curve, every = compile_program(lowered), [], max(1, updates // _POINTS)
    began = time.monotonic()
    for number in range(updates):
        arguments = (carry, batch, base, put_index(number))
        params, opt_state, carry, metrics = step(params, opt_state, *arguments)
        batch = sampler.sample()
        if (number + 1) % every == 0 or number + 1 == updates:
            values = {name: float(x) for name, x in jax.device_get(metrics).items()}
            if not np.isfinite(values["loss/model"]):
                raise RunError(f"the world model's loss is not finite after {number + 1} updates")
            curve.append([number + 1, values])
    jax.block_until_ready(params)
    return World(learner, params, curve, time.monotonic() - began)


def fresh_params(learner: Learner) -> Callable[[Key], Params]:
    """What makes a world model's untrained parameters of a key."""
    return partial(init_world_model, learner.model)


def _update(
    params: Params,
    opt_state: Any,
    carry: Carry,
    batch: Batch,
    base: Key,
    index: Array,
    *,
    learner: Learner,
) -> tuple[Params, Any, Carry, dict[str, Array]]:
    """One gradient step of the world model; the carry goes on to the next batch."""
    keys = jax.random.split(jax.random.fold_in(base, index), batch.action.shape[0])
    batch = batch._replace(carry=carry)
    grads, (passed, metrics) = model_gradient(params, batch, keys, learner)
    updates, opt_state = learner.optimizers["world_model"].update(grads, opt_state, params)
    return optax.apply_updates(params, updates), opt_state, passed.carry, metrics


def whole_windows(replay: Replay, count: int, length: int, seed: int) -> Batch:
    """Windows that lie within one episode each, drawn uniformly among all such windows.

    Args:
        replay: what is drawn from.
        count: windows W.
        length: records T of each.
        seed: decides the draw.

    Returns:
        :class:`Batch` `[W, T]` of numpy arrays, without carry.

    Raises:
        ReplayError: episodes are shorter than that.
    """
    sampler = make_sampler("windows", replay, 4 * count, length, seed)
    kept: list[Batch] = []
    found = 0
    for _ in range(50):
        batch = sampler.sample()
        inside = ~batch.reset[:, 1:].any(axis=1)
        kept.append(Batch(*(x[inside] for x in batch[:-1])))
        found += int(inside.sum())
        if found >= count:
            return Batch(
                *(np.concatenate(x)[:count] for x in zip(*(b[:-1] for b in kept), strict=True))
            )
    raise ReplayError(
        f"the recorded episodes hold too few windows of {length} steps: record longer ones, or "
        "shorten context and horizon"
    )


#: Share of a data set's rows that no model is trained on.
HELD_OUT = 0.2


class Recorded(NamedTuple):
    """Recorded play of one kind.

    Attributes:
        train: records to train on.
        held_out: records that no model is trained on.
        num_actions: A.
        env: what was played.
        digest: tells the bytes from those of other recordings.
    """

    train: Replay
    held_out: Replay
    num_actions: int
    env: str
    digest: str


class Source:
    """The recorded play of a study, recorded when it is first asked for."""

    def __init__(self, scale: Scale, out: Path, given: Path | None) -> None:
        """Nothing is read or recorded yet.

        Args:
            scale: how much is recorded.
            out: where a recording is kept.
            given: a data set to read instead.
        """
        self.scale, self.given = scale, given
        self.folder = given or out / "data"
        self.kept: dict[str, Recorded] = {}

    def __call__(self, data: str, config: Config) -> Recorded:
        """The play that a variant's ``data`` names, at the configuration's image size."""
        if data not in self.kept:
            self.kept = {data: self._probe(data, config) if data else self._recorded(config)}
        return self.kept[data]

    def _probe(self, data: str, config: Config) -> Recorded:
        delay, size = int(data.removeprefix(PROBE)), config.envs.image_size
        steps = (self.scale.records, (delay + 1) * self.scale.windows)
        train, held_out = (
            probe.probe_replay(delay, count, size, seed) for seed, count in enumerate(steps)
        )
        return Recorded(train, held_out, probe.NUM_ACTIONS, data, f"{data}, {steps[0]}")

    def _recorded(self, config: Config) -> Recorded:
        if not (self.folder / collect.DATASET_FILE).is_file() and self.given is None:
            steps = self.scale.records
            config = dataclasses.replace(config, env=self.scale.env or config.env)
            played = collect.record(config, steps, seed=0)
            facts = collect.facts_of(config, "random", 0, steps)
            collect.write_dataset(self.folder, played, facts)
        found, size = collect.read_dataset(self.folder), config.envs.image_size
        if found.facts["image_shape"][0] != size:
            raise ConfigError(
                f"{self.folder} holds images {found.facts['image_shape']}, this scale's models see "
                f"{size} pixels: record with emerald-jax collect --image-size {size}"
            )
        train, held_out = collect.split(found.replay, HELD_OUT)
        digest = hashlib.sha256((self.folder / collect.DATASET_FILE).read_bytes()).hexdigest()
        return Recorded(train, held_out, found.facts["num_actions"], found.facts["env"], digest)


def kept_world(
    folder: Path, config: Config, recorded: Recorded, *, updates: int, seed: int
) -> worlds.World:
    """A trained world model: read back where the same one has been trained before.

    Several studies ask for the same model; with one ``folder`` for all it is trained once. The
    file's name is a digest of everything that decides it but the code: after a change of the code,
    choose another folder.

    Args:
        folder: where models are kept, one ``.npz`` each.
        config: networks, loss, optimiser and sampler.
        recorded: what it is trained on.
        updates: gradient steps.
        seed: of parameters, batches and sampled latents.
    """
    asked = [config.to_dict(), recorded.digest, updates, seed, __version__]
    digest = hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()[:20]
    path = folder / f"{digest}.npz"
    if path.is_file():
        return _read_world(path, config, recorded.num_actions)
    arguments, trained_by = (config, recorded.train, recorded.num_actions), machine_line()
    world = worlds.train_world(*arguments, updates=updates, seed=seed)._replace(machine=trained_by)
    leaves = {name: np.asarray(x) for name, x in _named(world.params).items()}
    facts = {"curve": world.curve, "seconds": world.seconds, "machine": world.machine}
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / f"{digest}.part").open("wb") as file:
        np.savez(file, **leaves, facts=np.array(json.dumps(facts)))
    (folder / f"{digest}.part").rename(path)
    return world


def _read_world(path: Path, config: Config, num_actions: int) -> worlds.World:
    """The inverse of what :func:`kept_world` writes."""
    learner = build_learner(config, num_actions)
    shapes = jax.eval_shape(worlds.fresh_params(learner), jax.random.key(0))
    with np.load(path, allow_pickle=False) as found:
        facts = json.loads(str(found["facts"]))
        params = jax.tree_util.tree_map_with_path(
            lambda place, _: jax.numpy.asarray(found[jax.tree_util.keystr(place)]), shapes
        )
    told = facts.get("machine", "")
    return worlds.World(learner, params, facts["curve"], facts["seconds"], told)


def _named(params: Params) -> dict[str, jax.Array]:
    """Leaves of a tree by their place in it."""
    leaves = jax.tree_util.tree_flatten_with_path(params)[0]
    return {jax.tree_util.keystr(place): leaf for place, leaf in leaves}
