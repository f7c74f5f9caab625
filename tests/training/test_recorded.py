"""Runs on recorded data: no environment is made, and they end, resume and are read as others."""

from __future__ import annotations

import dataclasses
import json
import shutil
import subprocess
import sys
import urllib.request
from contextlib import closing

import imageio
import jax
import numpy as np
import pytest
from gymnasium.spaces import Box, Dict, Discrete

from emerald_jax.cli import main
from emerald_jax.commands.runs import run_eval
from emerald_jax.config import ConfigError, EnvsConfig
from emerald_jax.envs import registry
from emerald_jax.envs.base import EnvError
from emerald_jax.look.film import FilmPlan, film_run
from emerald_jax.presets import get_preset
from emerald_jax.run import Run
from emerald_jax.run.data import with_data
from emerald_jax.run.recordings import write_dataset
from emerald_jax.run.weights import export_weights, load
from emerald_jax.training import loop
from emerald_jax.training.train import train
from tests.run_cases import ENVS, NUM_ACTIONS, ROWS, record, write_minari

HALF, STEPS = 104, 144


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Recorded play of an environment that this machine does not have."""
    folder = tmp_path_factory.mktemp("data")
    facts = {"env": "gym:no_such_package:Game-v0", "num_actions": NUM_ACTIONS}
    replay = record(folder / "chunks", ROWS)
    write_dataset(folder / "demos", replay, {**facts, "action_names": ["left", "stay", "right"]})
    return folder / "demos"


def config(data, logdir, steps=STEPS, **changes):
    tiny = get_preset("tiny")
    log = dataclasses.replace(tiny.log, every=2, pictures=4, quiet=True, eval_episodes=2)
    changes = {"log": log, "devices": 1, "steps": steps, **changes}
    return dataclasses.replace(tiny, data=str(data), logdir=str(logdir), **changes)


@pytest.fixture(scope="module")
def run(data, tmp_path_factory):
    """A run that trained to its end; nothing may make an environment."""
    logdir = tmp_path_factory.mktemp("runs") / "straight"
    result = train(config(data, logdir))
    assert (result.stopped, result.evaluation) == ("steps", None)
    assert "emerald-jax dream" in str(result)
    return logdir


def leaves(logdir):
    return jax.tree.leaves(load(logdir).params)


def test_it_makes_as_many_updates_as_a_run_that_plays(data, run):
    settings = config(data, run)
    assert Run(run).checkpoints[-1].step == settings.total_updates == 19
    assert Run(run).config.env == "gym:no_such_package:Game-v0"


def test_the_records_of_the_run_are_the_data(run, data):
    recorded = Run(run).recordings
    assert len(recorded) == ROWS * ENVS
    found = recorded.clip(0, 0, 5)
    with np.load(next(data.glob("*.npz"))) as rows:
        np.testing.assert_array_equal(found.image, rows["image"][:5, 0])
        np.testing.assert_array_equal(found.action, rows["action"][:5, 0])


def test_a_resumed_run_equals_a_straight_one_and_needs_no_data(run, data, tmp_path):
    copy = shutil.copytree(data, tmp_path / "demos")
    logdir = tmp_path / "resumed"
    train(config(copy, logdir, HALF))
    assert Run(logdir).checkpoints[-1].step < Run(run).checkpoints[-1].step
    shutil.rmtree(copy)
    train(config(copy, logdir))
    for ours, theirs in zip(leaves(logdir), leaves(run), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    with pytest.raises(ConfigError, match=r"holds a run with .*data .*: choose another --logdir"):
        train(config(data, logdir))


def test_a_weight_of_recorded_play_is_read_without_its_environment(run, tmp_path):
    agent = load(run)
    assert (agent.spec.num_actions, agent.spec.action_names[0]) == (NUM_ACTIONS, "left")
    export_weights(run, tmp_path / "weights")
    assert load(tmp_path / "weights").spec == agent.spec
    film = film_run(agent, run, FilmPlan(horizon=3, actions="recorded"))
    assert len(film.dream) > film.context
    with pytest.raises(EnvError, match="no_such_package"):
        run_eval([str(run), "--episodes", "1"])


def test_an_installed_environment_evaluates_and_a_compressed_replay_changes_nothing(
    run, data, tmp_path, monkeypatch
):
    facts = json.loads((data / "dataset.json").read_text())
    copy = shutil.copytree(data, tmp_path / "demos")
    (copy / "dataset.json").write_text(json.dumps(facts | {"env": "gymnax:Catch-bsuite"}))
    made, plain = [], registry.make_vector_env
    monkeypatch.setattr(loop, "make_vector_env", lambda *a, **k: made.append(a) or plain(*a, **k))
    settings = config(copy, tmp_path / "run")
    replay = dataclasses.replace(settings.replay, compress=True)
    result = train(dataclasses.replace(settings, replay=replay))
    assert len(result.evaluation.episodes) == 2
    assert [name for name, _ in made] == ["gymnax:Catch-bsuite"]
    assert "emerald-jax eval" in str(result)
    assert Run(tmp_path / "run").rows()[0]["replay/image_bytes"] > 0
    for ours, theirs in zip(leaves(tmp_path / "run"), leaves(run), strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.filterwarnings("ignore")  # minari's own, about authors
def test_a_minari_data_set_of_numbers_and_categories_trains(tmp_path, monkeypatch):
    pytest.importorskip("minari", reason="the extra `minari` is not installed")
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "sets"))
    actions = Dict(press=Discrete(3, start=1), turn=Box(-180, 180, (2,)))
    write_minari("own/game-v0", actions=actions, lengths=(50, 50))
    plan = with_data(config("minari:own/game-v0", tmp_path / "run", steps=80))
    assert plan.total_updates >= 1
    assert train(plan).stopped == "steps"
    agent = load(tmp_path / "run")
    assert agent.spec.actions.sizes == (3, 0, 0)
    assert agent.spec.action_names == ("press", "turn 1", "turn 2")
    rows = Run(tmp_path / "run").rows()
    assert all(np.isfinite(row["loss/image"]) for row in rows if "loss/image" in row)
    film = film_run(agent, tmp_path / "run", FilmPlan(horizon=3, actions="recorded"))
    assert len(film.dream) > film.context


def test_videos_have_no_environment(tmp_path):
    settings = config(tmp_path, tmp_path / "run")
    (tmp_path / "a.mp4").write_bytes(b"")
    with pytest.raises(ConfigError, match=r"a.mp4 cannot be read"):
        with_data(settings)
    with pytest.raises(EnvError, match="recorded data may name none"):
        registry.spec_of("", settings.envs)


@pytest.mark.slow
@pytest.mark.parametrize("tables", [True, False], ids=["actions", "no actions"])
def test_five_videos_train_dream_play_and_are_inspected(tmp_path, monkeypatch, tables):
    """One command each, as a user types them."""
    monkeypatch.chdir(tmp_path)
    film_catch(tmp_path / "videos", tables)
    run = ["runs/tiny-videos-0"]
    assert main(["train", "tiny", "--data", "videos", "--steps", "200", "--quiet"]) == 0
    assert main(["dream", *run, "--out", "dream.mp4", "--horizon", "5"]) == 0
    assert main(["inspect", *run]) == 0
    assert main(["eval", *run]) == 2
    command = [sys.executable, "-m", "emerald_jax", "play", *run, "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as play:
        address = play.stdout.readline().split()[0]
        with urllib.request.urlopen(address) as page:
            assert b"<html" in page.read()
        play.terminate()
    assert play.returncode == 0
    assert (tmp_path / "dream.mp4").stat().st_size
    assert (tmp_path / run[0] / "report.html").stat().st_size


def film_catch(folder, tables):
    """Five videos of random play in Catch, with tables of named actions on request."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    envs = EnvsConfig(count=1, image_size=32)
    with closing(registry.make_vector_env("gymnax:Catch-bsuite", envs, seed=0)) as env:
        for number in range(5):
            record, rows = env.reset(), ["action,reward,terminal"]
            with imageio.get_writer(folder / f"{number}.mp4", fps=30, macro_block_size=1) as video:
                video.append_data(record.image[0])
                for action in rng.integers(3, size=40):
                    record = env.step(np.array([action], np.int32))
                    video.append_data(record.image[0])
                    values = (float(record.reward[0]), int(record.is_terminal[0]))
                    rows.append(",".join([["left", "stay", "right"][action], *map(str, values)]))
            if tables:
                (folder / f"{number}.csv").write_text("\n".join(rows) + "\n")
