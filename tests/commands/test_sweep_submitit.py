"""Sweeps as jobs of submitit, on its local executor and on a SLURM of shell scripts."""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path

import pytest

from emerald_jax import cli
from emerald_jax.run.directory import saved_steps
from tests.sweep_cases import FILE, NAMES, begin, started, sweep, wait_for

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
    for entry in ('timeout_min = "long"', 'slurm_partitoin = "gpu"', "speed = 3"):
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


def test_submitting_without_submitit_names_the_package(folder, capsys, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "submitit", None)
    assert cli.main(["sweep", "a.toml", "--submitit"]) == 2
    line = "--submitit needs submitit: pip install 'emerald-jax[submitit]'"
    assert capsys.readouterr().err == f"emerald-jax: a.toml: {line}\n"
    assert not (folder / "runs").exists()
