"""Several seeds computed together: each must be the run that it would be alone."""

from __future__ import annotations

import dataclasses
import json
import shutil
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from emerald_jax import cli
from emerald_jax.agent.state import RunError
from emerald_jax.config import Config, ConfigError
from emerald_jax.envs.base import EnvError
from emerald_jax.envs.registry import spec_of
from emerald_jax.presets import get_preset
from emerald_jax.replay import Replay, store
from emerald_jax.replay.store import ReplayError
from emerald_jax.run.directory import CheckpointError, RunLock
from emerald_jax.run.weights import load
from emerald_jax.training import loop, seeds
from emerald_jax.training import train as training
from emerald_jax.training.seeds import Group
from emerald_jax.training.train import configs_of, train, train_seeds
from emerald_jax.training.update import train_step
from emerald_jax.types import key_of
from tests.model_cases import BATCH, compiled, make_batch, make_state, small_learner

STEPS, HALF = 160, 112


def tiny(logdir: Path, **changes: Any) -> Config:
    config = get_preset("tiny")
    log = dataclasses.replace(config.log, every=5, pictures=10, quiet=True, eval_episodes=4)
    behavior = dataclasses.replace(config.behavior, detours=0.3, real_weight=0.5)
    settings = {"seed": 5, "steps": STEPS, "log": log, "behavior": behavior, **changes}
    return dataclasses.replace(config, logdir=str(logdir), **settings)


def rows(logdir: Path, name: str) -> list[dict[str, Any]]:
    """Rows of a log without what depends on the clock."""
    found = [json.loads(line) for line in (logdir / name).read_text().splitlines()]
    return [
        {k: v for k, v in row.items() if k != "time" and not k.startswith("speed/")}
        for row in found
    ]


@pytest.fixture(scope="module", autouse=True)
def programs_are_shared() -> Iterator[None]:
    """Compile once for all groups of this file whose programs are the same."""
    plain, compiled = Group.compile, {}

    def compile_once(self: Group, signals: Any) -> None:
        key = (len(self.devices), self._each)
        if key in compiled:
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(self, "_traces", lambda: {n: partial(str, n) for n in compiled[key]})
                patch.setattr(seeds, "compile_program", lambda name, often: compiled[key][name])
                plain(self, signals)
        else:
            plain(self, signals)
            compiled[key] = self.programs

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Group, "compile", compile_once)
        yield


@pytest.fixture(scope="module")
def group(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Run directories of two seeds that were never interrupted."""
    results = train_seeds(tiny(tmp_path_factory.mktemp("seeds") / "group"), 2)
    assert [result.exit_code for result in results] == [0, 0]
    return [result.logdir for result in results]


def test_every_seed_has_the_directory_of_a_run_of_its_own(group: list[Path]) -> None:
    assert [path.name for path in group] == ["group-5", "group-6"]
    for seed, path in zip((5, 6), group, strict=True):
        assert json.loads((path / "config.json").read_text())["seed"] == seed
        assert list((path / "pictures").iterdir())
        agent = load(path)
        assert agent.env_steps >= STEPS
        last = rows(path, "metrics.jsonl")[-1]
        assert "eval/return" in last
    params = [load(path).params for path in group]
    leaves = zip(*map(jax.tree.leaves, params), strict=True)
    assert any((np.asarray(a) != np.asarray(b)).any() for a, b in leaves)


def test_without_a_directory_seeds_have_their_default_ones() -> None:
    found = configs_of(dataclasses.replace(get_preset("tiny"), seed=3), 2)
    assert [(config.seed, config.logdir) for config in found] == [(3, ""), (4, "")]


def test_an_interrupted_group_continues_as_if_nothing_had_happened(
    group: list[Path], tmp_path: Path
) -> None:
    halves = [result.logdir for result in train_seeds(tiny(tmp_path / "group", steps=HALF), 2)]
    shutil.rmtree(halves[1])  # seeds need not be at the same step: this one begins again
    train_seeds(tiny(tmp_path / "group"), 2)
    for half, whole in zip(halves, group, strict=True):
        for name in ("episodes.jsonl", "metrics.jsonl"):
            expected = [row for row in rows(whole, name) if row in rows(half, name)]
            assert expected == rows(whole, name)


def poison(monkeypatch: pytest.MonkeyPatch, seed: int, updates: range) -> None:
    """Batches of one seed have a reward that is not a number, at some updates."""
    plain = loop.make_sampler

    def poisoned(name: str, replay: Any, batch: int, length: int, own: int, best: int) -> Any:
        sampler = plain(name, replay, batch, length, own, best)
        sample, count = sampler.sample, iter(range(10**6))

        def changed() -> Any:
            found = sample()
            if own == seed and next(count) in updates:
                found.reward[:] = np.nan
            return found

        sampler.sample = changed
        return sampler

    monkeypatch.setattr(loop, "make_sampler", poisoned)


def test_a_bad_update_is_skipped_in_its_own_seed_alone(
    group: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    poison(monkeypatch, 6, range(3, 5))
    results = train_seeds(tiny(tmp_path / "group"), 2)
    good, bad = (rows(result.logdir, "metrics.jsonl") for result in results)
    assert good == rows(group[0], "metrics.jsonl")
    assert [row["train/skipped"] for row in bad if "train/skipped" in row][-1] == 2
    assert (results[1].logdir / "faults").is_dir()


def test_seeds_read_the_shards_of_an_array_one_after_another():
    class Listing:
        """An array that shows half a list while another thread makes it, as JAX does."""

        def __init__(self) -> None:
            self.shards: list[np.ndarray] = []

        def addressable_data(self, index: int) -> np.ndarray:
            if not self.shards:
                for seed in range(2):
                    self.shards.append(np.full((1, 1), seed))
                    time.sleep(0.05)
            return self.shards[index]

    array = Listing()
    with ThreadPoolExecutor(2) as pool:
        read = [pool.submit(np.asarray, seeds.Entry(array, seed, 0)) for seed in range(2)]
    assert [int(one.result()) for one in read] == [0, 1]


def test_a_seed_that_fails_does_not_stop_the_others(
    group: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    poison(monkeypatch, 5, range(10**6))
    with pytest.raises(RunError, match="in a row"):
        train_seeds(tiny(tmp_path / "group"), 2)
    survivor = tmp_path / "group-6"
    assert rows(survivor, "metrics.jsonl") == rows(group[1], "metrics.jsonl")


def test_a_seed_without_an_environment_does_not_stop_the_others(
    group: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = training.make_vector_env

    def make(name: str, envs: Any, *, seed: int, generation: int) -> Any:
        if seed == 6:
            raise EnvError("it is broken")
        return plain(name, envs, seed=seed, generation=generation)

    monkeypatch.setattr(training, "make_vector_env", make)
    with pytest.raises(EnvError, match="it is broken"):
        train_seeds(tiny(tmp_path / "group"), 2)
    assert rows(tmp_path / "group-5", "metrics.jsonl") == rows(group[0], "metrics.jsonl")


def test_a_signal_stops_all_seeds_and_a_failure_does_not_hide_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    poison(monkeypatch, 5, range(10**6))
    plain = training.Loop.vector_step

    def step(self: Any) -> None:
        plain(self)
        if self.config.seed == 6 and self.updates == 15:
            self.signals.name = "SIGTERM"

    monkeypatch.setattr(training.Loop, "vector_step", step)
    results = train_seeds(tiny(tmp_path / "group"), 2)
    assert [result.exit_code for result in results] == [75]
    shown = capsys.readouterr().out
    assert "seed 5: " in shown
    assert "in a row" in shown
    assert "seed 6: " in shown


def test_replays_must_fit_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tiny(tmp_path / "group")
    need = Replay.nbytes_needed(config.replay.capacity, config.envs.count, (16, 16, 3))
    monkeypatch.setattr(store, "available_bytes", lambda: 3 * need)
    with pytest.raises(ReplayError, match="fewer --seeds"):
        train_seeds(config, 4)
    assert not list(tmp_path.iterdir())


def test_a_directory_needs_a_name(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    here = dataclasses.replace(get_preset("tiny"), logdir=".")
    assert configs_of(here, 1)[0].logdir == f"{tmp_path}-0"
    with pytest.raises(ConfigError, match="has no name"):
        configs_of(dataclasses.replace(here, logdir="/"), 2)


def test_a_directory_in_use_is_refused_before_anything_is_compiled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Group, "compile", lambda *_: pytest.fail("compiled"))
    with RunLock(tmp_path / "group-6"), pytest.raises(CheckpointError):
        train_seeds(tiny(tmp_path / "group"), 2)


@pytest.mark.parametrize("text", ["0", "-1", "two", ""])
def test_the_number_of_seeds_is_checked(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["train", "tiny", f"--seeds={text}"]) == 2
    assert "--seeds takes" in capsys.readouterr().err
    assert cli.main(["train", "tiny", "--seeds", "2", "--replay.batch", "0"]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    with pytest.raises(ConfigError, match="at least 1"):
        train_seeds(get_preset("tiny"), 0)


def test_one_program_updates_seeds_as_if_each_was_alone() -> None:
    learner, numbers = small_learner(), [7, 8, 9]
    batches = [make_batch(learner, seed=i) for i in range(3)]
    states = [make_state(learner, seed=i) for i in range(3)]
    carry, keys = batches[0].carry, [key_of(i) for i in range(3)]
    stack = partial(jax.tree.map, lambda *x: jnp.stack(x))
    active = jnp.array([True, False, True])
    arguments = (stack(*states), stack(carry, carry, carry), jnp.stack(keys), jnp.array(numbers))
    arguments = (*arguments, active, [b._replace(carry=None) for b in batches])
    together = compiled(partial(seeds._train_all, learner=learner), *arguments)
    after, _, metrics = together(*arguments)
    noises = [
        jax.random.split(jax.random.fold_in(key, number), BATCH)
        for key, number in zip(keys, numbers, strict=True)
    ]
    alone = compiled(partial(train_step, learner=learner), states[0], batches[0], noises[0])
    for i in range(3):
        own = jax.tree.map(lambda x, i=i: x[i], after)
        if not active[i]:
            pairs = zip(jax.tree.leaves(own), jax.tree.leaves(states[i]), strict=True)
            assert all((a == b).all() for a, b in pairs), "a seed that asked for nothing changed"
            continue
        expected, _, found = alone(states[i], batches[i]._replace(carry=carry), noises[i])
        assert own.step == expected.step
        for name, value in found.items():
            np.testing.assert_allclose(metrics[name][i], value, rtol=2e-3, atol=1e-4, err_msg=name)


@pytest.mark.slow
def test_seeds_on_one_device_at_once_are_runs_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training, "Group", partial(Group, at_once=2))
    results = train_seeds(tiny(tmp_path / "group", devices=1), 4)
    for result in results:
        config = dataclasses.replace(tiny(tmp_path, devices=1), seed=int(result.logdir.name[-1]))
        alone = train(dataclasses.replace(config, logdir=str(tmp_path / f"alone-{config.seed}")))
        prefill = [row for row in rows(alone.logdir, "episodes.jsonl") if row["step"] <= 64]
        assert rows(result.logdir, "episodes.jsonl")[: len(prefill)] == prefill
        first, expected = (
            next(row for row in rows(path, "metrics.jsonl") if "loss/model" in row)
            for path in (result.logdir, alone.logdir)
        )
        assert first["loss/model"] == pytest.approx(expected["loss/model"], rel=1e-3)
        assert first["step"] == expected["step"]


def test_a_group_is_spread_over_devices_and_rows() -> None:
    config, devices = get_preset("tiny"), jax.local_devices()[:2]
    spec = spec_of(config.env, config.envs)
    configs = [dataclasses.replace(config, seed=i) for i in range(6)]
    group = Group(configs, spec, devices, at_once=1)
    assert [group.seat(seed) for seed in range(6)] == [
        *((row, device, 0) for row in range(3) for device in range(2))
    ]
    group = Group(configs, spec, devices, at_once=3)
    assert [group.seat(seed) for seed in range(6)] == [
        *((0, device, seat) for device in range(2) for seat in range(3))
    ]
    assert len(Group(configs[:5], spec, devices).devices) == 1
