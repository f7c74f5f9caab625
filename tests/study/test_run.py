"""A study computes every cell once, refuses cells of other settings, and writes its results."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from unittest import mock

import numpy as np
import pytest

from emerald_jax.config import ConfigError
from emerald_jax.presets import get_preset
from emerald_jax.run.directory import EPISODES_FILE
from emerald_jax.training.train import INTERRUPTED
from experiments.study import run as study
from experiments.study.plan import Scale, Study, Variant, change, config_of
from experiments.study.run import run

SCALE = Scale(preset="tiny", records=400, updates=3, seeds=2, windows=4, context=3, horizon=4)
VARIANTS = [
    Variant(label="a", readings={"": {}, "S = 0": {"behavior.decode_steps": 0}}),
    Variant(label="b!", changes={"model.prior": "linear"}),
]
STUDY = Study(
    name="test",
    claim="A claim.",
    scales={"smoke": SCALE},
    variants=lambda scale: VARIANTS,
    metrics={"error": "error"},
    curves={"error": "error"},
    points={"error": "error"},
    against="a",
)


@pytest.fixture
def computed(monkeypatch):
    """Cells computed so far, by a stand-in for the training of world models."""
    seen = []

    def fake(maker, variant, seed):
        seen.append((variant.label, seed))
        values = {"error": (seed + np.arange(8.0).reshape(4, 2)).tolist()}
        return {
            "data": "crafter",
            "readings": dict.fromkeys(variant.readings, values),
            "curve": [[3, {"loss/model": 1.0, "model/pixel_error": 0.5}]],
            "parameters": {"total": 7},
            "updates": 3,
            "seconds_per_update": 0.1,
        }

    monkeypatch.setattr(study.Work, "world", fake)
    monkeypatch.setattr(study.Work, "finish", lambda maker, variants: None)
    return seen


def test_every_cell_is_computed_once(tmp_path, computed):
    run(STUDY, SCALE, tmp_path)
    assert computed == [("a", 0), ("a", 1), ("b!", 0), ("b!", 1)]
    result = json.loads((tmp_path / "result.json").read_text())
    measured, differences = result["tables"]
    assert [row[0] for row in measured["rows"]] == ["a", "a S = 0", "b!"]
    assert measured["rows"][0][1].startswith("4.000 [")
    # All variants have equal values here: their differences are 0, whatever the seeds are.
    assert differences["rows"] == [[name, "0.000 [0.000, 0.000]"] for name in ("a S = 0", "b!")]
    assert result["parameters"] == {"a": 7, "b!": 7}
    assert [(row["variant"], row["seed"]) for row in result["training"]] == computed
    # Seed 1 is 1 above seed 0, whose windows' means are 3 and 4 at its two steps.
    assert result["means"]["a"]["error"]["mean"] == [3.5, 4.5]
    assert result["means"]["a"]["error"]["seeds"] == [3.5, 4.5]
    page = (tmp_path / "README.md").read_text()
    title, about, numbers, *_ = page.split("\n\n")
    assert (title, numbers) == (f"# {tmp_path.name}", "## Numbers")
    assert about == "[`python -m experiments.test`](../../test.py): A claim."
    assert "| a S = 0 | 0.000 [0.000, 0.000] |" in page
    assert "![curves.png](curves.png)" in page
    assert "| b! | 1 | 3 | 0.100 | 7 | 0.5 |" in page
    assert (tmp_path / "curves.png").is_file()
    assert (tmp_path / "points.png").is_file()
    # Stopped and resumed: only the missing cell. What was written by hand stays.
    page = page.replace("## Numbers", "## Reading\n\nBy hand.\n\n## Numbers")
    (tmp_path / "README.md").write_text(page)
    (tmp_path / "cells" / "a-1.json").unlink()
    run(STUDY, SCALE, tmp_path)
    assert computed[4:] == [("a", 1)]
    assert (tmp_path / "README.md").read_text() == page
    # One more seed: that one alone.
    run(STUDY, dataclasses.replace(SCALE, seeds=3), tmp_path)
    assert computed[5:] == [("a", 2), ("b!", 2)]


def test_cells_of_other_settings_are_refused(tmp_path, computed):
    run(STUDY, SCALE, tmp_path)
    other = dataclasses.replace(SCALE, updates=4)
    with pytest.raises(ConfigError, match=r"a-0\.json is a cell of other settings"):
        run(STUDY, other, tmp_path)
    assert len(computed) == 4


def test_impossible_variants_are_refused_before_anything_runs(tmp_path, computed):
    bad = Variant(label="c", changes={"model.latent": "vector", "model.prior": "autoregressive"})
    broken = dataclasses.replace(STUDY, variants=lambda scale: [*VARIANTS, bad])
    with pytest.raises(ConfigError, match="vector has only one"):
        run(broken, SCALE, tmp_path / "out")
    assert not computed
    assert not (tmp_path / "out").exists()


def test_settings_are_changed_by_name():
    config = change(get_preset("tiny"), {"model.width": 32, "steps": 7})
    assert (config.model.width, config.steps) == (32, 7)
    with pytest.raises(ConfigError, match=r"unknown setting model\.widht"):
        change(config, {"model.widht": 3})
    agent = dataclasses.replace(SCALE, agent_preset="quickstart", agent_changes={"steps": 9})
    assert config_of(agent, Variant(label="x", agent=True)).preset == "quickstart"
    assert config_of(agent, Variant(label="x", agent=True)).steps == 9
    assert config_of(agent, VARIANTS[1]).model.prior == "linear"


def test_a_refusal_is_one_line(tmp_path, computed, capsys):
    arguments = ["--out", str(tmp_path)]
    assert study.main(STUDY, arguments) == 0
    assert study.main(STUDY, [*arguments, "--updates", "4"]) == 2
    message = capsys.readouterr().err
    assert message.startswith("emerald-jax: ")
    assert message.endswith("is a cell of other settings: choose another --out\n")
    assert message.count("\n") == 1


def test_a_stopped_agent_is_no_finished_cell(tmp_path, monkeypatch, capsys):
    codes = [INTERRUPTED, 0]

    def train(config):
        logdir = Path(config.logdir)
        logdir.mkdir(parents=True, exist_ok=True)
        (logdir / EPISODES_FILE).write_text('{"score": 1.0}\n{"score": 0.0}\n')
        return mock.Mock(exit_code=codes.pop(0), stopped="SIGTERM")

    monkeypatch.setattr(study, "train", train)
    scale = dataclasses.replace(SCALE, agent_preset="tiny", seeds=1)
    agents = dataclasses.replace(
        STUDY,
        scales={"smoke": scale},
        variants=lambda scale: [Variant(label="a", agent=True)],
        metrics={"score": "return"},
        curves={},
        points={"score": "return"},
    )
    arguments = ["--out", str(tmp_path)]
    assert study.main(agents, arguments) == INTERRUPTED
    assert not list(tmp_path.glob("cells/*"))
    assert study.main(agents, arguments) == 0
    assert json.loads((tmp_path / "cells" / "a-0.json").read_text())["episodes"] == 2
