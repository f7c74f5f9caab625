"""The experiment files: each runs at its smallest scale, all scales are valid."""

from __future__ import annotations

import importlib
import json
import re
import shutil
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from emerald_jax.commands.train import parse_train
from emerald_jax.run.directory import EPISODES_FILE, read_rows
from experiments import evidence, last_ball, overfit, plot, ppo
from experiments.study import page
from experiments.study.plan import config_of
from experiments.study.run import run as run_study

FOLDER = Path(__file__).resolve().parents[1] / "experiments"
PAGES = [FOLDER / "README.md", *sorted(FOLDER.glob("results/*/README.md"))]
STUDIES = (
    *("latent", "backbone", "decoding_steps", "decoders", "prior"),
    *("prior_input", "horizon", "memory", "agents"),
)

#: Pictures that a study draws.
PICTURES = {"curves", "points", "strip", "decoding"}
EXPECTED = {
    "decoders": PICTURES - {"curves"},
    "horizon": PICTURES - {"points"},
    "memory": {"points"},
    "agents": {"points"},
}


def load(name):
    return importlib.import_module(f"experiments.{name}").STUDY


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


def test_a_baseline_has_a_row_for_every_game(tmp_path):
    known = {"settings": ppo.SETTINGS, "machine": "a machine", "cpu_seconds": 7.25}
    for game, steps, curve in (("A", 100, [[1, 2], [3, 4.5]]), ("B", 50, [[0, 9]])):
        last = [points[-1] for points in curve]
        found = {"game": game, "steps": steps, "curve": curve, "return": last}
        found["error"] = [0.25] * len(last)
        (tmp_path / f"{game}.json").write_text(json.dumps(found | known))
    text = ppo.write_results(tmp_path).read_text()
    assert "| A | 100 | 3.25 | 2.00 ± 0.25, 4.50 ± 0.25 | 7.2 |" in text
    assert "| B | 50 | 9.00 | 9.00 ± 0.25 | 7.2 |" in text
    assert "`num_envs` 64" in text
    assert (tmp_path / "curve.png").stat().st_size > 5000


def test_a_time_limit_ends_an_episode_of_the_baseline_too():
    class Env:
        answer = (False, False)

        def step(self, key, state, action, params):
            return "seen", state, 1.0, *map(np.bool_, self.answer), {}

    env = Env()
    for env.answer in ((False, False), (True, False), (False, True)):
        step = ppo.OneEnd(env).step(0, "state", 1, None)
        assert step == ("seen", "state", 1.0, any(env.answer), {})
    assert not hasattr(ppo.OneEnd(env), "__deepcopy__")


@pytest.mark.slow
def test_ppo_learns_a_little(tmp_path):
    pytest.importorskip("rejax", reason="needs the extra: baseline")
    ppo.main(["--steps", "200000", "--seeds", "2", "--out", str(tmp_path)])
    (path,) = tmp_path.glob("*.json")
    found = json.loads(path.read_text())
    assert np.shape(found["curve"])[0] == 2
    assert min(found["return"]) > 2  # random play: 0.5


def test_every_result_has_a_page():
    text = PAGES[0].read_text()
    assert len(text.splitlines()) <= 60
    for folder in (FOLDER / "results").iterdir():
        assert f"(results/{folder.name}/README.md)" in text


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.parent.name)
def test_pages_can_be_read(path):
    text = path.read_text()
    for target in re.findall(r"\]\(([^)]+)\)", text):
        assert (path.parent / target).exists(), target
    for row in re.findall(r"^\|(.+)\|$", text, re.MULTILINE):
        # A link's target is not read; a mean and its interval are one number.
        cells = [re.sub(r"\]\([^)]+\)", "]", cell).strip() for cell in row.split(" | ")]
        assert max(map(len, cells)) <= 60, row
    if path != PAGES[0]:
        reading = text.split("## Reading")[1].split("## Numbers")[0].strip()
        assert 1 <= len(reading.split("\n\n")[0].splitlines()) <= 5


def test_a_page_is_its_result(tmp_path):
    committed = FOLDER / "results" / "memory"
    folder = tmp_path / "memory"
    shutil.copytree(committed, folder)
    page.write_study_page(folder)
    assert (folder / "README.md").read_text() == (committed / "README.md").read_text()


def test_a_driven_paddle_reaches_its_column_and_the_game_decides():
    game, params = last_ball.load_game()
    keys = jax.random.split(jax.random.key(0), 8)
    _, state = jax.vmap(lambda key: game.reset_env(key, params))(keys)
    steps = 14  # the first ball is at the paddle after six or seven
    actions, saved = map(np.asarray, last_ball.drive_all(state, steps))
    assert actions.shape == (8, last_ball.COLUMNS, steps)
    # The ball comes straight down a diagonal: a paddle saves it in one column or in its neighbour.
    assert (saved.sum(1) >= 1).all()
    assert (saved.sum(1) <= 2).all()
    for column in range(last_ball.COLUMNS):
        now, lost = jax.tree.map(lambda x: x[0], state), False
        for action in actions[0, column]:
            _, now, _, over = last_ball.step_game(game, params, now, action)
            lost |= bool(over)
        assert lost != saved[0, column]
        assert now.pos == column


@pytest.mark.slow
def test_overfit_stops_at_its_target(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(overfit, "TARGET", 1.0)
    monkeypatch.setattr(sys, "argv", ["overfit", "--preset", "tiny", "--out", str(tmp_path)])
    overfit.main()
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["updates"] == 20, "the target is checked every 20 updates"
    assert result["reached"]
    assert "20 updates  pixel error" in capsys.readouterr().out
    assert f"| pixel_error | {result['pixel_error']} |" in (tmp_path / "README.md").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("name", STUDIES)
def test_smoke(name, tmp_path):
    study = load(name)
    run_study(study, study.scales["smoke"], tmp_path)
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["tables"][0]["rows"]
    assert (tmp_path / "README.md").is_file()
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
    found = evidence.read_run(Path(run))
    rows = read_rows(Path(run) / EPISODES_FILE)
    scores = [row["score"] for row in rows]
    assert found["last_100"] == pytest.approx(np.mean(scores[-100:]))
    width = min(100, len(scores) // 4)
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
    (tmp_path / "seed_0.json").write_text(json.dumps({"seed": 7, "sittings": [], **found}))
    row = evidence.write_seeds_page(tmp_path, 0.9).read_text().split("## Numbers")[1]
    assert f"| seed_0 | 7 | {found['last_100']:.2f} |" in row
    evidence.draw(evidence.RUNS["quickstart"], tmp_path)
    assert (tmp_path / "curve.png").stat().st_size > 1000
    for kind in evidence.RUNS.values():
        assert parse_train(kind.arguments).preset == kind.arguments[0]


def test_evidence_resumes_a_run(run, tmp_path, monkeypatch):
    codes, commands = [75, 0], []

    def train(command, env):
        commands.append(command)
        shutil.copytree(run, tmp_path / "crafter-3", dirs_exist_ok=True)
        return codes.pop(0)

    monkeypatch.setattr(evidence, "_wait", train)
    monkeypatch.setattr(evidence, "_machine", lambda: f"commit {len(commands)}")
    arguments = (evidence.RUNS["crafter"], 3, tmp_path / "crafter-3", "")
    with pytest.raises(SystemExit) as stopped:
        evidence.run_seed(*arguments)
    assert stopped.value.code == 75
    notes = json.loads((tmp_path / "crafter-3.json").read_text())
    notes["sittings"][0]["seconds"] = 600.0
    (tmp_path / "crafter-3.json").write_text(json.dumps(notes))
    found = evidence.run_seed(*arguments)
    assert commands[1][-4:-1] == ["--max-minutes", "15.00", "--logdir"], "only what is left"
    assert [sitting["machine"] for sitting in found["sittings"]] == ["commit 0", "commit 1"]
    assert found["seconds"] >= 600
    assert found["episodes"] == 20
    assert found["done"] == 1
    assert str(tmp_path) not in json.dumps(found["sittings"]), "no path of this machine"
    evidence.run_seed(*arguments)
    assert len(commands) == 2, "a finished run is only read"


def test_evidence_refuses_in_one_line(run, tmp_path, capsys):
    for why, refused in (
        ("was not begun by", lambda: evidence.run_seed(evidence.RUNS["quickstart"], 0, run, "")),
        ("no episode of", lambda: evidence.read_run(tmp_path)),
    ):
        with pytest.raises(SystemExit) as left:
            refused()
        message = capsys.readouterr().err
        assert left.value.code == 2
        assert message.startswith("evidence: ")
        assert why in message
        assert message.count("\n") == 1


@pytest.mark.parametrize(
    ("name", "file", "drawn"),
    [
        ("backbone_minatar", "result.json", {"curves.png", "points.png"}),
        ("decoders_space_invaders", "result.json", {"points.png"}),
        ("minatar_stages", "seed_0.json", {"curve.png"}),
        ("ppo", "Breakout-MinAtar-1000000.json", {"curve.png"}),
    ],
)
def test_figures_are_drawn_again_from_their_numbers(name, file, drawn, tmp_path, capsys):
    folder = tmp_path / name
    shutil.copytree(plot.RESULTS / name, folder)
    for path in folder.glob("*.png"):
        path.write_bytes(b"")
    plot.main([str(folder)])
    assert {path.name for path in folder.glob("*.png") if path.stat().st_size} == drawn
    assert capsys.readouterr().out.count("\n") == len(drawn)
    first = {name: (folder / name).read_bytes() for name in drawn}
    # Other numbers, another figure.
    numbers = json.loads((folder / file).read_text(), parse_float=lambda x: float(x) + 1)
    (folder / file).write_text(json.dumps(numbers))
    plot.main([str(folder)])
    assert all((folder / name).read_bytes() != first[name] for name in drawn)


def test_only_folders_can_be_drawn(tmp_path, capsys):
    plot.main([str(tmp_path)])
    assert capsys.readouterr().out == "", "nothing to draw"
    with pytest.raises(SystemExit, match="2"):
        plot.main([str(tmp_path / "absent")])
    assert capsys.readouterr().err.endswith("is no folder: name one of experiments/results\n")
    unknown = tmp_path / "mine"
    unknown.mkdir()
    for name in ("curve.png", "seed_0.json"):
        (unknown / name).touch()
    with pytest.raises(SystemExit, match="2"):
        plot.main([str(unknown)])
    assert "its name must begin with that of a run (quickstart, " in capsys.readouterr().err
