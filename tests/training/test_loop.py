"""Whole runs at the smallest size: what they leave behind, and how they end and go on."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys

import jax
import numpy as np
import pytest

from emerald_jax.config import Config
from emerald_jax.presets import get_preset
from emerald_jax.training import loop
from emerald_jax.training.checkpoint import Checkpointer
from emerald_jax.training.evaluate import evaluate_run
from emerald_jax.training.faults import RunError
from emerald_jax.training.loop import INTERRUPTED, train

STEPS, HALF = 160, 112


def tiny(logdir, **changes) -> Config:
    config = get_preset("tiny")
    log = dataclasses.replace(config.log, every=5, pictures=10, quiet=True)
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


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    logdir = tmp_path_factory.mktemp("runs") / "straight"
    return train(tiny(logdir, steps=STEPS))


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


def test_an_interrupted_run_continues_bit_for_bit(straight, tmp_path):
    logdir = tmp_path / "halves"
    first = train(tiny(logdir, steps=HALF))
    second = train(tiny(logdir, steps=STEPS))
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
    # Two per environment: six do not divide over four.
    assert sorted(e.env for e in report.episodes) == [0, 0, 1, 1, 2, 2, 3, 3]
    assert report.updates == straight.updates
    assert "return" in str(report)
    again = evaluate_run(straight.logdir, 6, seed=3)
    assert [e.score for e in again.episodes] == [e.score for e in report.episodes]
    assert sorted((p, p.stat().st_mtime_ns) for p in straight.logdir.rglob("*")) == before


@pytest.mark.parametrize("when", [3, 30], ids=["prefill", "training"])
def test_sigterm_saves_and_leaves_with_its_own_code(when, tmp_path, monkeypatch):
    plain, calls = loop.Run.vector_step, []

    def step(self):
        calls.append(1)
        if len(calls) == when:
            os.kill(os.getpid(), signal.SIGTERM)
        plain(self)

    monkeypatch.setattr(loop.Run, "vector_step", step)
    result = train(tiny(tmp_path / "run", steps=STEPS))
    assert result.exit_code == INTERRUPTED
    assert len(calls) == when
    with Checkpointer(tmp_path / "run" / "checkpoints", read_only=True) as files:
        assert files.latest_sound() == result.updates
    monkeypatch.undo()
    assert train(tiny(tmp_path / "run", steps=STEPS)).exit_code == 0


@pytest.mark.slow
def test_a_run_may_go_on_with_other_devices(straight, tmp_path):
    logdir = tmp_path / "run"
    two = dataclasses.replace(tiny(logdir, steps=HALF), devices=2)
    train(two)
    result = train(tiny(logdir, steps=STEPS))
    assert (result.env_steps, result.updates) == (straight.env_steps, straight.updates)
    # Sums over two halves round differently, so the runs agree but for the last digits at first.
    ours, theirs = (rows(d, "metrics.jsonl")[0] for d in (logdir, straight.logdir))
    np.testing.assert_allclose(ours["loss/image"], theirs["loss/image"], rtol=1e-3)


def test_updates_that_are_not_finite_end_the_run(tmp_path, monkeypatch):
    logdir = tmp_path / "run"
    train(tiny(logdir, steps=HALF))
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
