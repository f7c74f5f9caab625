"""Sweeps: what a file means, which runs are started, and what their table shows.

Most tests replace ``python -m emerald_jax train`` by a script that writes a checkpoint's metadata.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from emerald_jax import cli
from emerald_jax.commands.sweep import STOPPED, read_sweep
from emerald_jax.commands.train import parse_train
from emerald_jax.run import Run
from emerald_jax.run.directory import RunLock, saved_steps
from emerald_jax.training.loop import INTERRUPTED

ROOT = Path(__file__).parents[2]
PYTHON = sys.executable

FILE = """
preset = "tiny"
seeds = [0, 1]
[settings]
steps = 200
log.pictures = 0
quiet = true
[grid]
behavior.entropy = [1e-2, 3e-2]
"""
NAMES = [f"behavior.entropy={x},seed={seed}" for x in (0.01, 0.03) for seed in (0, 1)]

#: Trains as the file "plan" says for a seed: completely, not at all, or until a signal.
TRAINER = """\
#!{python}
import json, os, pathlib, signal, sys, time
if sys.argv[2] != "emerald_jax":  # submitit's own processes
    os.execv({python!r}, [{python!r}, *sys.argv[1:]])
sys.path.insert(0, {root!r})
from emerald_jax.commands.train import parse_train
from emerald_jax.run.directory import write_config, write_json
config = parse_train(sys.argv[4:])
run, plan = pathlib.Path(config.logdir), json.loads(pathlib.Path("plan").read_text())
plan = plan.get(str(config.seed), "train")
with pathlib.Path("started").open("a") as started:
    started.write(run.name + os.environ.get("CUDA_VISIBLE_DEVICES", "") + "\\n")

def save(steps):
    content = {{"step": steps, "leaves": [], "replay": None}}
    content["run"] = {{"env_steps": steps, "config": config.to_dict()}}
    write_json(run / "checkpoints" / str(steps) / "metadata.json", content)

def leave(*_):
    save(80)
    print("stopped by SIGTERM; the same command continues the run")
    sys.exit(75)

if plan == "fail":
    sys.exit(print("emerald-jax: this seed is broken") or 2)
write_config(run, config)
if plan == "wait":
    run.joinpath("pids").write_text(f"{{os.getpid()}} {{os.getppid()}}")
    signal.signal(signal.SIGTERM, leave)
    save(40)
    while True:
        time.sleep(0.02)
row = {{"step": config.steps, "score": 1.0, "length": 9}}
run.joinpath("episodes.jsonl").write_text(json.dumps(row) + "\\n")
save(config.steps)
if plan == "leave":
    leave()
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, with a file and a trainer."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.toml").write_text(FILE)
    (tmp_path / "plan").write_text("{}")
    trainer = tmp_path / "trainer"
    trainer.write_text(TRAINER.format(python=sys.executable, root=str(ROOT)))
    trainer.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(trainer))
    return tmp_path


def sweep(capsys: pytest.CaptureFixture[str], *options: str) -> tuple[int, list[str]]:
    """Exit code of a command, and the lines that it prints."""
    code = cli.main(["sweep", "a.toml", *options])
    return code, capsys.readouterr().out.splitlines()


def started(folder: Path) -> list[str]:
    """Names of the runs that were started, in order; forgets them."""
    path = folder / "started"
    names = path.read_text().splitlines() if path.exists() else []
    path.unlink(missing_ok=True)
    return names


def begin(*options: str) -> subprocess.Popen:
    """A command in a process of its own."""
    program = f"import sys; sys.executable = {sys.executable!r}; from emerald_jax.cli import main; "
    program += f"sys.exit(main(['sweep', 'a.toml', *{options}]))"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}
    return subprocess.Popen([PYTHON, "-c", program], env=environment)


def states(lines: list[str]) -> list[str]:
    """The column of states."""
    return [line.strip().split("  ")[0] for line in lines[1:5]]


def wait_for(condition: Callable[[], bool], seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


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
    assert lines[-1] == "6 runs in runs/sweeps/a: 2 done, 4 not started"
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
    assert code == INTERRUPTED == STOPPED[0]
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
        assert process.wait(30) == INTERRUPTED
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
        assert states(lines) == ["done", "runs", "done", "done"]
    assert NAMES[1] not in started(folder)
    assert states(sweep(capsys)[1]) == ["done", "not started", "done", "done"]


def test_runs_trained_by_hand_count(folder, capsys) -> None:
    sweep(capsys, "--local")
    logs = sorted((folder / "runs" / "sweeps" / "a").glob("*.log"))
    logs[0].unlink()
    logs[1].write_text("killed before its end\n")
    assert states(sweep(capsys)[1]) == ["done", "stopped", "done", "done"]


def test_runs_side_by_side_have_one_gpu_each(folder, capsys, monkeypatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,7")
    sweep(capsys, "--local", "--jobs", "2")
    names = started(folder)
    assert sorted(name[:-1] for name in names) == NAMES
    assert {name[-1] for name in names} == {"4", "7"}
    assert {name[-1] for name in names[:2]} == {"4", "7"}


def test_submitting_without_submitit_names_the_package(folder, capsys, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "submitit", None)
    assert cli.main(["sweep", "a.toml", "--submitit"]) == 2
    line = "--submitit needs submitit: pip install 'emerald-jax[submitit]'"
    assert capsys.readouterr().err == f"emerald-jax: a.toml: {line}\n"
    assert not (folder / "runs").exists()


#: A SLURM of one node that starts every task at once: names and scripts of its commands.
SLURM = {
    "sbatch": """
        cp "$1" script; echo "$1" >> sbatch.calls
        last=$(sed -n 's/^#SBATCH --array=0-\\([0-9]*\\).*/\\1/p' script)
        for i in $(seq 0 "$last"); do bin/task "$i"; done
        echo "Submitted batch job 77"
    """,
    "task": """
        export SLURM_JOB_ID=$((100 + $1)) SLURM_ARRAY_JOB_ID=77 SLURM_ARRAY_TASK_ID=$1
        setsid bash script < /dev/null > /dev/null 2>&1 &
    """,
    "srun": """
        while [[ $1 == --* ]]; do
            if [[ $1 == --unbuffered ]]; then shift; else shift 2; fi
        done
        exec "$@"
    """,
    "scontrol": """
        echo "$@" >> scontrol.calls
        if [[ $1 == requeue ]]; then bin/task "${2#77_}"; else cat "state.$3"; fi
    """,
    "squeue": "cat queue",
}


@pytest.fixture
def slurm(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The commands of SLURM on the path; three seeds."""
    pytest.importorskip("submitit")
    (folder / "bin").mkdir()
    for name, text in SLURM.items():
        path = folder / "bin" / name
        path.write_text(f"#!/bin/bash\n{text}")
        path.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder / 'bin'}{os.pathsep}{os.environ['PATH']}")
    (folder / "queue").write_text("77_0\n77_1\n77_2\n")
    text = FILE.replace("[0, 1]", "[0, 1, 2]").replace(", 3e-2]", "]")
    text += '[submitit]\nslurm_partition = "gpu"\ngpus_per_node = 1\n'
    (folder / "a.toml").write_text(text)
    return folder


def test_jobs_of_slurm_go_back_into_the_queue_unless_they_were_cancelled(slurm, capsys) -> None:
    (slurm / "plan").write_text(json.dumps(dict.fromkeys("012", "wait")))
    process = begin("--submitit")
    assert process.wait(60) == 0
    runs = [slurm / "runs" / "sweeps" / "a" / f"behavior.entropy=0.01,seed={i}" for i in range(3)]
    wait_for(lambda: all(saved_steps(run) for run in runs))
    script = (slurm / "script").read_text()
    for line in ("partition=gpu", "gpus-per-node=1", "time=1440", "signal=USR2@180", "array=0-2%3"):
        assert f"#SBATCH --{line}\n" in script
    assert [line.split()[0] for line in sweep(capsys)[1][1:4]] == 3 * ["queued"]
    sweep(capsys, "--submitit")
    assert len((slurm / "sbatch.calls").read_text().splitlines()) == 1, "submitted twice"
    (slurm / "plan").write_text("{}")
    pids = [[int(pid) for pid in (run / "pids").read_text().split()] for run in runs]
    (slurm / "state.77_1").write_text("JobState=RUNNING")
    (slurm / "state.77_2").write_text("JobState=CANCELLED")
    # SLURM signals all processes: its own signal before the time limit, or SIGTERM.
    for pair, number in zip(pids, (signal.SIGUSR2, signal.SIGTERM, signal.SIGTERM), strict=True):
        for pid in pair:
            os.kill(pid, number)
    logs = [run.with_name(f"{run.name}.log") for run in runs]
    last = ["exit code 0", "exit code 0", "exit code 75"]
    wait_for(lambda: [log.read_text().splitlines()[-1] for log in logs] == last)
    calls = (slurm / "scontrol.calls").read_text().splitlines()
    assert sorted(call for call in calls if "requeue" in call) == ["requeue 77_0", "requeue 77_1"]
    (slurm / "queue").write_text("")
    assert [line.split()[0] for line in sweep(capsys)[1][1:4]] == ["done", "done", "stopped"]
    assert [saved_steps(run) for run in runs] == [[40, 80, 200], [40, 80, 200], [40, 80]]


def test_wrong_parameters_of_submitit_are_one_line(slurm, capsys) -> None:
    for entry in ('timeout_min = "long"', 'slurm_partitoin = "gpu"', 'speed = 3'):
        (slurm / "a.toml").write_text(FILE + f"[submitit]\n{entry}\n")
        assert cli.main(["sweep", "a.toml", "--submitit"]) == 2
        error = capsys.readouterr().err
        assert error.startswith("emerald-jax: a.toml: [submitit]")
        assert entry.partition(" ")[0] in error
        assert error.count("\n") == 1
    (slurm / "bin" / "sbatch").write_text("#!/bin/bash\necho 'invalid partition' >&2; exit 1")
    (slurm / "a.toml").write_text(FILE)
    assert cli.main(["sweep", "a.toml", "--submitit"]) == 2
    assert "invalid partition" in capsys.readouterr().err
    assert started(slurm) == []


def test_jobs_run_here_where_there_is_no_slurm(folder, capsys) -> None:
    pytest.importorskip("submitit")
    (folder / "a.toml").write_text(FILE.replace(", 3e-2]", "]"))
    (folder / "plan").write_text(json.dumps({"0": "wait", "1": "fail"}))
    assert begin("--submitit").wait(60) == 0
    run = folder / "runs" / "sweeps" / "a" / NAMES[0]
    broken = run.with_name(f"{NAMES[1]}.log")
    wait_for(lambda: bool(saved_steps(run)) and broken.read_text().endswith("exit code 2\n"))
    (folder / "plan").write_text("{}")
    os.kill(int((run / "pids").read_text().split()[1]), signal.SIGUSR2)
    wait_for(lambda: saved_steps(run) == [40, 80, 200])
    wait_for(lambda: [line.split()[0] for line in sweep(capsys)[1][1:3]] == ["done", "failed"])
    assert sorted(started(folder)) == [NAMES[0], NAMES[0], NAMES[1]]


@pytest.mark.slow
def test_a_real_sweep_is_stopped_in_the_middle_and_continues(folder, capsys, monkeypatch) -> None:
    monkeypatch.setattr(sys, "executable", PYTHON)
    (folder / "a.toml").write_text(FILE.replace("steps = 200", "steps = 400\ndevices = 1"))
    runs = [folder / "runs" / "sweeps" / "a" / name for name in NAMES]
    process = begin("--local", "--jobs", "2")
    try:
        # The first two train: one update is logged, many are left.
        wait_for(lambda: all((run / "metrics.jsonl").exists() for run in runs[:2]), 400)
        process.send_signal(signal.SIGTERM)
        assert process.wait(100) == INTERRUPTED
    finally:
        process.kill()
        process.wait()
    code, lines = sweep(capsys)
    assert code == 0
    assert states(lines)[2:] == 2 * ["not started"]
    stopped = [job.steps for job in read_sweep(folder / "a.toml", runs[0].parent)[0][:2]]
    assert "stopped" in states(lines)
    assert all(0 < steps <= 400 for steps in stopped)
    process = begin("--local")
    assert process.wait(1000) == 0
    assert states(sweep(capsys)[1]) == 4 * ["done"]
    for run, steps in zip(runs, stopped, strict=False):
        if steps < 400:
            assert [row["step"] for row in Run(run).rows("resumes")] == [steps]
    assert all(Run(run).checkpoints[-1].problem is None for run in runs)
