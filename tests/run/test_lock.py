"""One process per run directory, and no lock remains after its owner."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
import threading

import pytest

from emerald_jax.run.directory import CheckpointError, RunInUseError, RunLock, in_use

#: Takes the lock, forks a worker, waits until the worker runs, prints a line, and waits.
OWNER = """
import os, sys, time
from emerald_jax.run.directory import RunLock
lock = RunLock(sys.argv[1])
ready, note = os.pipe()
if os.fork() == 0:
    os.write(note, b".")
    time.sleep(30)
    os._exit(0)
os.read(ready, 1)
print("locked", flush=True)
time.sleep(30)
"""


def test_second_is_refused_in_one_line_and_release_frees(tmp_path):
    with RunLock(tmp_path / "run") as lock:
        # flock belongs to the open file, so it also holds against this process.
        with pytest.raises(RunInUseError, match=f"in use by process {os.getpid()}") as caught:
            RunLock(tmp_path / "run")
        assert "\n" not in str(caught.value)
        lock.release()
        RunLock(tmp_path / "run").release()


def test_a_killed_owner_leaves_no_lock_even_if_its_workers_survive(tmp_path):
    owner = subprocess.Popen(
        [sys.executable, "-c", OWNER, str(tmp_path)],
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        assert owner.stdout.readline() == "locked\n"
        with pytest.raises(RunInUseError, match=f"process {owner.pid}"):
            RunLock(tmp_path)
        owner.kill()
        owner.wait()
        RunLock(tmp_path).release()
    finally:
        os.killpg(owner.pid, signal.SIGKILL)  # also the worker
        owner.stdout.close()
        owner.wait()


def test_a_look_at_the_lock_changes_nothing_and_disturbs_no_start(tmp_path):
    assert not in_use(tmp_path / "run")
    with RunLock(tmp_path / "run"):
        assert in_use(tmp_path / "run")
    assert not in_use(tmp_path / "run")
    assert (tmp_path / "run" / "lock").read_text() == f"{os.getpid()}\n"
    with (tmp_path / "run" / "lock").open() as file:  # a look that takes longer than usual
        fcntl.flock(file, fcntl.LOCK_SH)
        timer = threading.Timer(0.03, fcntl.flock, (file, fcntl.LOCK_UN))
        timer.start()
        RunLock(tmp_path / "run").release()
        timer.join()


def test_an_unwritable_directory_is_refused():
    with pytest.raises(CheckpointError, match="cannot be written in"):
        RunLock("/proc/nowhere")
