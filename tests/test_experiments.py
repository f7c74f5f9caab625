"""The experiment files: each runs at its smallest scale, and all scales can work."""

from __future__ import annotations

import importlib.util
import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

from emerald_jax.commands.train import parse_train
from emerald_jax.run.directory import EPISODES_FILE, read_rows
from experiments.study.study import config_of
from experiments.study.study import run as run_study

FOLDER = Path(__file__).resolve().parents[1] / "experiments"
STUDIES = ("latent", "backbone", "decoding_steps", "prior", "horizon", "memory", "agents")

#: Pictures that a study draws.
PICTURES = {"curves", "points", "strip", "decoding"}
EXPECTED = {"horizon": PICTURES - {"points"}, "memory": {"points"}, "agents": {"points"}}


def load(name):
    spec = importlib.util.spec_from_file_location(f"experiments_{name}", FOLDER / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.STUDY


@pytest.mark.parametrize("name", STUDIES)
def test_every_scale_can_work(name):
    study = load(name)
    scales = {"smoke", "cpu", "paper"}
    assert scales <= set(study.scales) <= scales | {"minatar", "crafter64"}
    for scale in study.scales.values():
        variants = study.variants(scale)
        labels = [variant.label for variant in variants]
        assert len(set(labels)) == len(labels)
        for variant in variants:
            config = config_of(scale, variant)
            config.validate()
            assert scale.context + scale.horizon <= scale.records
        assert study.claim.endswith((".", "?"))


@pytest.mark.slow
@pytest.mark.parametrize("name", STUDIES)
def test_smoke(name, tmp_path):
    study = load(name)
    run_study(study, study.scales["smoke"], tmp_path)
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["tables"][0]["rows"]
    assert (tmp_path / "table.md").is_file()
    drawn = {path.name.split(".")[0].split("-")[0] for path in tmp_path.glob("*.png")}
    assert drawn == EXPECTED.get(name, PICTURES)
    cells = sorted((tmp_path / "cells").glob("*.json"))
    assert cells
    for path in cells:
        for values in json.loads(path.read_text())["readings"].values():
            for numbers in values.values():
                assert np.isfinite(numbers).all()
    before = [path.stat().st_mtime_ns for path in cells]
    run_study(study, study.scales["smoke"], tmp_path)
    assert [path.stat().st_mtime_ns for path in cells] == before


@pytest.fixture
def evidence(monkeypatch):
    spec = importlib.util.spec_from_file_location("evidence", FOLDER / "evidence.py")
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "evidence", module)  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def test_evidence_reads_a_run(evidence, run, tmp_path):
    found = evidence.read_run(Path(run))
    rows = read_rows(Path(run) / EPISODES_FILE)
    scores = [row["score"] for row in rows]
    assert found["last_100"] == pytest.approx(np.mean(scores[-100:]))
    width = min(100, len(scores))
    assert found["curve"][0] == [rows[width - 1]["step"], round(np.mean(scores[:width]), 3)]
    assert found["curve"][-1] == [rows[-1]["step"], round(np.mean(scores[-width:]), 3)]
    config = json.loads((Path(run) / "config.json").read_text())
    assert found["config"] == config | {"logdir": Path(run).name}, "no path of this machine"
    assert found["achievements"] == {"fly": 0, "wave": 50}
    assert found["score"] == pytest.approx(np.sqrt(51) - 1)
    lengths = {len(values) for values in found["metrics"].values()}
    assert len(lengths) == 1
    assert found["metrics"]["loss/image"] == [9.0, 4.5, 3.0, 2.25, 1.8]
    assert found["metrics"]["model/pixel_error"][2] is None
    (tmp_path / "seed_0.json").write_text(json.dumps(found))
    evidence.draw(evidence.RUNS["quickstart"], tmp_path)
    assert (tmp_path / "curve.png").stat().st_size > 1000
    for asked in evidence.RUNS.values():
        for words in asked.stages:
            assert parse_train(words).preset == words[0]


def test_evidence_of_a_run_that_goes_on(evidence, run, tmp_path, monkeypatch):
    codes, commands = [75, 0], []

    def train(command, env):
        commands.append(command)
        shutil.copytree(run, tmp_path / "crafter-3", dirs_exist_ok=True)
        return codes.pop(0)

    monkeypatch.setattr(evidence, "_wait", train)
    monkeypatch.setattr(evidence, "_machine", lambda: f"commit {len(commands)}")
    asked = (evidence.RUNS["crafter"], 3, tmp_path / "crafter-3", "")
    with pytest.raises(SystemExit) as stopped:
        evidence.run_seed(*asked)
    assert stopped.value.code == 75
    notes = json.loads((tmp_path / "crafter-3.json").read_text())
    notes["sittings"][0]["seconds"] = 600.0
    (tmp_path / "crafter-3.json").write_text(json.dumps(notes))
    found = evidence.run_seed(*asked)
    assert commands[1][-4:-1] == ["--max-minutes", "15.00", "--logdir"], "only what is left"
    assert [sitting["machine"] for sitting in found["sittings"]] == ["commit 0", "commit 1"]
    assert found["seconds"] >= 600
    assert found["episodes"] == 20
    assert found["done"] == 1
    assert str(tmp_path) not in json.dumps(found["sittings"]), "no path of this machine"
    evidence.run_seed(*asked)
    assert len(commands) == 2, "what is done is only read"


def test_evidence_in_stages(evidence, run, tmp_path, monkeypatch):
    commands = []

    def train(command, env):
        commands.append(command)
        shutil.copytree(run, tmp_path / "minatar-0", dirs_exist_ok=True)
        return 0 if len(commands) != 2 else 75

    monkeypatch.setattr(evidence, "_wait", train)
    monkeypatch.setattr(evidence, "_machine", lambda: "here")
    asked = (evidence.RUNS["minatar"], 0, tmp_path / "minatar-0", "")
    with pytest.raises(SystemExit):
        evidence.run_seed(*asked)
    evidence.run_seed(*asked)
    stages = evidence.RUNS["minatar"].stages
    kinds = [next(i for i, words in enumerate(stages) if _has(c, words)) for c in commands]
    assert kinds == [0, 1, 1, 2], "a stage that was stopped is gone on with"


def _has(command, words):
    at = command.index("train") + 1
    return tuple(command[at : at + len(words)]) == words


def test_evidence_refuses_in_one_line(evidence, run, tmp_path, capsys):
    for why, refused in (
        ("was not begun by", lambda: evidence.run_seed(evidence.RUNS["quickstart"], 0, run, "")),
        ("no episode of", lambda: evidence.read_run(tmp_path)),
    ):
        with pytest.raises(SystemExit) as left:
            refused()
        said = capsys.readouterr().err
        assert left.value.code == 2
        assert said.startswith("evidence: ")
        assert why in said
        assert said.count("\n") == 1
