"""The first signal asks, the second one ends; an echo of the first is neither."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from emerald_jax.process import ECHO_S, StoppedError, StopSignals

ROOT = Path(__file__).parents[2]

#: Computes for half a minute in C code, where no Python handler can run.
BUSY = """
import hashlib, signal
# What a script's background begins with: Python leaves an ignored SIGINT ignored.
signal.signal(signal.SIGINT, signal.SIG_IGN)
from emerald_jax.process import StopSignals
with StopSignals(lambda name: print(name, flush=True)):
    print("busy", flush=True)
    hashlib.pbkdf2_hmac("sha256", b"x", b"y", 60_000_000)
"""


def test_the_first_is_remembered_and_the_handlers_come_back():
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    told = []
    with StopSignals(told.append) as signals:
        signals.check()
        os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(StoppedError, match="SIGTERM"):
            signals.check()
        os.kill(os.getpid(), signal.SIGINT)  # within the echo
        assert signals.name == "SIGTERM"
        deadline = time.monotonic() + 5
        while not told and time.monotonic() < deadline:
            time.sleep(0.01)
    assert told == ["SIGTERM"]
    assert before == {number: signal.getsignal(number) for number in before}
    assert signal.set_wakeup_fd(-1) == -1


def test_another_thread_than_the_main_one_is_left_alone():
    names = []

    def body():
        with StopSignals() as signals:
            names.append(signals.name)

    thread = threading.Thread(target=body)
    thread.start()
    thread.join()
    assert names == [None]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_leaves_at_once_whatever_is_computed(number):
    run = subprocess.Popen(
        [sys.executable, "-c", BUSY],
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )
    assert run.stdout.readline() == "busy\n"
    run.send_signal(number)
    run.send_signal(number)  # an echo, as `timeout` sends one to the process and to its group
    assert run.stdout.readline() == f"{number.name}\n"
    time.sleep(ECHO_S + 0.1)
    assert run.poll() is None
    run.send_signal(number)
    assert run.wait(timeout=10) == 128 + number
    run.stdout.close()
