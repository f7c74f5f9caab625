"""Environments in worker processes, and what became of those processes."""

import sys
import time
from pathlib import Path

import pytest

from emerald_jax.envs import EnvSpec
from emerald_jax.envs.host import HostVectorEnv
from emerald_jax.envs.workers import WorkerGroup

SPEC = EnvSpec(name="scripted", image_shape=(4, 4, 3), num_actions=5)

linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")


def make(*factories, **settings):
    """Every environment in a worker of its own; in one worker those that come as a tuple."""
    groups = [f if isinstance(f, tuple) else (f,) for f in factories]
    return HostVectorEnv(
        SPEC, [WorkerGroup(group, (4, 4, 3)) for group in groups], seed=0, **settings
    )


def pids_of(env):
    return [group.process.pid for group in env._groups]


def alive(pid):
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except FileNotFoundError:
        return False


def gone(pids, seconds=5.0):
    deadline = time.monotonic() + seconds
    while any(map(alive, pids)) and time.monotonic() < deadline:
        time.sleep(0.02)
    return not any(map(alive, pids))


def children(pid):
    """Process ids of all descendants of ``pid``."""
    found = []
    for task in Path("/proc", str(pid), "task").glob("*/children"):
        for child in task.read_text().split():
            found += [int(child), *children(child)]
    return found
