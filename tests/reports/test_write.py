"""The complete report: sections, pictures, random play, and refusals."""

import dataclasses

import numpy as np
import pytest
from PIL import Image

from emerald_jax import cli
from emerald_jax.config import ConfigError
from emerald_jax.presets import get_preset
from emerald_jax.reports.runs import (
    about,
    chance_played,
    changed_settings,
    entries,
    read_runs,
    table,
)
from emerald_jax.reports.write import write_report


def catch_rows(count, score):
    return [{"step": 9 * (i + 1), "score": score, "length": 9} for i in range(count)]


def test_one_section_per_benchmark(make_run, crafter_episodes, evaluation, tmp_path, capsys):
    pong = {"updates": 1, "seed": 0, "env": "atari:Pong", "mode": "sample", "episodes": 100}
    paths = [
        make_run("t", "tiny", episodes=catch_rows(20, -1.0)),
        make_run("p", "atari100k", evals=[{**pong, "return": 3.0, "env_steps": 100_000}]),
        make_run("c", "crafter", episodes=crafter_episodes(9, 99, True), evals=[evaluation()]),
    ]
    out = tmp_path / "out"
    assert cli.main(["report", *map(str, paths), "--out", str(out)]) == 0
    text = (out / "report.md").read_text()
    assert capsys.readouterr().out.startswith(text)
    sections = [line for line in text.splitlines() if line.startswith("## ")]
    assert sections == ["## Crafter", "## Atari 100k", "## gymnax:Catch-bsuite", "## Runs"]
    pictures = {"crafter.png", "crafter-rates.png", "atari100k.png", "gymnax-Catch-bsuite.png"}
    assert {path.name for path in out.iterdir()} == {"report.md", *pictures}
    for name in pictures:
        assert f"]({name})" in text
        pixels = np.asarray(Image.open(out / name))[::5, ::5]
        assert len(np.unique(pixels.reshape(-1, pixels.shape[-1]), axis=0)) > 10
    # Every line of a table has as many cells as its heading.
    for line in text.splitlines():
        if line.startswith("| agent"):
            cells = line.count(" | ")
        elif line.startswith("| ours"):
            assert line.count(" | ") == cells


def test_random_play_is_the_episodes_before_the_first_update(make_run):
    # tiny's prefill is 64 steps: seven episodes of nine steps end within it.
    rows = catch_rows(7, -1.0) + [{**row, "step": row["step"] + 63} for row in catch_rows(50, 1.0)]
    found = entries(read_runs([make_run("a", "tiny", episodes=rows)]))
    assert [(e.label, e.results) for e in found] == [
        ("ours: tiny", [(pytest.approx(43 / 57), 57)]),
        ("random play", [(-1.0, 7)]),
    ]


def test_random_play_can_be_played_for_the_report(make_run, tmp_path):
    # Catch ends after nine steps with 1 or -1; the run itself has no random episode.
    path = make_run("a", "tiny", episodes=[{"step": 500, "score": 1.0, "length": 9}])
    chance = chance_played(read_runs([path])[0], 6)
    assert len(chance.scores) == 6
    assert set(chance.scores) <= {-1.0, 1.0}
    text = write_report([path], tmp_path / "out", random_episodes=6)
    assert f"| random play | {np.mean(chance.scores):.2f} | – | 6 | complete episodes" in text


def test_seeds_and_their_standard_deviation(make_run):
    paths = [make_run(f"{s}", "tiny", seed=s, episodes=catch_rows(8, float(s))) for s in (0, 2)]
    runs = read_runs(paths)
    found = table(runs, entries(runs))
    assert found.rows[0][:3] == ("ours: tiny", "1.00 ± 1.41", "2")
    twice = [make_run(name, "tiny", episodes=catch_rows(8, 0.0)) for name in "ab"]
    runs = read_runs(twice)
    assert "share a seed (0)" in " ".join(table(runs, entries(runs)).notes)


def test_a_run_without_episodes_is_reported(make_run, tmp_path):
    paths = [make_run(preset, preset) for preset in ("tiny", "crafter", "atari100k")]
    text = write_report(paths, tmp_path / "out")
    assert "Never evaluated, so not in the table" in text


def test_settings_that_make_another_experiment(make_run):
    path = make_run(
        "a", "tiny", seed=9, logdir="x", devices=3, envs={"workers": "process", "processes": 3}
    )
    (run,) = read_runs([path])
    assert changed_settings(run.config) == {}
    (run,) = read_runs([make_run("b", "tiny", train_ratio=2.0, envs={"time_limit": 5})])
    assert run.label == "ours: tiny, train_ratio 2.0, envs.time_limit 5"


def test_different_experiments_have_different_labels(make_run, tmp_path):
    # All differ from the preset in six settings; only the last ones differ between the runs.
    many = dict(train_ratio=2.0, envs={"time_limit": 5, "count": 3, "image_size": 32})
    tiny = get_preset("tiny")
    paths = [
        make_run(
            str(i),
            "tiny",
            episodes=catch_rows(8, float(i)),
            replay=dataclasses.replace(tiny.replay, prefill=32, capacity=3000),
            behavior=dataclasses.replace(tiny.behavior, entropy=scale),
            **many,
        )
        for i, scale in enumerate((0.1, 0.2))
    ]
    labels = [run.label for run in read_runs(paths)]
    assert labels == [
        f"ours: tiny, behavior.entropy {scale}, train_ratio 2.0, envs.count 3, "
        "envs.image_size 32, 3 more changed"
        for scale in (0.1, 0.2)
    ]
    # Their curves are not taken for two seeds of one agent.
    text = write_report(paths, tmp_path / "out")
    assert all(f"| {label} |" in text for label in labels)


@pytest.mark.parametrize(
    ("steps", "text"), [(0, "0"), (99, "99"), (3012, "3,000"), (996_000, "1,000,000")]
)
def test_steps_are_rounded_to_two_digits(steps, text):
    assert about(steps) == text


def test_bad_paths_are_refused(make_run, tmp_path):
    run = make_run("a", "tiny")
    with pytest.raises(ConfigError, match="is given twice"):
        read_runs([run, run / "."])
    with pytest.raises(ConfigError, match="does not exist"):
        read_runs([tmp_path / "nowhere"])
    assert cli.main(["report", str(run), "--out", str(run / "config.json")]) == 2
