"""A scripted environment whose every number can be told by hand, and random play."""

import sys

import cloudpickle
import gymnasium
import numpy as np
import pytest

# Workers do not have the tests on their import path.
cloudpickle.register_pickle_by_value(sys.modules[__name__])


class ScriptedEnv(gymnasium.Env):
    """Episodes of given lengths and endings; the picture says which frame of which it is.

    Pixel (0, 0) is (episode from 1, step from 0, action); pixel (0, 1) the seed. Reward t at
    step t. Odd episodes die, even ones are cut.
    """

    def __init__(self, lengths=(2, 3), fail_at=None):
        self.observation_space = gymnasium.spaces.Box(0, 255, (4, 4, 3), np.uint8)
        self.action_space = gymnasium.spaces.Discrete(5)
        self.lengths, self.fail_at = lengths, fail_at
        self.episode = self.total = self.seed = 0

    def reset(self, *, seed=None, options=None):
        self.seed = self.seed if seed is None else seed % 256
        self.episode, self.t, self.actions = self.episode + 1, 0, []
        return self.image(255), {"noise": 1}

    def step(self, action):
        self.t, self.total = self.t + 1, self.total + 1
        if self.total == self.fail_at:
            raise ValueError("the cable is unplugged")
        self.actions.append(int(action))
        over = self.t == self.lengths[(self.episode - 1) % len(self.lengths)]
        dies = self.episode % 2 == 1
        info = {"extra": {"actions": self.actions}} if over else {"noise": 2}
        return self.image(action), float(self.t), over and dies, over and not dies, info

    def image(self, action):
        image = np.zeros((4, 4, 3), np.uint8)
        image[0, 0] = self.episode, self.t, action
        image[0, 1] = self.seed
        return image


@pytest.fixture
def scripted_env():
    return ScriptedEnv


@pytest.fixture
def play():
    """``play(env, steps)``: the records of a reset and of random actions, and those actions."""

    def run(env, steps, seed=0):
        rng = np.random.default_rng(seed)
        actions = rng.integers(env.spec.num_actions, size=(steps, env.num_envs))
        return [env.reset(), *(env.step(a) for a in actions)], actions

    return run
