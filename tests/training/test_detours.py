"""Detours: how often, how long, which action, and that they end with the episode."""

from __future__ import annotations

import json

import numpy as np
import pytest

from emerald_jax.actions import ActionSpace
from emerald_jax.training.detours import Detours

ENVS, LONGEST, RATE, STEPS = 4, 5, 0.05, 20_000


def walk(detours, first):
    """Actions `[T, E]` of a policy that always takes -5, and where they are its own.

    ``first`` `[T, E]` tells where episodes begin.
    """
    random, policy = np.random.default_rng(0), np.full(ENVS, -5)
    found = [detours(policy, row, random) for row in first]
    return (np.array(x) for x in zip(*found, strict=True))


def lengths(own):
    """Lengths of the runs of steps that are not the policy's own `[T]`."""
    edges = np.flatnonzero(np.diff(np.concatenate([[1], own.astype(int), [1]])))
    return edges[1::2] - edges[::2]


def test_environments_differ_in_how_often_and_all_detours_are_short():
    action, own = walk(
        Detours(RATE, LONGEST, ActionSpace.of(3), ENVS), np.zeros((STEPS, ENVS), bool)
    )
    assert (action[own] == -5).all()
    assert set(action[~own].tolist()) == {0, 1, 2}
    for env in range(ENVS):
        rate = RATE * (2 * env + 1) / ENVS
        mean = (1 + LONGEST) / 2
        # Some detours follow one another at once; no step of one can begin another.
        assert (~own[:, env]).mean() == pytest.approx(
            mean * rate / (1 + (mean - 1) * rate), rel=0.1
        )
    rare = lengths(own[:, 0])
    assert {*range(1, LONGEST + 1)} <= set(rare.tolist())
    assert np.mean(rare) == pytest.approx(3, rel=0.2)


def test_a_detour_repeats_one_action():
    detours = Detours(0.9, 10**6, ActionSpace.of(50), 1)
    random, policy, no = np.random.default_rng(3), np.zeros(1, int), np.zeros(1, bool)
    actions = [detours(policy, no, random)[0][0] for _ in range(60)]
    assert len(set(actions[-50:])) == 1


def test_a_detour_ends_with_its_episode():
    detours = Detours(0.0, LONGEST, ActionSpace.of(3), ENVS)
    detours.left[:] = 3
    first = np.zeros((2, ENVS), bool)
    first[1, 2] = True
    _, own = walk(detours, first)
    assert not own[0].any()
    assert own[1].tolist() == [False, False, True, False]


@pytest.mark.parametrize("space", [ActionSpace((3,)), ActionSpace((0, 4))])
def test_a_detour_outlives_a_checkpoint(space):
    def detours():
        return Detours(0.3, LONGEST, space, ENVS)

    no = np.zeros(ENVS, bool)
    policy = space.idle(ENVS)
    one, random = detours(), np.random.default_rng(0)
    for _ in range(7):
        one(policy, no, random)
    other, same = detours(), np.random.default_rng(0)
    other.load_state_dict(json.loads(json.dumps(one.state_dict())))
    same.bit_generator.state = random.bit_generator.state
    for _ in range(20):
        for x, y in zip(one(policy, no, random), other(policy, no, same), strict=True):
            np.testing.assert_array_equal(x, y)


def test_another_number_of_environments_begins_without():
    detours, other = (Detours(0.5, LONGEST, ActionSpace.of(3), n) for n in (ENVS, 2))
    detours.left[:] = 2
    other.load_state_dict(detours.state_dict())
    assert not other.left.any()
