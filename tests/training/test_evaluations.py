"""Evaluations on disk: one directory each, in the formats that are promised."""

import json

import pytest

from emerald_jax.envs import Episode
from emerald_jax.run.evaluations import read_evaluations, result_of, save_evaluation
from emerald_jax.training.evaluate import report_of


def report(*scores, mode="sample", seed=0, updates=7, env="crafter", broken=0):
    names = {"wood": 2, "iron": 0}
    episodes = [
        Episode(env=0, score=s, length=9, terminal=True, extra={"achievements": names})
        for s in scores
    ]
    fault = Episode(env=0, score=0.0, length=1, terminal=False, extra={"fault": "died"})
    facts = {"env_steps": 112, "seed": seed, "time_limit": 10_000}
    return report_of(env, updates, mode, (*episodes, *[fault] * broken), facts)


def test_a_result_says_how_it_came_about(tmp_path):
    folder = save_evaluation(tmp_path, report(1.0, 3.0, broken=2))
    assert folder == tmp_path / "evals" / "7-0"
    result = json.loads((folder / "result.json").read_text())
    assert result == result_of(report(1.0, 3.0, broken=2))
    assert (result["return"], result["standard_error"]) == (2.0, 1.0)
    assert (result["episodes"], result["left_out"], result["env_steps"]) == (2, 2, 112)
    assert result["rates"] == {"iron": 0.0, "wood": 100.0}
    assert result["score"] == pytest.approx(101**0.5 - 1)
    lines = [json.loads(line) for line in (folder / "stats.jsonl").read_text().splitlines()]
    assert lines[1] == {"length": 9, "reward": 3.0, "achievement_wood": 2, "achievement_iron": 0}
    assert len(lines) == 2
    assert "2 more were cut short by a fault" in str(report(1.0, 3.0, broken=2))


def test_capped_episodes_are_mentioned():
    ends = {"score": 1.0, "terminal": False}
    cut = [Episode(env=i, length=30_000, extra={"capped": 30_000}, **ends) for i in range(2)]
    found = report_of("mine", 7, "sample", (Episode(env=2, length=9, **ends), *cut), {})
    lines = str(found).splitlines()
    assert "2 of these episodes did not end within 30,000 steps" in lines
    assert lines[0] == "mine after 7 updates, 3 episodes, actions by sample"
    assert "did not end" not in str(report(1.0))


def test_every_kind_of_evaluation_has_a_directory_of_its_own(tmp_path):
    first = save_evaluation(tmp_path, report(1.0))
    assert save_evaluation(tmp_path, report(1.0)) == first
    more = save_evaluation(tmp_path, report(1.0, 2.0))
    mode = save_evaluation(tmp_path, report(1.0, mode="mode"))
    other = save_evaluation(tmp_path, report(1.0, seed=3))
    later = save_evaluation(tmp_path, report(1.0, updates=20))
    folders = [first, more, mode, other, later]
    assert [f.name for f in folders] == ["7-0", "7-0-2", "7-0-3", "7-3", "20-0"]
    found = read_evaluations(tmp_path)
    assert [r["folder"].name for r in found] == ["7-0", "7-0-2", "7-0-3", "7-3", "20-0"]


def test_a_film_is_moved_into_it_and_wrecks_are_passed_over(tmp_path):
    video = tmp_path / "draft.mp4"
    video.write_bytes(b"film")
    folder = save_evaluation(tmp_path, report(1.0), video)
    assert (folder / "episode.mp4").read_bytes() == b"film"
    assert not video.exists()
    (tmp_path / "evals" / "9-0").mkdir()
    (tmp_path / "evals" / "9-0" / "result.json").write_text('{"return": 1')
    assert [r["updates"] for r in read_evaluations(tmp_path)] == [7]
    assert read_evaluations(tmp_path / "nowhere") == []


def test_atari_scores_are_normalised():
    found = report(14.6, env="atari:Pong")
    assert found.human_normalised == pytest.approx(1)
    assert result_of(found)["human_normalised"] == pytest.approx(1)
    assert "human-normalised score 1.000" in str(found)
    assert report(1.0).human_normalised is None
