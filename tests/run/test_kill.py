"""Checkpoints under kill -9: a restart finds the last one reported as saved, or a newer one."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parents[2]

#: A run whose state is a function of its step, so that a restored one can be checked.
RUN = """
import sys
import numpy as np
from emerald_jax.replay import Replay
from emerald_jax.run.checkpoint import Store
from emerald_jax.run.directory import RunLock
from tests.replay_world import SHAPE, World, fill

def tree_at(step):
    return {"x": np.full((300, 100), step, np.float32)}

with RunLock(sys.argv[1]), Store(sys.argv[1]) as store:
    replay, world, step = Replay(3 * 200, 3, SHAPE), World([[4], [6], [9]]), 0
    if store.steps():
        restored = store.restore(tree_at(0), replay)
        step = restored.step
        assert (restored.tree["x"] == step).all() and not restored.lost
        assert replay.written == 7 * step and restored.metadata == {"step": step}
        fill(Replay(30, 3, SHAPE), world, 7 * step)
    print("from", step, flush=True)
    while True:
        step += 1
        fill(replay, world, 7)
        assert store.save(step, tree_at(step), {"step": step}, replay)
        if step % 3 == 0:
            assert store.wait()
            print("saved", step, flush=True)
"""


def test_killed_at_random_moments(tmp_path):
    rng = np.random.default_rng(0)
    sure = 0
    command = [sys.executable, "-c", RUN, str(tmp_path / "run")]
    # Some are killed at any time after their start, others only after a number of saves.
    for saves in (1, 0, 2, 1, 3, 0):
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as run:
            word, step = run.stdout.readline().split()
            assert word == "from"
            assert int(step) >= sure
            lines = [run.stdout.readline() for _ in range(saves)]
            time.sleep(rng.uniform(0.0, 0.5))
            run.kill()
            lines += run.stdout.read().split("\n")
        sure = max([sure, *(int(line.split()[1]) for line in lines if line.startswith("saved "))])
    assert sure >= 3 * 7
    assert len(list((tmp_path / "run" / "replay").glob("*.npz"))) < 40
