"""Whole runs at the smallest size: what they leave behind, and how they end and go on."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from functools import partial
from typing import ClassVar
from unittest import mock

import gymnasium
import jax
import numpy as np
import pytest

from emerald_jax.agent.state import RunError
from emerald_jax.config import Config
from emerald_jax.envs import register, registry
from emerald_jax.envs.base import EnvError, VectorEnv
from emerald_jax.presets import get_preset
from emerald_jax.replay import samplers
from emerald_jax.run import replay_files
from emerald_jax.run.checkpoint import Store
from emerald_jax.run.directory import CheckpointError
from emerald_jax.training import devices, loop
from emerald_jax.training.detours import Detours
from emerald_jax.training.devices import TrainingAgent
from emerald_jax.training.evaluate import evaluate_run
from emerald_jax.training.faults import out_of_memory
from emerald_jax.training.train import INTERRUPTED, train

STEPS, HALF = 160, 112
DETOURS, BEST_OF = 0.3, 4


def tiny(logdir, *, quiet=True, eval_episodes=0, **changes) -> Config:
    config = get_preset("tiny")
    log = dataclasses.replace(
        config.log, every=5, pictures=10, quiet=quiet, eval_episodes=eval_episodes
    )
    search = {
        "behavior": dataclasses.replace(config.behavior, detours=DETOURS, real_weight=0.5),
        "replay": dataclasses.replace(config.replay, best_of=BEST_OF),
    }
    changes = search | changes
    return dataclasses.replace(config, logdir=str(logdir), devices=1, log=log, **changes)


def rows(logdir, name):
    return [json.loads(line) for line in (logdir / name).read_text().splitlines()]


def newest_leaves(logdir):
    """Every array of the newest checkpoint, by name, read without knowing its structure."""
    import orbax.checkpoint as ocp

    step = max(int(p.name) for p in (logdir / "checkpoints").iterdir() if p.name.isdigit())
    with ocp.StandardCheckpointer() as files:
        tree = files.restore((logdir / "checkpoints" / str(step) / "state").absolute())
    return jax.tree_util.tree_leaves_with_path(tree)


@pytest.fixture(scope="module", autouse=True)
def programs_are_shared():
    """Trace and compile once for all runs of this file whose programs are the same."""
    plain_programs, plain_compile = TrainingAgent.programs, devices.compile_program
    lowered, compiled = {}, {}

    def programs(self):
        # Neither the length of a run nor its log is part of a program.
        config = dataclasses.replace(self.learner.config, logdir="", steps=STEPS, log=tiny("").log)
        key = repr((config, self.spec, self.devices))
        if key not in lowered:
            lowered[key] = {name: trace() for name, trace in plain_programs(self).items()}
        return {name: partial(lowered[key].__getitem__, name) for name in lowered[key]}

    def compile_program(program, **options):
        if id(program) not in compiled:
            compiled[id(program)] = plain_compile(program, **options)
        return compiled[id(program)]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TrainingAgent, "programs", programs)
        patch.setattr(devices, "compile_program", compile_program)
        yield


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    logdir, asked = tmp_path_factory.mktemp("runs") / "straight", set()

    def make_detours(rate, *arguments):
        asked.add(("detours", rate))
        return Detours(rate, *arguments)

    def make_sampler(*arguments):
        sampler = samplers.make_sampler(*arguments)
        asked.add(("best of", sampler.best_of))
        return sampler

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "Detours", make_detours)
        patch.setattr(loop, "make_sampler", make_sampler)
        result = train(tiny(logdir, steps=STEPS))
    assert asked == {("detours", DETOURS), ("best of", BEST_OF)}, "settings that never arrive"
    return result


def test_a_run_leaves_its_artefacts(straight):
    logdir = straight.logdir
    assert straight.exit_code == 0
    assert straight.env_steps >= STEPS
    # 96 steps after the prefill of 64, replayed 8 times, in batches of 4 x 8; the updates that the
    # last vector step's 4 steps earned would have been taken with the next one.
    assert straight.updates == (straight.env_steps - 4 - 64) * 8 // 32
    metrics = rows(logdir, "metrics.jsonl")
    assert all(np.isfinite(v) for row in metrics for k, v in row.items() if k.startswith("loss/"))
    assert metrics[-1]["train/skipped"] == 0
    assert sum(row.get("real/due", 0) for row in metrics) > 0, "no played step was learned from"
    # What warns of a model that is being exploited: promises beside reality, and a collapse.
    told = ("imagined_reward", "value", "return", "return_scale", "policy_entropy")
    assert {*(f"behavior/{name}" for name in told), "play/reward"} <= metrics[-1].keys()
    shares = [v for k, v in metrics[-1].items() if k.startswith("actions/")]
    assert len(shares) == 3
    assert sum(shares) == pytest.approx(1)
    parts = [metrics[-1][f"speed/{part}_share"] for part in ("env_wait", "device_wait", "replay")]
    assert min(parts) >= 0
    assert 0 < sum(parts) <= 1.01
    episodes = rows(logdir, "episodes.jsonl")
    # Catch: nine steps, then exactly +1 or -1.
    assert {row["length"] for row in episodes} == {9}
    assert {row["score"] for row in episodes} <= {-1.0, 1.0}
    assert list(logdir.glob("pictures/dream_*.png"))
    assert list(logdir.glob("tensorboard/events*"))
    assert (
        Config.from_dict(json.loads((logdir / "config.json").read_text())).env
        == "gymnax:Catch-bsuite"
    )


@pytest.fixture(scope="module")
def half(tmp_path_factory):
    """A run of :data:`HALF` steps, to be continued in copies."""
    return train(tiny(tmp_path_factory.mktemp("runs") / "half", steps=HALF, eval_episodes=6))


def test_an_interrupted_run_continues_bit_for_bit(straight, half, tmp_path):
    # The evaluation at the end of the first half leaves no trace in the second.
    first, logdir = half, shutil.copytree(half.logdir, tmp_path / "halves")
    assert len(first.evaluation.episodes) == 6
    assert rows(logdir, "metrics.jsonl")[-1]["eval/return"] == first.evaluation.score
    assert first.evaluation.length == 9
    second = train(tiny(logdir, steps=STEPS))
    assert second.evaluation is None
    assert HALF <= first.env_steps < second.env_steps == straight.env_steps
    ours, theirs = newest_leaves(logdir), newest_leaves(straight.logdir)
    assert [path for path, _ in ours] == [path for path, _ in theirs]
    for (path, a), (_, b) in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(a, b, err_msg=jax.tree_util.keystr(path))
    assert [r["score"] for r in rows(logdir, "episodes.jsonl")] == [
        r["score"] for r in rows(straight.logdir, "episodes.jsonl")
    ]
    last = [rows(d, "metrics.jsonl")[-1] for d in (logdir, straight.logdir)]
    timeless = [
        {k: v for k, v in row.items() if k != "time" and not k.startswith("speed/")} for row in last
    ]
    assert timeless[0] == timeless[1]


def test_evaluation_plays_whole_episodes_and_changes_nothing(straight):
    before = sorted((p, p.stat().st_mtime_ns) for p in straight.logdir.rglob("*"))
    report = evaluate_run(straight.logdir, 6, seed=3)
    # Six episodes over four environments: two of them play one more.
    assert sorted(e.env for e in report.episodes) == [0, 0, 1, 1, 2, 3]
    assert report.updates == straight.updates
    assert "return" in str(report)
    again = evaluate_run(straight.logdir, 6, seed=3)
    assert [e.score for e in again.episodes] == [e.score for e in report.episodes]
    assert sorted((p, p.stat().st_mtime_ns) for p in straight.logdir.rglob("*")) == before


def signal_at(monkeypatch, place: str) -> None:
    """Send ourselves SIGTERM in the middle of one of the things that a run does."""
    homes = {
        "compiling": (TrainingAgent, "compile", 1),
        "prefill": (loop.Loop, "vector_step", 3),
        "training": (loop.Loop, "vector_step", 24),
        "saving": (Store, "save", 1),
        "evaluation": (VectorEnv, "step_wait", 34),  # 31 were training
    }
    home, name, when = homes[place]
    plain, calls = getattr(home, name), []

    def signalled(*args, **kwargs):
        calls.append(1)
        if len(calls) == when:
            os.kill(os.getpid(), signal.SIGTERM)
        return plain(*args, **kwargs)

    monkeypatch.setattr(home, name, signalled)


@pytest.mark.parametrize(
    "place",
    [
        pytest.param("compiling", marks=pytest.mark.slow),
        "prefill",
        pytest.param("training", marks=pytest.mark.slow),
        "saving",
        "evaluation",
    ],
)
def test_sigterm_saves_and_leaves_with_its_own_code(place, tmp_path, monkeypatch, capsys):
    logdir = tmp_path / "run"
    signal_at(monkeypatch, place)
    result = train(tiny(logdir, steps=HALF, eval_episodes=4))
    assert (result.exit_code, result.stopped) == (INTERRUPTED, "SIGTERM")
    assert result.evaluation is None
    with Store(logdir, read_only=True) as files:
        saved = [] if place == "compiling" else [result.updates]
        assert files.steps() == saved
        for step in saved:
            files.verify(step)
        steps = {"compiling": 0, "prefill": 12, "training": 88}.get(place, HALF)
        assert result.env_steps == steps
        if saved:
            assert files.metadata(saved[0])["run"]["env_steps"] == steps
    monkeypatch.undo()
    capsys.readouterr()
    if place == "evaluation":
        again = train(tiny(logdir, steps=HALF, eval_episodes=4, quiet=False))
        assert (again.exit_code, len(again.evaluation.episodes)) == (0, 4)
        assert "log.quiet: True -> False" in capsys.readouterr().err


def test_a_device_without_memory_is_told_what_helps(tmp_path, monkeypatch):
    def full(*_):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes")

    monkeypatch.setattr(TrainingAgent, "update", full)
    with pytest.raises(RunError) as caught:
        train(tiny(tmp_path / "run", steps=STEPS))
    message = str(caught.value)
    assert "\n" not in message
    assert re.search(r"an update needs about 0\.0 GiB", message)
    helping = ("--optim.micro-batch 1", "--replay.batch (4)", "--behavior.start-stride (4)")
    for setting in helping:
        assert setting in message
    assert "--model.remat" not in message, "of no use on a CPU"
    gpu = mock.Mock(platform="gpu", device_kind="H200")
    gpu.memory_stats.return_value = {"bytes_limit": 2**37}
    message = str(out_of_memory(tiny(tmp_path), gpu, 2**38))
    for setting in ("needs about 256.0 GiB and H200 has 128.0 GiB", "--model.remat", *helping):
        assert setting in message


def test_an_action_that_is_not_finite_never_reaches_an_environment(tmp_path, monkeypatch):
    """The actor is poisoned where updates cannot notice it: between an update and the next."""
    taken = []
    plain_actions, plain_send = loop.Loop._actions, VectorEnv.step_async

    def poisoned(self):
        if self.updates == 3:
            nan = lambda x: jax.device_put(np.full(x.shape, np.nan, np.float32))  # noqa: E731
            state = self.agent.state
            actor = jax.tree.map(nan, state.params["actor"])
            self.agent.state = state.replace(params={**state.params, "actor": actor})
            taken.append("poisoned")
        return plain_actions(self)

    def send(self, actions):
        taken.append("acted")
        return plain_send(self, actions)

    monkeypatch.setattr(loop.Loop, "_actions", poisoned)
    monkeypatch.setattr(VectorEnv, "step_async", send)
    config = tiny(tmp_path / "run", steps=STEPS)
    with pytest.raises(RunError, match="policy is not finite after 3 updates"):
        train(config)
    assert taken[-1] == "poisoned"
    assert taken.count("poisoned") == 1
    assert "acted" in taken


def test_a_disk_that_is_full_at_the_end_is_told(tmp_path, monkeypatch):
    def fail(*_):
        raise OSError(28, "No space left on device")

    logdir = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(replay_files, "write_atomic", fail)
        with pytest.raises(CheckpointError, match=r"cannot be written to .*nothing is kept: free"):
            train(tiny(logdir, steps=HALF))
    assert len(rows(logdir, "metrics.jsonl")) == 3


@pytest.mark.slow
def test_a_run_may_go_on_with_other_devices(tmp_path):
    """Eight devices, then one, then two: the state knows no devices, and the run is the same."""

    def run(name, steps, devices):
        config = tiny(tmp_path / name, steps=steps)
        replay = dataclasses.replace(config.replay, batch=8)
        log = dataclasses.replace(config.log, every=1)
        return train(dataclasses.replace(config, devices=devices, replay=replay, log=log))

    straight = run("straight", STEPS, 1)
    for steps, count in ((96, 8), (128, 1), (STEPS, 2)):
        result = run("other", steps, count)
    assert (result.env_steps, result.updates) == (straight.env_steps, straight.updates)
    # Sums over parts round differently, and Adam's first steps enlarge that: only the first
    # update, at equal parameters, must agree but for the last digits.
    ours, theirs = (rows(tmp_path / d, "metrics.jsonl") for d in ("other", "straight"))
    np.testing.assert_allclose(ours[0]["loss/image"], theirs[0]["loss/image"], rtol=1e-4)
    assert [row["train/updates"] for row in ours] == [row["train/updates"] for row in theirs]


def test_updates_that_are_not_finite_end_the_run(half, tmp_path, monkeypatch):
    logdir = shutil.copytree(half.logdir, tmp_path / "run")
    before = newest_leaves(logdir)
    plain = loop.make_sampler

    def poisoned(*args):
        sampler = plain(*args)
        sample = sampler.sample
        sampler.sample = lambda: sample()._replace(reward=np.full((4, 8), np.nan, np.float32))
        return sampler

    monkeypatch.setattr(loop, "make_sampler", poisoned)
    with pytest.raises(RunError, match=r"5 updates in a row.*checkpoint"):
        train(tiny(logdir, steps=STEPS))
    facts = [json.loads(p.read_text()) for p in sorted(logdir.glob("faults/*.json"))]
    assert len(facts) == 5
    assert "loss/reward" in facts[0]["not_finite"]
    for (_, a), (_, b) in zip(newest_leaves(logdir), before, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.slow
def test_quickstart_learns_catch(tmp_path):
    command = [sys.executable, "-m", "emerald_jax", "train", "quickstart"]
    subprocess.run([*command, "--logdir", str(tmp_path / "run")], check=True, timeout=900)
    scores = [row["score"] for row in rows(tmp_path / "run", "episodes.jsonl")]
    assert np.mean(scores[-100:]) >= 0.9


class Rooms(gymnasium.Env):
    """Each episode shows one random image, which is its world; an episode has nine steps."""

    observation_space = gymnasium.spaces.Box(0, 255, (16, 16, 3), np.uint8)
    action_space = gymnasium.spaces.Discrete(3)
    worlds: ClassVar[list[bytes]] = []

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.time = 0
        self.image = self.np_random.integers(0, 256, (16, 16, 3), np.uint8)
        self.worlds.append(self.image.tobytes())
        return self.image, {}

    def step(self, action):
        del action
        self.time += 1
        return self.image, 1.0, self.time == 9, False, {}


def test_every_resume_plays_other_worlds(tmp_path, monkeypatch):
    def worlds(name):
        """Worlds of three processes of one run, in the order in which they begin."""
        found = []
        for steps in (12, 24, 36):
            monkeypatch.setattr(Rooms, "worlds", [])
            config = tiny(tmp_path / name, steps=steps, env="rooms")
            train(
                dataclasses.replace(config, envs=dataclasses.replace(config.envs, workers="inline"))
            )
            found.append(Rooms.worlds)
        return found

    register("rooms", Rooms)
    first = worlds("first")
    assert len({world for part in first for world in part}) == sum(map(len, first))
    assert worlds("again") == first


def test_a_resume_refuses_an_environment_of_another_shape(half, tmp_path, monkeypatch):
    logdir = shutil.copytree(half.logdir, tmp_path / "run")
    spec = registry.spec_of("gymnax:Catch-bsuite", tiny(logdir).envs)
    monkeypatch.setattr(registry, "spec_of", lambda *_: dataclasses.replace(spec, num_actions=4))
    with pytest.raises(EnvError, match="has 4 actions, this run was trained with 3"):
        train(tiny(logdir, steps=STEPS))
