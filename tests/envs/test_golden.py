"""The first frames of a seeded reset and 20 fixed actions, looked at once and pinned by hash.

Another hash means that another version of a game shows, or plays, something else: look at the
frames (``frames(name)``) before a new hash is written here.
"""

import hashlib

import numpy as np
import pytest

from emerald_jax.config import EnvsConfig
from emerald_jax.envs import make_vector_env

GOLDEN = {
    "crafter": "2371fbffd9e7353f836161dd0b05889e54481fcac011405f3ce050743bf22474",
    "atari:Breakout": "8ea089cedb020e699bc6c3b05abc318deb701227ff63dc75e8f73265b6c8ca30",
    "atari:MsPacman": "be1eef95549128299d600c585e3ab4cb7d26ea62af185f5c7d98699f1cccc7c5",
    "atari:Pong": "4e9a43c41dbe41c1d5af93d352cd384f0630595714794234229b5a5b0481e38c",
}


def frames(name):
    """`[21, 2, 64, 64, 3]` uint8: two environments, seed 0, actions 0, 7, 14, … and 1, 8, 15, …."""
    env = make_vector_env(name, EnvsConfig(count=2, workers="inline"), seed=0)
    actions = [np.array([7 * t, 7 * t + 1]) % env.spec.num_actions for t in range(20)]
    records = [env.reset(), *(env.step(a) for a in actions)]
    env.close()
    return np.stack([record.image for record in records])


@pytest.mark.parametrize("name", GOLDEN)
def test_golden_frames(name):
    assert hashlib.sha256(frames(name).tobytes()).hexdigest() == GOLDEN[name]
