"""Sweeps: what a file means, which runs are started, and what their table shows."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from emerald_jax import cli
from emerald_jax.commands.sweep import STOPPED, read_sweep
from emerald_jax.commands.train import parse_train
from emerald_jax.run import Run
from emerald_jax.run.directory import RunLock, saved_steps
from tests.sweep_cases import FILE, NAMES, PYTHON, ROOT, begin, started, states, sweep, wait_for


def test_every_combination_is_a_run(folder: Path) -> None:
    jobs, _ = read_sweep(folder / "a.toml", Path("out"))
    assert [job.path.name for job in jobs] == NAMES
    for job in jobs:
        config = parse_train(job.command[4:])
        assert config == job.config
        assert Path(config.logdir) == folder / "out" / job.path.name
        assert (config.steps, config.log.pictures, config.log.quiet) == (200, 0, True)
    assert [(j.config.behavior.entropy, j.config.seed) for j in jobs] == [
        *((0.01, 0), (0.01, 1), (0.03, 0), (0.03, 1))
    ]


def test_spellings_of_the_same_settings(folder: Path) -> None:
    jobs, _ = read_sweep(folder / "a.toml", Path("out"))
    text = FILE.replace("log.pictures = 0", '"log.pictures" = 0').replace(
        "behavior.entropy = [1e-2, 3e-2]", '"behavior.entropy" = [0.010, 0.03]'
    )
    (folder / "a.toml").write_text(text.replace("quiet = true", "log.quiet = true"))
    again, _ = read_sweep(folder / "a.toml", Path("out"))
    assert [job.config for job in again] == [job.config for job in jobs]
    assert [job.path for job in again] == [job.path for job in jobs]


def test_different_values_never_share_a_directory(folder: Path) -> None:
    envs = ["gym:a/b", "gym:a-b", "gym:a%2Fb", "gym:a,seed=0"]
    (folder / "a.toml").write_text(f'preset = "tiny"\n[grid]\nenv = {envs}\n')
    jobs, _ = read_sweep(folder / "a.toml", Path("out"))
    assert len({job.path.name for job in jobs}) == 4
    assert all(job.path.parent == Path("out") for job in jobs)


@pytest.mark.parametrize(
    ("old", "new", "line"),
    [
        ("preset", "preste", "unknown entry preste; nearest: preset"),
        ("seeds", "steps = 3\nseeds", "unknown entry steps"),
        ('"tiny"', '"tniy"', "unknown preset 'tniy'; nearest: tiny"),
        ('"tiny"', "3", "preset takes a text, got 3"),
        ('preset = "tiny"', "", "name a preset: quickstart, minatar"),
        ("[0, 1]", "[]", "seed is an empty list"),
        ("[0, 1]", "[0, 0]", "behavior.entropy=0.01,seed=0 is listed twice"),
        ("[0, 1]", "[0.5]", "seed takes an integer, got 0.5"),
        ("[0, 1]", "[-1]", "seed is -1: it must lie in"),
        ("[0, 1]", "0", "seeds takes a list, got 0"),
        ("steps =", "stpes =", "unknown setting --stpes; nearest: --steps"),
        ("steps = 200", "steps = 2e2", "steps takes an integer, got 200.0"),
        ("steps = 200", 'steps = "200"', "steps takes an integer, got '200'"),
        ("steps = 200", "steps = -5", "steps is -5: it must be at least 1"),
        ("steps = 200", "env = 3", "env takes a text, got 3"),
        ("steps = 200", 'env = ["a", "b"]', "env takes a text, got ['a', 'b']"),
        ("steps = 200", "model.dtype = true", "model.dtype takes a text, got True"),
        ("steps = 200", 'model.dtype = "f8"', "--model.dtype takes one of auto, float32"),
        ("steps = 200", "model.grid = 5", "envs.image_size 16 cannot reach model.grid 5"),
        ("steps = 200", "optim.model_lr = nan", "--optim.model-lr takes a number, got 'nan'"),
        ("quiet = true", "quiet = 1", "log.quiet takes true or false, got 1"),
        ("quiet = true", "quiet = true\nlog.quiet = true", "log.quiet: give it once, not twice"),
        ("quiet = true", "seed = 3", "seed: write seeds = [0, 1, 2]"),
        ("quiet = true", 'logdir = "x"', "logdir: each run has its own below --out"),
        ("[1e-2, 3e-2]", "[]", "behavior.entropy is an empty list"),
        ("[1e-2, 3e-2]", "0.01", "behavior.entropy takes a list, got 0.01"),
        ("[1e-2, 3e-2]", "[1, 1.0]", "behavior.entropy=1.0,seed=0 is listed twice"),
        ("behavior.entropy", "steps", "steps: give it once, not twice"),
        ("behavior.entropy = [1e-2, 3e-2]", "", "[grid] is empty: give settings with lists"),
        ("[0, 1]", "[0, 1", "cannot be read as TOML: "),
    ],
)
def test_a_wrong_file_ends_in_one_line(
    old: str, new: str, line: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "a.toml").write_text(FILE.replace(old, new, 1))
    before = sorted(folder.iterdir())
    for how in ("--dry-run", "--local", "--submitit"):
        assert cli.main(["sweep", "a.toml", how]) == 2
        output = capsys.readouterr()
        assert output.out == ""
        assert output.err.count("\n") == 1
        assert output.err.startswith(f"emerald-jax: a.toml: {line}")
    assert sorted(folder.iterdir()) == before


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["nowhere.toml"], "nowhere.toml: cannot be read as TOML: No such file"),
        (["."], ".: cannot be read as TOML: Is a directory"),
        (["a.toml", "--jobs", "2"], "--jobs is for --local"),
        (["a.toml", "--local", "--jobs", "0"], "--jobs is 0: it must be at least 1"),
        (["a.toml", "--local", "--submitit"], "argument --submitit: not allowed with"),
        (["a.toml", "--out", "a.toml"], "a.toml: logdir"),
        ([], "the following arguments are required: FILE.toml"),
    ],
)
def test_wrong_arguments_end_in_one_line(
    arguments: list[str], line: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["sweep", *arguments]) == 2
    output = capsys.readouterr()
    assert output.err.startswith(f"emerald-jax: {line}")
    assert output.err.count("\n") == 1
    assert started(folder) == []


def test_a_binary_file_is_refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "a.toml").write_bytes(bytes(range(256)))
    assert cli.main(["sweep", "a.toml"]) == 2
    assert "cannot be read as TOML" in capsys.readouterr().err


def test_listing_writes_nothing_and_needs_no_jax(folder: Path) -> None:
    program = (
        "import sys; from emerald_jax.cli import main; code = main(['sweep', 'a.toml']); "
        "assert 'jax' not in sys.modules; sys.exit(code)"
    )
    before = sorted(folder.iterdir())
    command = [PYTHON, "-c", program]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert states(done.stdout.splitlines()) == 4 * ["not started"]
    assert sorted(folder.iterdir()) == before


def test_complete_runs_are_not_run_again(folder, capsys) -> None:
    code, lines = sweep(capsys, "--local")
    assert code == 0
    assert states(lines) == 4 * ["done"]
    assert lines[1].split() == ["done", "200", "200", "1.00", NAMES[0]]
    assert started(folder) == NAMES
    assert sweep(capsys, "--local")[0] == 0
    assert started(folder) == []


def test_a_changed_grid_adds_runs_and_loses_none(folder, capsys) -> None:
    sweep(capsys, "--local")
    started(folder)
    (folder / "a.toml").write_text(FILE.replace("3e-2]", "3e-2, 0.1]").replace("[0, 1]", "[1, 2]"))
    code, lines = sweep(capsys)
    assert code == 0
    assert lines[-1] == "runs/sweeps/a: 2 done, 4 not started"
    sweep(capsys, "--local")
    assert len(started(folder)) == 4
    assert all(saved_steps(folder / "runs" / "sweeps" / "a" / name) for name in NAMES)


def test_more_steps_continue_and_other_settings_are_refused(folder, capsys) -> None:
    sweep(capsys, "--local")
    started(folder)
    (folder / "a.toml").write_text(FILE.replace("200", "300"))
    assert states(sweep(capsys)[1]) == 4 * ["stopped"]
    sweep(capsys, "--local")
    assert started(folder) == NAMES
    (folder / "a.toml").write_text(FILE.replace("log.pictures = 0", "optim.model_lr = 0.5"))
    assert cli.main(["sweep", "a.toml", "--local"]) == 2
    error = capsys.readouterr().err
    assert "was begun with optim.model_lr 0.0001, not 0.5: choose another --out" in error
    assert started(folder) == []
    assert sweep(capsys, "--out", "other")[0] == 0


def test_a_failed_run_does_not_stop_the_others(folder, capsys) -> None:
    (folder / "plan").write_text(json.dumps({"0": "fail"}))
    code, lines = sweep(capsys, "--local", "--jobs", "2")
    assert code == 1
    assert states(lines) == ["failed", "done", "failed", "done"]
    assert lines[-2:] == [
        f"{name}: exit code 2: emerald-jax: this seed is broken" for name in (NAMES[0], NAMES[2])
    ]
    assert sorted(started(folder)) == sorted(NAMES)
    (folder / "plan").write_text("{}")
    assert states(sweep(capsys)[1]) == ["failed", "done", "failed", "done"]
    assert sweep(capsys, "--local")[0] == 0
    assert started(folder) == [NAMES[0], NAMES[2]]


def test_a_run_that_a_signal_stops_stops_the_sweep(folder, capsys) -> None:
    (folder / "plan").write_text(json.dumps({"1": "leave"}))
    code, lines = sweep(capsys, "--local")
    assert code == STOPPED[0]
    assert states(lines) == ["done", "stopped", "not started", "not started"]
    (folder / "plan").write_text("{}")
    assert sweep(capsys, "--local")[0] == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_reaches_the_runs_and_the_sweep_waits_for_them(number, folder, capsys) -> None:
    (folder / "plan").write_text(json.dumps({"0": "wait", "1": "wait"}))
    runs = [folder / "runs" / "sweeps" / "a" / name for name in NAMES]
    process = begin("--local", "--jobs", "2")
    try:
        wait_for(lambda: all(saved_steps(run) for run in runs[:2]))
        process.send_signal(number)
        assert process.wait(30) == STOPPED[0]
    finally:
        process.kill()
        process.wait()
    assert [saved_steps(run) for run in runs] == [[40, 80], [40, 80], [], []]
    assert states(sweep(capsys)[1]) == ["stopped", "stopped", "not started", "not started"]
    assert sorted(started(folder)) == NAMES[:2]
    (folder / "plan").write_text("{}")
    assert sweep(capsys, "--local")[0] == 0
    assert started(folder) == NAMES


def test_a_run_of_another_process_is_left_alone(folder, capsys) -> None:
    with RunLock(folder / "runs" / "sweeps" / "a" / NAMES[1]):
        code, lines = sweep(capsys, "--local")
        assert code == 0
        assert states(lines) == ["done", "running", "done", "done"]
    assert NAMES[1] not in started(folder)
    assert states(sweep(capsys)[1]) == ["done", "not started", "done", "done"]


def test_a_run_that_was_killed_in_its_final_evaluation_is_run_again(folder, capsys) -> None:
    sweep(capsys, "--local")
    log = folder / "runs" / "sweeps" / "a" / f"{NAMES[0]}.log"
    log.write_text(log.read_text().removesuffix("exit code 0\n"))
    assert states(sweep(capsys)[1]) == ["stopped", "done", "done", "done"]
    started(folder)
    assert sweep(capsys, "--local")[0] == 0
    assert started(folder) == NAMES[:1]


def test_a_limit_of_minutes_completes_a_run(folder, capsys) -> None:
    text = FILE.replace("steps = 200", "steps = 200\nmax_minutes = 1.0")
    (folder / "a.toml").write_text(text)
    sweep(capsys, "--local")
    (folder / "a.toml").write_text(text.replace("200", "300"))  # which a minute does not reach
    assert states(sweep(capsys)[1]) == 4 * ["done"]


def test_runs_side_by_side_have_one_gpu_each(folder, capsys, monkeypatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,7")
    sweep(capsys, "--local", "--jobs", "2")
    names = started(folder)
    assert sorted(name[:-1] for name in names) == NAMES
    assert {name[-1] for name in names} == {"4", "7"}
    assert {name[-1] for name in names[:2]} == {"4", "7"}


@pytest.mark.slow
def test_a_real_sweep_is_stopped_in_the_middle_and_continues(folder, capsys, monkeypatch) -> None:
    monkeypatch.setattr(sys, "executable", PYTHON)
    (folder / "a.toml").write_text(
        FILE.replace("steps = 200", "steps = 1000\ndevices = 1\nlog.eval_episodes = 1")
    )
    runs = [folder / "runs" / "sweeps" / "a" / name for name in NAMES]
    process = begin("--local", "--jobs", "2")
    try:
        # The first two train: an update is logged, most are left.
        wait_for(lambda: all((run / "metrics.jsonl").exists() for run in runs[:2]), 400)
        process.send_signal(signal.SIGTERM)
        assert process.wait(100) == STOPPED[0]
    finally:
        process.kill()
        process.wait()
    code, lines = sweep(capsys)
    assert code == 0
    assert states(lines) == ["stopped", "stopped", "not started", "not started"]
    stopped = [job.steps for job in read_sweep(folder / "a.toml", runs[0].parent)[0][:2]]
    assert all(0 < steps < 1000 for steps in stopped)
    process = begin("--local")
    assert process.wait(2000) == 0
    assert states(sweep(capsys)[1]) == 4 * ["done"]
    for run, steps in zip(runs, stopped, strict=False):
        assert [row["step"] for row in Run(run).rows("resumes")] == [steps]
    assert all(Run(run).checkpoints[-1].problem is None for run in runs)
