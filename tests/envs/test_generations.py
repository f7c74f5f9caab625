"""Seeds of host environments: other worlds after every resume, the same ones when repeated."""

import os
import signal

import gymnasium
import numpy as np
import pytest

from emerald_jax.config import EnvsConfig
from emerald_jax.envs import EnvSpec, make_vector_env
from emerald_jax.envs.host import HostVectorEnv, env_seed, env_seeds, make_host_vector_env
from emerald_jax.envs.workers import InlineGroup, WorkerGroup
from tests.envs.processes import linux

SPEC = EnvSpec(name="noise", image_shape=(4, 4, 3), num_actions=2)


class Noise(gymnasium.Env):
    """Its first observation is a function of its seed alone."""

    observation_space = gymnasium.spaces.Box(0, 255, (4, 4, 3), np.uint8)
    action_space = gymnasium.spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return self.np_random.integers(256, size=(4, 4, 3), dtype=np.uint8), {}

    def step(self, action):
        if action == 1:
            raise ValueError("a bad day")
        return np.zeros((4, 4, 3), np.uint8), 0.0, False, False, {}


def first(generation, **settings):
    envs = EnvsConfig(**{"count": 1, "workers": "inline"} | settings)
    env = make_host_vector_env(SPEC, Noise, envs, seed=3, generation=generation)
    image = env.reset().image
    env.close()
    return image


def test_two_hundred_resumes_play_two_hundred_worlds_and_the_same_ones_again():
    worlds = [first(g).tobytes() for g in range(200)]
    assert len(set(worlds)) == 200
    assert [first(g).tobytes() for g in range(200)] == worlds


def test_workers_do_not_change_the_worlds():
    for generation in (0, 1, 7):
        inline = first(generation, count=4)
        assert len({image.tobytes() for image in inline}) == 4
        for processes in (1, 2, 4):
            other = first(generation, count=4, workers="process", processes=processes)
            np.testing.assert_array_equal(other, inline)
        # Nor does the number of environments.
        np.testing.assert_array_equal(first(generation, count=2), inline[:2])


def test_seeds_by_hand():
    # The first start of a run: the words of numpy's SeedSequence(seed), without their last bit.
    words = np.random.SeedSequence(3).generate_state(4)
    assert env_seeds(3, 4) == [int(word) >> 1 for word in words]
    # Later ones: SeedSequence(seed, spawn_key=(generation, environment, replacement)).
    (word,) = np.random.SeedSequence(3, spawn_key=(5, 2, 1)).generate_state(1)
    assert env_seed(3, 5, 2, 1) == int(word) >> 1
    assert env_seeds(3, 3, 5)[2] == env_seed(3, 5, 2, 0)
    seeds = {env_seed(3, g, i, r) for g in range(20) for i in range(8) for r in range(4)}
    assert len(seeds) == 20 * 8 * 4


@pytest.mark.parametrize("group", [InlineGroup, WorkerGroup])
@pytest.mark.parametrize("sizes", [[3], [1, 2], [1, 1, 1]])
def test_replacements_have_seeds_of_their_own(group, sizes):
    groups = [group([Noise] * size, (4, 4, 3)) for size in sizes]
    env = HostVectorEnv(SPEC, groups, seed=3, generation=2)
    env.reset()
    seen = []
    for actions in ([0, 1, 0], [0, 0, 1], [0, 1, 0]):
        env.step(np.array(actions))
        record = env.step(np.zeros(3, int))
        (i,) = np.flatnonzero(record.is_first)
        seen.append((i, record.image[i].tobytes()))
    env.close()
    wanted = []
    for i, replacement in ((1, 1), (2, 1), (1, 2)):
        image, _ = Noise().reset(seed=env_seed(3, 2, i, replacement))
        wanted.append((i, image.tobytes()))
    assert seen == wanted


@linux
def test_a_lost_worker_counts_for_each_of_its_environments():
    groups = [WorkerGroup([Noise] * size, (4, 4, 3)) for size in (1, 2)]
    env = HostVectorEnv(SPEC, groups, seed=3)
    env.reset()
    os.kill(groups[1].process.pid, signal.SIGKILL)
    env.step(np.zeros(3, int))
    record = env.step(np.zeros(3, int))
    env.close()
    assert record.is_first.tolist() == [False, True, True]
    for i in (1, 2):
        image, _ = Noise().reset(seed=env_seed(3, 0, i, 1))
        np.testing.assert_array_equal(record.image[i], image)


@pytest.mark.parametrize(("name", "size"), [("crafter", 18), ("gymnax:Catch-bsuite", 16)])
def test_every_family_takes_a_generation(name, size):
    envs = EnvsConfig(count=4, image_size=size, workers="inline")
    images = []
    for options in ({}, {"generation": 0}, {"generation": 4}, {"generation": 4}):
        env = make_vector_env(name, envs, seed=0, **options)
        images.append(env.reset().image)
        env.close()
    np.testing.assert_array_equal(images[0], images[1])
    assert (images[1] != images[2]).any()
    np.testing.assert_array_equal(images[2], images[3])
