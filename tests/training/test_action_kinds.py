"""A run whose actions are a number and a category: trained, resumed, loaded, dreamt, shown."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path

import gymnasium
import jax
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from emerald_jax import cli
from emerald_jax.actions import absent
from emerald_jax.agent import Agent
from emerald_jax.config import Config, ConfigError
from emerald_jax.envs.base import EnvSpec
from emerald_jax.look.film import action_name, read_actions
from emerald_jax.look.play_session import DreamEnv, DreamSession
from emerald_jax.presets import get_preset
from emerald_jax.run import Run
from emerald_jax.run.recordings import Recordings, read_dataset
from emerald_jax.run.weights import load
from emerald_jax.training.train import train
from emerald_jax.types import Batch
from tests.model_cases import little_optimisation

ENV = "tests.action_worlds:mixed"
FIRST, STEPS = 80, 112


@pytest.fixture(scope="module", autouse=True)
def _quickly() -> Iterator[None]:
    """Compile the programs of this file with little optimisation."""
    with little_optimisation():
        yield


def settings(logdir: Path, **changes: object) -> Config:
    config = get_preset("tiny")
    return dataclasses.replace(
        config,
        **{"env": ENV, "logdir": str(logdir), "devices": 1, **changes},
        envs=dataclasses.replace(config.envs, workers="inline"),
        log=dataclasses.replace(config.log, every=2, pictures=3, quiet=True, eval_episodes=2),
        behavior=dataclasses.replace(config.behavior, detours=0.3, real_weight=0.5),
    )


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was stopped and continued."""
    logdir = tmp_path_factory.mktemp("mixed") / "run"
    first = train(settings(logdir, steps=FIRST))
    result = train(settings(logdir, steps=STEPS))
    assert (first.env_steps, result.env_steps) == (FIRST, STEPS)
    assert result.updates > first.updates > 0
    assert len(result.evaluation.episodes) == 2
    return logdir


@pytest.fixture(scope="module")
def agent(run: Path) -> Agent:
    return load(run)


@pytest.fixture(scope="module")
def clip(run: Path):
    return Recordings(run).draw(6, np.random.default_rng(0))


def test_the_log_describes_the_actions(run: Path) -> None:
    row = [row for row in Run(run).rows() if "actions/move" in row][-1]
    assert -1 < row["actions/move"] < 1
    assert 0 < row["actions/move/deviation"] < 1
    assert sum(row[f"actions/press/{k}"] for k in range(3)) == pytest.approx(1)
    assert all(np.isfinite(v) for v in row.values() if isinstance(v, float))


def test_records_of_both_parts_are_on_disk(run: Path) -> None:
    recordings = Recordings(run)
    rows = recordings.newest(10**6)
    assert rows["action"].dtype == np.float32
    assert rows["action"].shape[1:] == (get_preset("tiny").envs.count, 2)
    # Rows of both parts, first frames included.
    assert len(rows["action"]) == recordings.spans[-1][1] > FIRST / rows["action"].shape[1]
    np.testing.assert_array_equal(absent(rows["action"]), rows["is_first"])
    taken = rows["action"][~rows["is_first"]]
    assert (np.abs(taken[:, 0]) <= 1).all()
    assert set(taken[:, 1]) == {0, 1, 2}


def test_a_loaded_agent_acts_and_dreams(agent: Agent, clip) -> None:
    assert "actions of 1 number and 1 category of 3 classes" in repr(agent)
    state, key = agent.initial(2), jax.random.key(0)
    images = np.stack([clip.image[0]] * 2)
    for _ in range(2):
        action, state = agent.act(images, state, key)
        assert action.shape == (2, 2)
        assert not agent.spec.actions.wrong(action).any()
    best, _ = agent.act(images, state, key, mode=True)
    assert not agent.spec.actions.wrong(best).any()
    options = dict(horizon=4, key=key)
    dream = agent.imagine(clip.image, clip.action, **options)
    assert dream.actions.shape == (4, 2)
    future = np.array([[0.5, 2], [-1, 0], [1, 1], [0, 0]], np.float32)
    given = agent.imagine(clip.image, clip.action, future=future, **options)
    np.testing.assert_array_equal(given.actions, future)
    other = agent.imagine(clip.image, clip.action, future=future[::-1], **options)
    assert (other.tokens != given.tokens).any()
    with pytest.raises(ValueError, match=r"future must lie in \[-1 … 1, 0 … 2\]"):
        agent.imagine(clip.image, clip.action, future=future + 1, **options)
    with pytest.raises(ValueError, match=r"future must be \[1, 4, 2\] numbers"):
        agent.imagine(clip.image, clip.action, future=np.zeros(4, int), **options)


def test_losses_of_recorded_sequences(agent: Agent, clip) -> None:
    reset = np.arange(len(clip)) == 0
    batch = Batch(*(x[None] for x in clip[:6]), reset=reset[None])
    assert all(np.isfinite(x) for x in agent.losses(batch, jax.random.key(0)).values())


def test_an_export_is_the_same_agent(run: Path, agent: Agent, tmp_path: Path) -> None:
    assert cli.main(["export", str(run), "--to", str(tmp_path / "out")]) == 0
    exported = load(tmp_path / "out")
    jax.tree.map(np.testing.assert_array_equal, exported.params, agent.params)
    assert exported.spec.actions == agent.spec.actions


def test_evaluation_and_collection(run: Path, tmp_path: Path) -> None:
    assert cli.main(["eval", str(run), "--episodes", "2"]) == 0
    assert cli.main(["eval", "--random", ENV, "--episodes", "2", "--image-size", "16"]) == 0
    for policy in ("random", str(run)):
        out = tmp_path / policy.replace("/", "_")
        words = ["--policy", policy, "--steps", "20", "--out", str(out)]
        more = ["--env", ENV, "--image-size", "16", "--count", "2"] if policy == "random" else []
        assert cli.main(["collect", *words, *more]) == 0
        found = read_dataset(out)
        assert found.facts["action_sizes"] == [0, 3]
        assert found.replay.action_sizes == (0, 3)
        action = found.replay.columns["action"][: found.replay.written]
        first = found.replay.columns["is_first"][: found.replay.written]
        np.testing.assert_array_equal(absent(action), first)


def test_a_film_with_actions_from_a_file(run: Path, tmp_path: Path) -> None:
    actions, out = tmp_path / "actions.json", tmp_path / "film.png"
    actions.write_text(json.dumps([[0.5, 1], [-1, 2], [0, 0]]))
    for source in ("reset", "real"):
        words = ["--from", source, "--actions", str(actions), "--out", str(out)]
        assert cli.main(["dream", str(run), *words]) == 0
    assert (
        cli.main(["dream", str(run), "--actions", "random", "--horizon", "3", "--out", str(out)])
        == 0
    )


def test_files_of_actions(agent: Agent, tmp_path: Path) -> None:
    spec, path = agent.spec, tmp_path / "actions"
    path.write_text("0.5 1\n\n-1, 2\n")
    assert read_actions(path, spec) == ((0.5, 1), (-1, 2))
    for text, bad in (("0.5 3", "'0.5 3'"), ("[[1]]", r"\[1\]"), ("[2]", "2"), ("x y", "'x y'")):
        path.write_text(text)
        with pytest.raises(ConfigError, match=rf"action 1 is {bad}; .* takes \[-1 … 1, 0 … 2\]"):
            read_actions(path, spec)
    assert action_name(spec, np.array([0.5, 2])) == "move +0.50, press 2"
    assert action_name(spec, spec.actions.none()) == ""
    assert action_name(EnvSpec(name="x", image_shape=(4, 4, 3), num_actions=3), 2) == "action 2"


def test_the_report_shows_curves_and_classes(run: Path, tmp_path: Path) -> None:
    assert cli.main(["inspect", str(run), "--out", str(tmp_path / "report.html")]) == 0
    page = (tmp_path / "report.html").read_text()
    assert "actions along an episode and a dream" in page
    assert "shares of the actions" in page


def test_a_dream_is_steered_with_vectors(run: Path, agent: Agent, clip) -> None:
    session = DreamSession(agent, Recordings(run))
    assert session.begin_recorded().action == -1
    assert session.step([0.25, 2]).action == [0.25, 2]
    assert len(session.step(None).action) == 2
    with pytest.raises(ConfigError, match=r"does not exist: choose in \[-1 … 1, 0 … 2\]"):
        session.step([0, 3])
    with pytest.raises(ConfigError, match=r"an action must be \[2\] numbers"):
        session.step([0])
    session.begin_real()
    picture = session.step([1, 0])
    assert picture.real is not None
    session.close()


@pytest.mark.filterwarnings("ignore:.*we recommend using a symmetric and normalized space")
def test_a_dream_as_an_environment(run: Path, agent: Agent, clip) -> None:
    env = DreamEnv(agent, Recordings(run), horizon=3)
    assert isinstance(env.action_space, gymnasium.spaces.Box)
    check_env(env, skip_render_check=True)
    env.reset(options={"image": clip.image, "action": clip.action})
    env.step(np.array([0.5, 1.4], np.float32))
    assert env._picture.action == [0.5, 1]  # the Box of a mixed action has no gaps
    with pytest.raises(ConfigError, match=r"action \[T, 2\], not"):
        env.reset(options={"image": clip.image, "action": clip.action[:, 0]})
