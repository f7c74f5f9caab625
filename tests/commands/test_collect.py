"""``emerald-jax collect``: records a data set, or refuses in one line."""

from __future__ import annotations

import json

import numpy as np
import pytest

from emerald_jax.cli import main
from emerald_jax.run.recordings import read_dataset

CATCH = ("--env", "gymnax:Catch-bsuite", "--count", "4", "--image-size", "16")


def test_random_play_becomes_a_data_set(tmp_path, capsys):
    out = tmp_path / "catch"
    assert main(["collect", *CATCH, "--steps", "40", "--out", str(out)]) == 0
    output = capsys.readouterr().out
    assert "48 records of gymnax:Catch-bsuite by random" in output  # 12 rows: 11 steps, two firsts
    found = read_dataset(out)
    assert len(found.replay) == 48
    assert found.facts["steps"] == 40
    assert found.facts["num_actions"] == 3
    assert found.replay.columns["is_first"][[0, 10]].all()
    assert set(np.unique(found.replay.columns["action"])) == {-1, 0, 1, 2}
    # A second time into the same directory: refused, nothing is written.
    before = sorted(path.name for path in out.iterdir())
    assert main(["collect", *CATCH, "--steps", "40", "--out", str(out)]) == 2
    assert "already holds a data set" in capsys.readouterr().err
    assert sorted(path.name for path in out.iterdir()) == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--steps", "9"], "--out"),
        (["--steps", "9", "--out", "x"], "--env is missing"),
        (["--env", "crafter", "--steps", "0", "--out", "x"], "--steps is 0"),
        (
            ["--env", "crafter", "--steps", "9", "--out", "x", "--count", "-1"],
            "--count is -1: it must be at least 0",
        ),
        (["--policy", "nowhere", "--steps", "9", "--out", "x"], "nowhere does not exist"),
    ],
)
def test_wrong_arguments_are_refused(tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    assert main(["collect", *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_the_settings_of_a_run_are_kept(tmp_path, capsys):
    run = tmp_path / "run"
    run.mkdir()
    settings = {"env": "crafter", "envs": {"image_size": 64}}
    (run / "config.json").write_text(json.dumps(settings))
    arguments = ["collect", "--policy", str(run), "--steps", "9", "--out", str(tmp_path / "x")]
    assert main([*arguments, "--env", "gymnax:Catch-bsuite"]) == 2
    assert "was trained on crafter, not gymnax:Catch-bsuite" in capsys.readouterr().err
    assert main([*arguments, "--image-size", "32"]) == 2
    assert "sees 64 pixels" in capsys.readouterr().err
    # A run without a checkpoint has no policy to play.
    assert main(arguments) == 2
    assert len(capsys.readouterr().err.strip().splitlines()) == 1


def test_an_agent_of_the_package_plays(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    arguments = ["--steps", "40", "--count", "4", "--out", "played"]
    assert main(["collect", "--policy", "pretrained/catch", *arguments]) == 0
    found = read_dataset(tmp_path / "played")
    assert found.facts["policy"] == "pretrained/catch"
    ends = found.replay.columns["reward"][found.replay.columns["is_last"]]
    assert ends.mean() > 0.5, "random play has -0.6"


def test_an_agent_that_the_package_lacks_is_named(tmp_path, capsys):
    arguments = ["collect", "--policy", "pretrained/pong", "--steps", "9", "--out"]
    assert main([*arguments, str(tmp_path / "x")]) == 2
    assert "there is no agent 'pong' in the package: breakout, catch" in capsys.readouterr().err
