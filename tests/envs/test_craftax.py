import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

pytest.importorskip("craftax", reason="the extra `craftax` is not installed")

from emerald_jax.config import EnvsConfig
from emerald_jax.envs import EnvError, VectorEnv, check_env, make_vector_env, spec_of
from emerald_jax.envs.craftax import fit_image

CLASSIC, FULL = "craftax:Craftax-Classic-Pixels-v1", "craftax:Craftax-Pixels-v1"
NOOP = np.zeros(3, int)

# craftax lets shapes of different rank meet, and warns about itself.
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(autouse=True)
def loose_ranks():
    with jax.numpy_rank_promotion("allow"):
        yield


@pytest.fixture(scope="module")
def classic():
    """Three worlds with a limit of six steps; compiled once for all tests."""
    with jax.numpy_rank_promotion("allow"):
        env = make_vector_env(CLASSIC, EnvsConfig(count=3, time_limit=6), seed=0)
        assert isinstance(env, VectorEnv)
        env.reset()
    return env


def change(env, index, **fields):
    """Write into the state of one environment."""
    state = env._carry.env
    values = {k: getattr(state, k).at[index].set(v) for k, v in fields.items()}
    env._carry = env._carry._replace(env=state.replace(**values))


def test_it_keeps_the_rules(classic):
    assert check_env(classic, steps=40) == ()


def test_specs():
    spec = spec_of(CLASSIC, EnvsConfig())
    assert (spec.num_actions, spec.time_limit) == (17, 10_000)
    assert spec.action_names[:2] == ("noop", "left")
    spec = spec_of(FULL, EnvsConfig(time_limit=7))
    assert (spec.num_actions, spec.time_limit) == (43, 7)
    with pytest.raises(EnvError, match=f"nearest: {re.escape(CLASSIC)}"):
        spec_of("craftax:Craftax-Classic-Symbolic-v1", EnvsConfig())


def test_limits_are_not_terminal_and_worlds_differ(classic):
    first = classic.reset()
    assert len(np.unique(first.image.reshape(3, -1), axis=0)) == 3
    for t in range(1, 14):
        record = classic.step(NOOP)
        assert (record.is_last == (t % 7 == 6)).all()
        assert (record.is_first == (t % 7 == 0)).all()
        assert not record.is_terminal.any()
    again = classic.step(NOOP)
    assert again.is_first.all()
    assert len(np.unique(np.concatenate([first.image, again.image]).reshape(6, -1), axis=0)) == 6


def test_death_is_terminal_and_only_the_dead_get_a_new_world(classic, monkeypatch):
    renewed = []
    place = classic._place
    monkeypatch.setattr(
        classic, "_place", lambda *args: renewed.append(args[-1].tolist()) or place(*args)
    )
    classic.reset()
    classic.step(NOOP)
    change(classic, 1, player_health=-100)
    record = classic.step(NOOP)
    assert record.is_last.tolist() == record.is_terminal.tolist() == [False, True, False]
    assert [(e.env, e.length, e.terminal) for e in record.episodes] == [(1, 2, True)]
    positions = classic._carry.env.player_position[jnp.array([0, 2])]
    record = classic.step(NOOP)
    assert record.is_first.tolist() == [False, True, False]
    assert renewed == [[1]]
    assert (classic._carry.env.player_position[jnp.array([0, 2])] == positions).all()
    ends = [classic.step(NOOP).is_last.tolist() for _ in range(6)]
    # Environments 0 and 2 were three steps into their episodes.
    assert ends == [
        *([[False] * 3] * 2),
        [True, False, True],
        *([[False] * 3] * 2),
        [False, True, False],
    ]
    assert renewed == [[1], [0], [2]]


def test_death_on_the_limits_own_step_is_terminal(classic):
    classic.reset()
    for _ in range(5):
        classic.step(NOOP)
    change(classic, 2, player_health=-100)
    assert classic.step(NOOP).is_terminal.tolist() == [False, False, True]


def test_achievements_are_zero_or_one(classic):
    from craftax.craftax_classic.constants import Achievement

    classic.reset()
    wood = Achievement.COLLECT_WOOD.value
    change(classic, 0, achievements=jnp.zeros(22, bool).at[wood].set(True))
    episodes = [e for _ in range(6) for e in classic.step(NOOP).episodes]
    counts = [e.extra["achievements"] for e in episodes]
    assert [c["collect_wood"] for c in counts] == [1, 0, 0]
    assert all(len(c) == 22 and set(c.values()) <= {0, 1} for c in counts)
    assert all(type(v) is int for v in counts[0].values())


def test_state_continues_to_the_bit(classic, play):
    play(classic, 5)
    state = classic.get_state()
    actions = np.random.default_rng(1).integers(17, size=(12, 3))
    expected = [classic.step(a) for a in actions]
    classic.set_state(state)
    for a, record in zip(actions, expected, strict=True):
        again = classic.step(a)
        for field in record._fields:
            np.testing.assert_array_equal(getattr(record, field), getattr(again, field))


def test_an_image_that_fits_keeps_its_pixels():
    pixels = np.random.default_rng(0).random((63, 63, 3)).astype(np.float32)
    image = fit_image(jnp.asarray(pixels), 64)
    assert (image[:63, :63] == np.round(pixels * 255)).all()
    assert not image[63:].any()
    assert fit_image(jnp.ones((130, 110, 3)), 64).min() == 255


@pytest.mark.slow
def test_full_craftax_keeps_the_rules():
    env = make_vector_env(FULL, EnvsConfig(count=2, time_limit=6), seed=0)
    assert check_env(env, steps=16) == ()
    env.reset()
    (episode, _) = [e for _ in range(6) for e in env.step(NOOP[:2]).episodes]
    assert len(episode.extra["achievements"]) == 67
