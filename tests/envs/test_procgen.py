"""Procgen through EnvPool: endings, limits, levels, and seeds that do not depend on E."""

import importlib.util

import numpy as np
import pytest

from emerald_jax.config import EnvsConfig
from emerald_jax.envs import EnvError, check_env, make_vector_env, spec_of
from emerald_jax.envs.gym import resize_area
from emerald_jax.envs.registry import FAMILIES, PROCGEN

if importlib.util.find_spec("envpool") is None:
    pytest.skip("the extra `procgen` is not installed", allow_module_level=True)

from emerald_jax.envs import procgen

try:
    spec_of("procgen:coinrun", EnvsConfig())
except EnvError as error:  # the system has no Qt
    pytest.skip(str(error), allow_module_level=True)


def make(game="coinrun", *, seed=0, **settings):
    return make_vector_env(f"procgen:{game}", EnvsConfig(**{"count": 1} | settings), seed=seed)


def play(env, steps, seed=0):
    rng = np.random.default_rng(seed)
    actions = rng.integers(15, size=(steps, 5))[:, : env.num_envs]
    return [env.reset(), *(env.step(action) for action in actions)]


def test_all_games():
    assert len(PROCGEN) == len(FAMILIES["procgen"].games) == 16
    for game in PROCGEN:
        spec = spec_of(f"procgen:{game}", EnvsConfig(distribution_mode="easy"))
        assert spec.image_shape == (64, 64, 3)
        assert spec.num_actions == len(set(spec.action_names)) == 15
        assert spec.time_limit >= 500


@pytest.mark.parametrize("settings", [{"time_limit": 20}, {"image_size": 32, "time_limit": 9}])
def test_it_keeps_the_rules(settings):
    assert check_env("procgen:coinrun", EnvsConfig(count=3, **settings), steps=60) == ()


def test_the_games_own_limit_is_no_death():
    env = make("maze", distribution_mode="easy", num_levels=1, start_level=3)
    env.reset()
    noop = np.array([procgen.ACTIONS.index("noop")])
    records = [env.step(noop) for _ in range(502)]
    ends = [t for t, record in enumerate(records) if record.is_last[0]]
    assert ends == [499]
    assert not records[499].is_terminal[0]
    assert records[500].is_first[0]
    assert env.length[0] == 1


def test_our_limit_begins_a_new_episode_and_shows_the_last_frame():
    short, long = make(time_limit=6, seed=1), make(seed=1)
    cut, whole = play(short, 14), play(long, 14)
    for t in range(7):
        assert (cut[t].image == whole[t].image).all()
    assert [t for t, record in enumerate(cut) if record.is_last[0]] == [6, 13]
    assert cut[7].is_first[0]
    assert (cut[7].image != whole[7].image).any()
    assert not any(record.is_terminal[0] for record in cut)


def test_limits_and_endings_of_several_games_do_not_mix():
    alone, many = make(time_limit=7, seed=2), make(count=3, time_limit=7, seed=2)
    for one, other in zip(play(alone, 30), play(many, 30), strict=True):
        assert (one.image == other.image[:1]).all()
        assert one.is_last[0] == other.is_last[0]


def test_seeds_do_not_depend_on_the_number_of_games():
    few, many = make(count=2, seed=4).reset().image, make(count=5, seed=4).reset().image
    assert (few == many[:2]).all()
    assert (few != make(count=2, seed=5).reset().image).any()


def test_levels():
    def levels(**settings):
        env = make(count=4, **settings)
        return {image.tobytes() for _ in range(6) for image in env.reset().image}

    assert len(levels(num_levels=1, start_level=7)) == 1
    assert len(levels(num_levels=2)) == 2
    assert len(levels()) == 24
    assert levels(num_levels=1, start_level=7) != levels(num_levels=1, start_level=8)
    hard, easy = (levels(num_levels=1, distribution_mode=mode) for mode in ("hard", "easy"))
    assert hard != easy


def test_levels_without_backgrounds_are_mostly_black():
    shown, black = (make("bossfight", backgrounds=b).reset().image[0] for b in (True, False))
    assert (black.max(-1) == 0).mean() > 0.8 > (shown.max(-1) == 0).mean()


def test_other_sizes_are_resized_by_area():
    image, small = make(seed=3).reset().image[0], make(seed=3, image_size=16).reset().image[0]
    assert (small == np.rint(resize_area(image, 16))).all()


def test_a_system_without_qt_is_told_what_to_install(monkeypatch):
    def fail(*args, **kwargs):
        raise ImportError("EnvPool Procgen requires the system Qt 5 runtime on Linux.")

    monkeypatch.setattr(procgen.envpool, "make_gymnasium", fail)
    with pytest.raises(EnvError, match=r"needs the system's Qt 5.*apt-get install libqt5gui5"):
        spec_of("procgen:coinrun", EnvsConfig())
