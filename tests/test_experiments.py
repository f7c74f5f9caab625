"""The experiment files: each runs at its smallest scale, and all scales can work."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import numpy as np
import pytest

from emerald_jax.presets import PRESETS
from emerald_jax.studies.study import config_of
from emerald_jax.studies.study import run as run_study
from emerald_jax.training.rundir import EPISODES_FILE, read_rows

FOLDER = Path(__file__).resolve().parents[1] / "experiments"
STUDIES = ("latent", "backbone", "decoding_steps", "prior", "horizon", "memory")

#: Pictures that a study draws.
PICTURES = {"curves", "points", "strip", "decoding"}
EXPECTED = {"horizon": PICTURES - {"points"}, "memory": {"points"}}


def load(name):
    spec = importlib.util.spec_from_file_location(f"experiments_{name}", FOLDER / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.STUDY


@pytest.mark.parametrize("name", STUDIES)
def test_every_scale_can_work(name):
    study = load(name)
    assert set(study.scales) == {"smoke", "cpu", "paper"}
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


def test_evidence_reads_a_run(run, tmp_path):
    spec = importlib.util.spec_from_file_location("evidence", FOLDER / "evidence.py")
    evidence = importlib.util.module_from_spec(spec)
    sys.modules["evidence"] = evidence  # dataclasses look their module up
    spec.loader.exec_module(evidence)
    found = evidence.read_run(Path(run))
    rows = read_rows(Path(run) / EPISODES_FILE)
    scores = [row["score"] for row in rows]
    assert found["last_100"] == pytest.approx(np.mean(scores[-100:]))
    width = min(100, len(scores))
    assert found["curve"][0] == [rows[width - 1]["step"], round(np.mean(scores[:width]), 3)]
    assert found["curve"][-1] == [rows[-1]["step"], round(np.mean(scores[-width:]), 3)]
    assert found["config"] == json.loads((Path(run) / "config.json").read_text())
    assert found["achievements"] == {"fly": 0, "wave": 50}
    assert found["score"] == pytest.approx(np.sqrt(51) - 1)
    lengths = {len(values) for values in found["metrics"].values()}
    assert len(lengths) == 1
    assert found["metrics"]["loss/image"] == [9.0, 4.5, 3.0, 2.25, 1.8]
    assert found["metrics"]["model/pixel_error"][2] is None
    (tmp_path / "seed_0.json").write_text(json.dumps(found))
    evidence.draw(evidence.RUNS["quickstart"], tmp_path)
    assert (tmp_path / "curve.png").stat().st_size > 1000
    for words in (asked.words for asked in evidence.RUNS.values()):
        assert words[0] in PRESETS
