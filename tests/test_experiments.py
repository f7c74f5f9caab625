"""The experiment files: each runs at its smallest scale, and all scales can work."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest

from emerald_jax.studies.study import config_of, run

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
    run(study, study.scales["smoke"], tmp_path)
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
    run(study, study.scales["smoke"], tmp_path)
    assert [path.stat().st_mtime_ns for path in cells] == before
