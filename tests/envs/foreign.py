"""A plain environment that tests change into other people's, and how it is played."""

import re

import gymnasium
import numpy as np
import pytest
from gymnasium.spaces import Box, Discrete

from emerald_jax.config import EnvsConfig
from emerald_jax.envs import EnvError, check_env, make_vector_env_of

INLINE = EnvsConfig(count=1, image_size=8, workers="inline")
WORKERS = EnvsConfig(count=2, image_size=8, workers="process", processes=1)
BOTH = pytest.mark.parametrize("envs", [INLINE, WORKERS], ids=["inline", "workers"])


class Plain(gymnasium.Env):
    """Episodes of three steps; frame t is 40 t everywhere. Reward 1."""

    def __init__(self):
        self.observation_space = Box(0, 255, (8, 8, 3), np.uint8)
        self.action_space = Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t = 0
        return self.observe(), {}

    def step(self, action):
        self.t += 1
        return self.observe(), self.reward(), self.t == 3, False, self.info()

    def observe(self):
        return np.full((8, 8, 3), 40 * self.t, np.uint8)

    def reward(self):
        return 1.0

    def info(self):
        return {}


def plays(factory, envs=INLINE, steps=8, **changes):
    """The records of ``steps`` steps, and the closed vector environment."""
    for name, value in changes.items():
        factory = type("Changed", (factory,), {name: value})
    env = make_vector_env_of("mine", factory, envs, seed=0)
    try:
        records = [env.reset()]
        records += [env.step(np.zeros(env.num_envs, int)) for _ in range(steps)]
    finally:
        env.close()
    return records, env


def refused(factory, message, envs=INLINE, **changes):
    """``message`` is the only line, in a run and in check-env; nothing is logged before it."""
    for name, value in changes.items():
        factory = type("Changed", (factory,), {name: value})
    with pytest.raises(EnvError, match=message) as caught:
        plays(factory, envs)
    assert "\n" not in str(caught.value)
    (finding,) = check_env(factory, envs, steps=6)
    assert re.search(message, finding)
