"""The scripts of ``examples/cluster`` and the commands of its page, against stand-ins.

Programs on the path stand in for SLURM and gcloud, and mostly for Python; signals are real.
"""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from emerald_jax.commands.sweep import STOPPED, read_sweep
from emerald_jax.commands.train import parse_train
from emerald_jax.run.directory import saved_steps

ROOT = Path(__file__).parents[1]
CLUSTER = ROOT / "examples" / "cluster"
PAGE = (ROOT / "docs" / "cluster.md").read_text(encoding="utf-8")
ARRAY = {"SLURM_ARRAY_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": "3"}

#: Records its arguments; trains until SIGTERM, or ends with a code.
PYTHON = """
echo "$@" >> python.calls
code=$(cat code)
if [[ $code ]]; then exit "$code"; fi
trap 'sleep 0.3; exit 75' TERM
touch trains
while true; do sleep 0.05; done
"""
SCONTROL = """
echo "$@" >> scontrol.calls
if [[ $1 == show ]]; then cat state; fi
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, with a folder ``bin`` on the path."""
    (tmp_path / "bin").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")
    return tmp_path


def program(folder: Path, name: str, text: str) -> None:
    """Put a shell script on the path."""
    path = folder / "bin" / name
    path.write_text(f"#!/bin/bash\n{text}")
    path.chmod(0o755)


def calls(folder: Path, name: str) -> list[str]:
    """The recorded arguments of a program."""
    path = folder / f"{name}.calls"
    return path.read_text().splitlines() if path.exists() else []


def wait_for(condition, seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def begin_task(*arguments: str) -> subprocess.Popen:
    """The array's script, as SLURM starts it."""
    return subprocess.Popen([CLUSTER / "slurm_array.sh", *arguments], env={**os.environ, **ARRAY})


@pytest.mark.parametrize(
    ("state", "requeued"),
    [("JobState=RUNNING Reason=None", True), ("JobState=CANCELLED", False), ("", False)],
)
def test_a_stopped_task_goes_back_into_the_queue(state: str, requeued: bool, folder: Path) -> None:
    program(folder, "python", PYTHON)
    program(folder, "scontrol", SCONTROL)
    (folder / "code").touch()
    (folder / "state").write_text(f"   {state}\n")
    task = begin_task("tiny", "--steps", "80")
    wait_for((folder / "trains").exists)
    task.send_signal(signal.SIGTERM)
    time.sleep(0.1)
    task.send_signal(signal.SIGTERM)  # the script waits for the run, however often it is signalled
    assert task.wait(30) == STOPPED[0]
    assert calls(folder, "python") == ["-m emerald_jax train tiny --steps 80 --seed 3"]
    assert calls(folder, "scontrol") == ["show job 7_3", *(["requeue 7_3"] if requeued else [])]


@pytest.mark.parametrize("code", [0, 2, 137])
def test_other_tasks_end(code: int, folder: Path) -> None:
    program(folder, "python", PYTHON)
    program(folder, "scontrol", SCONTROL)
    (folder / "code").write_text(str(code))
    assert begin_task().wait(30) == code
    assert calls(folder, "python") == ["-m emerald_jax train crafter --seed 3"]
    assert calls(folder, "scontrol") == []


@pytest.mark.parametrize(
    ("code", "state", "requeued"),
    [(75, "RUNNING", True), (75, "CANCELLED", False), (0, "RUNNING", False), (2, "RUNNING", False)],
)
def test_a_job_of_several_nodes_is_requeued(
    code: int, state: str, requeued: bool, folder: Path
) -> None:
    program(folder, "srun", f'echo "$@" >> srun.calls; exit {code}')
    program(folder, "scontrol", SCONTROL)
    (folder / "state").write_text(f"   JobState={state} Reason=None\n")
    command = [CLUSTER / "slurm_nodes.sh", "crafter", "--replay.batch", "32"]
    job = subprocess.run(command, env={**os.environ, "SLURM_JOB_ID": "7"}, check=False)
    assert job.returncode == code
    assert calls(folder, "srun") == ["python -m emerald_jax train crafter --replay.batch 32"]
    assert ("requeue 7" in calls(folder, "scontrol")) == requeued


@pytest.mark.slow
def test_a_real_task_saves_is_requeued_and_continues(folder: Path) -> None:
    program(folder, "python", f'exec {shlex.quote(sys.executable)} "$@"')
    program(folder, "scontrol", SCONTROL)
    (folder / "state").write_text("JobState=RUNNING\n")
    os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), *sys.path])
    settings = ("tiny", "--devices", "1", "--log.pictures", "0", "--log.every", "1")
    run = folder / "runs" / "tiny-3"
    task = begin_task(*settings, "--steps", str(10**9))
    try:
        wait_for(lambda: (run / "metrics.jsonl").exists(), 400)
        task.send_signal(signal.SIGTERM)
        assert task.wait(100) == STOPPED[0]
    finally:
        task.kill()
        task.wait()
    assert calls(folder, "scontrol")[-1] == "requeue 7_3"
    (saved,) = saved_steps(run)
    assert begin_task(*settings, "--steps", "1").wait(400) == 0
    assert len(calls(folder, "scontrol")) == 2
    assert saved_steps(run)[-1] >= saved > 0


#: A VM is a folder; commands on it run in there.
GCLOUD = """
echo "${@:4:2}" >> gcloud.calls
case $4 in
    describe) test -d vm ;;
    create) mkdir vm ;;
    ssh)
        for argument in "$@"; do
            if [[ $argument == --command=* ]]; then command=${argument#--command=}; fi
        done
        cd vm && bash -c "$command" ;;
esac
"""
INTERPRETER = """
mkdir -p .venv/bin
printf '#!/bin/bash\\necho "$@" >> ../installed\\n' > .venv/bin/pip
printf '#!/bin/bash\\necho "$@" >> runs/trained\\nexit 75\\n' > .venv/bin/python
chmod +x .venv/bin/*
"""


def test_a_tpu_vm_is_made_once_and_the_run_comes_back(folder: Path) -> None:
    program(folder, "gcloud", GCLOUD)
    program(folder, "sudo", "true")
    program(folder, "python3.11", INTERPRETER)
    (folder / "runs").mkdir()
    command = [CLUSTER / "tpu_vm.sh", "my-tpu", "a-zone", "crafter", "--logdir", "runs/a b"]
    for times in (1, 2):
        assert subprocess.run(command, check=False).returncode == STOPPED[0]
        line = "-m emerald_jax train crafter --logdir runs/a b\n"
        assert (folder / "runs" / "trained").read_text() == times * line
    made = [call for call in calls(folder, "gcloud") if "create" in call]
    assert made == ["create --zone=a-zone"]
    assert (folder / "vm" / "installed").read_text() == 2 * "install -q -e .[tpu]\n"


def test_the_kubernetes_job_is_sound() -> None:
    job = yaml.safe_load((CLUSTER / "kubernetes.yaml").read_text())
    assert (job["apiVersion"], job["kind"]) == ("batch/v1", "Job")
    spec = job["spec"]
    # What Kubernetes demands of a Job with a pod failure policy and retries per index.
    assert (spec["completionMode"], spec["podReplacementPolicy"]) == ("Indexed", "Failed")
    pod = spec["template"]["spec"]
    assert pod["restartPolicy"] == "Never"
    (container,) = pod["containers"]
    rules = spec["podFailurePolicy"]["rules"]
    actions = {}
    for rule in rules:
        assert len(rule) == 2
        if codes := rule.get("onExitCodes"):
            assert codes["containerName"] == container["name"]
            assert codes["operator"] == "In"
            actions |= dict.fromkeys(codes["values"], rule["action"])
    assert actions == {STOPPED[0]: "Ignore", 2: "FailIndex"}
    assert {mount["name"] for mount in container["volumeMounts"]} == {
        volume["name"] for volume in pod["volumes"]
    }
    names = [variable["name"] for variable in container["env"]]
    assert set(re.findall(r"\$\((\w+)\)", " ".join(container["command"]))) == set(names)


def test_the_skypilot_task_recovers_on_our_exit_code() -> None:
    task = yaml.safe_load((CLUSTER / "skypilot.yaml").read_text())
    assert task["resources"]["job_recovery"]["recover_on_exit_codes"] == [STOPPED[0]]
    assert all(isinstance(value, str) for value in task["envs"].values())
    assert task["run"].splitlines()[-1].startswith("python -m emerald_jax"), "the exit code of run"
    assert "/runs/" in task["run"]
    assert list(task["file_mounts"]) == ["/runs"]


def commands() -> list[str]:
    """Every command of ``emerald-jax`` on the page and in the scripts."""
    texts = re.findall(r"^```bash\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)
    texts += [path.read_text() for path in CLUSTER.iterdir()]
    job = yaml.safe_load((CLUSTER / "kubernetes.yaml").read_text())
    texts.append(" ".join(job["spec"]["template"]["spec"]["containers"][0]["command"]))
    text = "\n".join(texts).replace('"${@:-crafter}"', "crafter").replace("$settings", "crafter")
    text = re.sub(r"\$\(SEED\)|\"?\$(SEED|SLURM_ARRAY_TASK_ID)\"?", "3", text)
    return re.findall(r"(?:emerald-jax|-m emerald_jax) ((?:train|sweep) [^&\n\"]*)", text)


def test_every_command_is_valid(folder: Path) -> None:
    found = [shlex.split(command, comments=True) for command in commands()]
    assert {words[0] for words in found} == {"train", "sweep"}
    trained = [parse_train(words[1:]) for words in found if words[0] == "train"]
    assert len(trained) == 6  # one in each script, one on the page
    assert [config.preset for config in trained] == 6 * ["crafter"]
    for config in trained:
        config.validate()
    options = {word for words in found if words[0] == "sweep" for word in words[2:]}
    assert options == {"--local", "--jobs", "2", "--submitit"}
    scripts = re.findall(r"slurm_\w+\.sh (.*)|tpu_vm\.sh my-tpu us-west4-a (.*)", PAGE)
    assert len(scripts) == 3
    for words in scripts:
        parse_train(shlex.split("".join(words))).validate()


def test_every_sweep_is_valid(folder: Path) -> None:
    (text,) = re.findall(r"^```toml\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)
    (folder / "entropy.toml").write_text(text)
    assert len(read_sweep(folder / "entropy.toml", folder)[0]) == 12
    jobs, parameters = read_sweep(CLUSTER / "sweep.toml", folder)
    assert len(jobs) == 18
    submitit = pytest.importorskip("submitit")
    executor = submitit.AutoExecutor(folder / "jobs", cluster="local")
    executor.update_parameters(**parameters)


def test_every_script_is_on_the_page() -> None:
    for path in CLUSTER.iterdir():
        assert f"examples/cluster/{path.name}" in PAGE
        text = path.read_text()
        assert f"examples/cluster/{path.name}" in text, "how to start it"
    for path in CLUSTER.glob("*.sh"):
        assert os.access(path, os.X_OK)
        subprocess.run(["bash", "-n", path], check=True)
