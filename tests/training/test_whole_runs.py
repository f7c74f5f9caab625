"""Runs as a user starts them, in a process of their own: signals, and a disk that fills up."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import psutil
import pytest

from emerald_jax.process import ECHO_S
from emerald_jax.run import Run
from emerald_jax.training.train import INTERRUPTED

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]


@contextlib.contextmanager
def running(logdir: Path, *words: str):
    """``emerald-jax train tiny`` with frequent checkpoints; what it says goes to ``said``."""
    command = [sys.executable, "-m", "emerald_jax", "train", "tiny", "--steps", str(10**9)]
    command += ["--log.pictures", "0", "--log.every", "1", "--devices", "1"]
    command += ["--logdir", str(logdir), *words]
    cache = jax.config.jax_compilation_cache_dir
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "JAX_COMPILATION_CACHE_DIR": cache}
    with said_by(logdir).open("w") as said:
        run = subprocess.Popen(command, stderr=said, stdout=said, env=environment)
        try:
            yield run
        finally:
            run.kill()
            run.wait()


def said_by(logdir: Path) -> Path:
    """Where a run's narration goes: never onto the disk that fills up."""
    return logdir.parent.parent / f"{logdir.parent.name}.said"


def wait_for(run: subprocess.Popen, condition, seconds: float = 200.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert run.poll() is None, "the run ended by itself"
        assert time.monotonic() < deadline
        time.sleep(0.05)


def updates(logdir: Path) -> list[int]:
    """Updates in the log, half-written lines left out."""
    path = logdir / "metrics.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return [int(json.loads(line)["train/updates"]) for line in lines if line.endswith("}")]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_no_worker_outlives_a_run_that_was_asked_to_leave(number, tmp_path):
    logdir = tmp_path / "run"
    words = ["--env", "crafter", "--envs.image-size", "32", "--envs.workers", "process"]
    words += ["--envs.processes", "4"]
    with running(logdir, *words) as run:
        wait_for(run, lambda: len(updates(logdir)) > 2)
        family = psutil.Process(run.pid).children(recursive=True)
        assert len(family) >= 5  # four environments and what starts them
        run.send_signal(number)
        assert run.wait(60) == INTERRUPTED
        assert psutil.wait_procs(family, 5)[1] == []
    (point,) = Run(logdir).checkpoints
    assert point.problem is None
    assert point.step == updates(logdir)[-1]
    with running(logdir, *words) as run:
        wait_for(run, lambda: "continues after" in said_by(logdir).read_text())
        family = psutil.Process(run.pid).children(recursive=True)
        run.send_signal(signal.SIGSTOP)  # both arrive while it can do nothing
        run.send_signal(number)
        run.send_signal(signal.SIGCONT)
        time.sleep(ECHO_S + 0.2)
        run.send_signal(number)
        # The second one may meet a run that has just said goodbye, with Python's own handlers.
        assert run.wait(20) in (128 + number, -number, INTERRUPTED)
        assert psutil.wait_procs(family, 5)[1] == []


@pytest.fixture
def small_disk(tmp_path):
    """A file system of sixteen megabytes, four times what the run needs."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", str(disk)]
    if subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("only root may mount a file system")
    yield disk
    subprocess.run(["umount", "--lazy", str(disk)], check=True)


def test_a_run_outlives_a_full_disk(small_disk):
    logdir = small_disk / "run"

    def saved() -> int:
        names = [p.name for p in (logdir / "checkpoints").glob("*")]
        return max((int(name) for name in names if name.isdecimal()), default=-1)

    with running(logdir, "--log.checkpoint-minutes", "0.03") as run:
        wait_for(run, lambda: saved() > 0)
        with contextlib.suppress(OSError), (small_disk / "filler").open("wb", 0) as filler:
            while True:
                filler.write(bytes(4096))
        # A save that had its place already may still end; the next one finds none.
        wait_for(run, lambda: "cannot be written" in said_by(logdir).read_text())
        older, begun = saved(), time.monotonic()
        wait_for(run, lambda: time.monotonic() - begun > 6)
        assert run.poll() is None
        assert saved() == older
        (small_disk / "filler").unlink()
        wait_for(run, lambda: saved() > older)
        assert any(p.problem is None for p in Run(logdir).checkpoints)
        wait_for(run, lambda: updates(logdir)[-1] > older)
        run.send_signal(signal.SIGTERM)
        assert run.wait(60) == INTERRUPTED
    assert all(p.problem is None and not p.lost for p in Run(logdir).checkpoints)
    found = updates(logdir)
    assert found == list(range(1, found[-1] + 1)), "rows waited for room"
