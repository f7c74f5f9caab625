"""Whole episodes, as many as were asked for, none of them a broken one."""

import functools

import numpy as np
import pytest

from emerald_jax.config import EnvsConfig
from emerald_jax.envs import EnvSpec, registry
from emerald_jax.envs.host import make_host_vector_env
from emerald_jax.envs.playing import (
    is_whole,
    play_episodes,
    play_randomly,
    random_policy,
    share_out,
)

SPEC = EnvSpec(name="scripted", image_shape=(4, 4, 3), num_actions=5)


def make(factory, count):
    envs = EnvsConfig(count=count, image_size=4, workers="inline")
    return make_host_vector_env(SPEC, factory, envs, seed=0)


@pytest.mark.parametrize(
    ("episodes", "count", "shares"), [(6, 4, [2, 2, 1, 1]), (8, 4, [2] * 4), (1, 3, [1, 0, 0])]
)
def test_episodes_are_shared_out_evenly(episodes, count, shares):
    assert share_out(episodes, count).tolist() == shares


def test_every_environment_plays_its_share_whatever_the_lengths(scripted_env):
    # Episodes take 2 and 3 steps in turn. The first seven to end would be four of environment 0
    # when it is quick; here everyone plays two or three.
    env = make(functools.partial(scripted_env, lengths=(2, 3)), 3)
    seen = []
    played = list(play_episodes(env, 7, random_policy(5, 3, 0), seen.append))
    assert sorted(e.env for e in played) == [0, 0, 0, 1, 1, 2, 2]
    # Records: a first frame and 2, 3 and 2 steps for environment 0.
    assert len(seen) == (1 + 2) + (1 + 3) + (1 + 2)
    assert seen[0].is_first.all()


def test_a_broken_episode_is_told_and_played_again(scripted_env):
    # The fourth step of each environment object raises; the new object counts from 0 again.
    env = make(functools.partial(scripted_env, lengths=(3,), fail_at=4), 1)
    played = list(play_episodes(env, 2, random_policy(5, 1, 0)))
    assert [is_whole(e) for e in played] == [True, False, True]
    assert played[1].score == 0


def test_random_play_is_uniform_and_decided_by_its_seed(scripted_env):
    player, again = random_policy(5, 100, 3), random_policy(5, 100, 3)
    actions = np.stack([player(None) for _ in range(100)])
    np.testing.assert_array_equal(actions[0], again(None))
    counts = np.bincount(actions.ravel(), minlength=5)
    # 10 000 draws: 2000 each, standard deviation 40.
    assert counts.min() > 1800
    assert counts.max() < 2200
    assert actions.dtype == np.int32


def test_random_play_by_name(scripted_env, monkeypatch):
    monkeypatch.setattr(registry, "_OWN", {})
    registry.register("scripted", scripted_env)
    envs = EnvsConfig(count=2, image_size=4, workers="inline")
    spec, played = play_randomly("scripted", envs, 5)
    assert spec.num_actions == 5
    assert len(played) == 5
    assert play_randomly("scripted", envs, 5)[1] == played
    # Episodes of two and three steps: the second one of each environment is cut after two.
    _, cut = play_randomly("scripted", envs, 5, max_steps=2)
    assert [(e.length, e.extra.get("capped")) for e in cut] == [(2, None)] * 2 + [(2, 2)] * 2
