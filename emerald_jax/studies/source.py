"""The recorded play that a study trains on, and the world models that it has trained."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from emerald_jax import __version__
from emerald_jax.config import Config, ConfigError
from emerald_jax.replay import Replay
from emerald_jax.studies import datasets, probe, worlds
from emerald_jax.studies.plan import PROBE, Scale
from emerald_jax.studies.results import machine
from emerald_jax.training.state import build_learner
from emerald_jax.types import Params

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
        if not (self.folder / datasets.DATASET_FILE).is_file() and self.given is None:
            steps = self.scale.records
            config = dataclasses.replace(config, env=self.scale.env or config.env)
            played = datasets.record(config, steps, seed=0)
            facts = datasets.facts_of(config, "random", 0, steps)
            datasets.write_dataset(self.folder, played, facts)
        found, size = datasets.read_dataset(self.folder), config.envs.image_size
        if found.facts["image_shape"][0] != size:
            raise ConfigError(
                f"{self.folder} holds images {found.facts['image_shape']}, this scale's models see "
                f"{size} pixels: record with emerald-jax collect --image-size {size}"
            )
        train, held_out = datasets.split(found.replay, HELD_OUT)
        digest = hashlib.sha256((self.folder / datasets.DATASET_FILE).read_bytes()).hexdigest()
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
    arguments, trained_by = (config, recorded.train, recorded.num_actions), machine()
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
