"""Agents that come with the package: ``pretrained/NAME`` in place of a run."""

from __future__ import annotations

import jax
import numpy as np
import pytest

import emerald_jax as ej
from emerald_jax import cli
from emerald_jax.config import ConfigError
from emerald_jax.run import Run
from emerald_jax.run.pretrained import PRETRAINED, find_run

NAMES = [path.parent.name for path in PRETRAINED.glob("*/config.json")]
#: Least mean return of some episodes.
LEAST = {"breakout": 14.0, "catch": 0.7}


def test_every_agent_has_a_card_and_all_are_small():
    assert set(NAMES) == set(LEAST)
    for name in NAMES:
        card = (PRETRAINED / f"{name}.md").read_text()
        for part in ("Data", "Settings", "Score", "Limits", "Licence"):
            assert f"**{part}:**" in card, (name, part)
    assert sum(path.stat().st_size for path in PRETRAINED.rglob("*") if path.is_file()) < 3e6


@pytest.mark.parametrize("name", NAMES)
def test_it_plays_as_well_as_its_card_says(name, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["eval", f"pretrained/{name}", "--episodes", "32"]) == 0
    score = float(capsys.readouterr().out.split("return ")[1].split()[0])
    assert score >= LEAST[name]
    assert not list(tmp_path.iterdir())


def test_it_loads_and_dreams(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    agent = ej.load("pretrained/catch")
    frame = np.zeros((1, *agent.spec.image_shape), np.uint8)
    action, _ = agent.act(frame, agent.initial(), jax.random.key(0))
    assert action.shape == (1,)
    assert cli.main(["dream", "pretrained/catch", "--out", "d.gif", "--horizon", "3"]) == 0
    assert "real frames, then 3 dreamt frames" in capsys.readouterr().out
    assert Run("pretrained/catch").config.preset == "quickstart"


def test_a_directory_here_comes_first(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert find_run("pretrained/catch") == PRETRAINED / "catch"
    (tmp_path / "pretrained/catch").mkdir(parents=True)
    assert not find_run("pretrained/catch").is_absolute()


def test_an_unknown_name_is_refused_with_those_there_are(capsys):
    assert cli.main(["eval", "pretrained/chess"]) == 2
    assert "there is no agent 'chess' in the package: breakout, catch" in capsys.readouterr().err
    with pytest.raises(ConfigError, match="no agent 'chess'"):
        ej.load("pretrained/chess")
