"""A sweep of four runs, and a script in place of ``python -m emerald_jax train``.

It writes a checkpoint's metadata; how a seed trains is in the file ``plan``.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from emerald_jax import cli

ROOT = Path(__file__).parents[1]
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
