"""Games whose worlds are costly, played by a cheap one: only the order of making worlds differs."""

import jax
import numpy as np
import pytest

from emerald_jax.config import EnvsConfig
from emerald_jax.envs import check_env
from emerald_jax.envs.gymnax import GymnaxVectorEnv


class Costly(GymnaxVectorEnv):
    costly_worlds = True


def make(count, seed=0, **settings):
    name = "gymnax:Catch-bsuite"
    envs = EnvsConfig(count=count, image_size=16, **settings)
    return Costly(name, "Catch-bsuite", envs, seed=seed)


def test_worlds_made_in_chunks_keep_the_rules_and_compile_once():
    env = make(37)
    assert env._chunk == 2  # 37 is odd: the last chunk is filled up.
    programs = (env._begin_some, env._advance, env._place)
    before = [program._cache_size() for program in programs]
    assert check_env(env, steps=40) == ()
    after = [program._cache_size() for program in programs]
    assert max(np.subtract(after, before)) == 1


@pytest.mark.parametrize("limit", [0, 4])
def test_chunks_do_not_change_what_is_played(limit):
    many, few = make(37, time_limit=limit), make(3, time_limit=limit)
    actions = np.random.default_rng(0).integers(3, size=(25, 37))
    records = [(many.reset(), few.reset())]
    with jax.transfer_guard("disallow"):
        records += [(many.step(a), few.step(a[:3])) for a in actions]
    for one, other in records:
        for field in one._fields[:-1]:
            np.testing.assert_array_equal(getattr(one, field)[:3], getattr(other, field))
        assert [e for e in one.episodes if e.env < 3] == list(other.episodes)
    assert sum(r.is_first.sum() for r, _ in records) > 37 * 2
