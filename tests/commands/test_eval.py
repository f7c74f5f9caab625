"""``emerald-jax eval``: arguments, defaults, and play without a run."""

import json
from pathlib import Path

import numpy as np
import pytest

from emerald_jax import cli
from emerald_jax.commands import runs
from emerald_jax.commands.runs import default_episodes
from emerald_jax.envs import Episode, registry
from emerald_jax.envs.base import VectorStep
from emerald_jax.presets import get_preset
from emerald_jax.run.directory import write_config
from emerald_jax.training import evaluate


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ("--random crafter --checkpoint 3", "--random ENV plays without a run"),
        ("nowhere --random crafter", "--random ENV plays without a run"),
        ("nowhere --image-size 64", "a run keeps the settings of its environment"),
        ("--random crafter --image-size 0", "--image-size is 0: it must be at least 1"),
        ("--random crafter --max-steps 0", "--max-steps is 0: it must be at least 1"),
        ("--random craffter", "unknown environment craffter; nearest: crafter"),
        ("--random crafter --frame-skip 3", "crafter does not support envs.frame_skip"),
    ],
)
def test_wrong_arguments_end_in_one_line(arguments, line, capsys):
    assert cli.main(["eval", *arguments.split()]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"emerald-jax: {line}")
    assert error.count("\n") == 1


def test_benchmarks_have_their_own_number_of_episodes():
    names = ("crafter", "atari:Pong", "gymnax:Catch-bsuite", "my_module:make_env")
    assert [default_episodes(name) for name in names] == [256, 100, 16, 16]


def test_random_play(tmp_path, scripted_env, monkeypatch, capsys):
    monkeypatch.setattr(registry, "_OWN", {})
    registry.register("scripted", scripted_env)
    file = tmp_path / "random.json"
    arguments = "--random scripted --episodes 3 --image-size 4 --time-limit 2"
    assert cli.main(["eval", *arguments.split(), "--json", str(file)]) == 0
    assert "scripted, 3 episodes, random actions" in capsys.readouterr().out
    result = json.loads(file.read_text())
    # Episodes of two steps with rewards 1 and 2.
    assert (result["return"], result["length"], result["episodes"]) == (3.0, 2.0, 3)
    assert (result["mode"], result["time_limit"], result["image_size"]) == ("random", 2, 4)


def test_a_run_is_evaluated_with_the_options_and_the_result_kept(tmp_path, monkeypatch, capsys):
    write_config(tmp_path, get_preset("tiny"))
    seen = {}

    def evaluate_run(run, episodes, *, watch, **options):
        seen.update(options, episodes=episodes)
        image, no = np.zeros((1, 16, 16, 3), np.uint8), np.zeros(1, bool)
        action, reward = np.zeros(1, np.int32), np.zeros(1, np.float32)
        for last in (no, ~no):
            watch(VectorStep(image, action, reward, no, last, no))
        episode = Episode(env=0, score=1.0, length=9, terminal=True)
        facts = {"seed": options["seed"], "env_steps": 3}
        return evaluate.report_of("gymnax:Catch-bsuite", 5, options["mode"], (episode,), facts)

    monkeypatch.setattr(evaluate, "evaluate_run", evaluate_run)
    chosen = {"--seed": "4", "--checkpoint": "5", "--mode": "mode", "--max-steps": "900"}
    pairs = [text for pair in chosen.items() for text in pair]
    arguments = ["eval", str(tmp_path), "--video", *pairs]
    assert cli.main(arguments) == 0
    assert seen == {"episodes": 16, "mode": "mode", "seed": 4, "checkpoint": 5, "max_steps": 900}
    folder = tmp_path / "evals" / "5-4"
    assert f"written to {folder}" in capsys.readouterr().out
    found = sorted(path.name for path in folder.iterdir())
    assert found == ["episode.mp4", "result.json", "stats.jsonl"]
    # An export is complete as it is.
    (tmp_path / "export.json").write_text("{}")
    assert cli.main(arguments) == 2
    assert "is an export" in capsys.readouterr().err


def test_several_runs_are_played_one_after_another(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scores = {"runs/a-0": 1.0, "runs/a-1": 2.0, "runs/a-2": 3.0}
    monkeypatch.setattr(runs, "read_config", lambda run: get_preset("tiny"))
    monkeypatch.setattr(runs, "_play_a_run", lambda run, options: scores[run])
    assert cli.main(["eval", *scores]) == 0
    assert capsys.readouterr().out == "3 runs: return 2.000 ± 0.577 (standard error of runs)\n"
    assert cli.main(["eval", *scores, "--json", str(tmp_path / "x")]) == 2
    assert "--json holds one result" in capsys.readouterr().err


def test_a_directory_that_is_no_run_is_refused_before_any_play(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(runs, "_play_a_run", lambda *_: pytest.fail("played"))
    assert cli.main(["eval", str(tmp_path), str(tmp_path / "nothing")]) == 2
