"""Actions of every kind: their form, and the distributions a policy draws them from."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from emerald_jax.actions import ActionSpace, absent
from emerald_jax.models.sequence import encode_action
from emerald_jax.ops.distributions import (
    Policy,
    entropy,
    mixed_log_probs,
    sample_categorical,
    standard_normal,
    take_class,
)

UNIMIX, N = 0.01, 5
DISCRETE, BOX = ActionSpace((6,)), ActionSpace((0, 0))
MULTI, MIXED = ActionSpace((3, 4)), ActionSpace((2, 0, 0, 3, 0))
SPACES = (DISCRETE, BOX, MULTI, MIXED)
each_space = pytest.mark.parametrize("space", SPACES, ids=("discrete", "box", "multi", "mixed"))


def outputs(space: ActionSpace, *lead: int) -> np.ndarray:
    shape = (*lead, space.outputs)
    return np.random.default_rng(1).normal(size=shape).astype(np.float32)


def test_the_sizes_of_a_mixed_action() -> None:
    assert (DISCRETE.shape, DISCRETE.dtype, DISCRETE.width) == ((), np.int32, 6)
    assert (MIXED.shape, MIXED.dtype) == ((5,), np.float32)
    assert MIXED.width == 2 + 1 + 1 + 3 + 1
    assert MIXED.outputs == 2 + 2 + 2 + 3 + 2
    assert MIXED.groups() == [(0, 2), (1, -2), (3, 3), (4, -1)]
    assert MULTI.groups() == [(0, 3), (1, 4)]
    assert not ActionSpace((0,)).discrete
    assert [str(x) for x in SPACES] == [
        "6 actions",
        "actions of 2 numbers",
        "actions of 2 categories of 3, 4 classes",
        "actions of 3 numbers and 2 categories of 2, 3 classes",
    ]


def test_random_discrete_actions_are_those_of_before() -> None:
    ours, theirs = (np.random.default_rng(7) for _ in range(2))
    expected = theirs.integers(6, size=50, dtype=np.int32)
    np.testing.assert_array_equal(DISCRETE.sample(ours, 50), expected)


@each_space
def test_random_actions_exist_and_are_uniform(space: ActionSpace) -> None:
    drawn = space.sample(np.random.default_rng(0), 4000)
    assert (drawn.dtype, drawn.shape) == (space.dtype, (4000, *space.shape))
    assert not space.wrong(drawn).any()
    for size, values in zip(space.sizes, drawn.reshape(4000, -1).T, strict=True):
        if size:
            shares = np.bincount(values.astype(int), minlength=size) / 4000
            np.testing.assert_allclose(shares, 1 / size, atol=0.04)
        else:
            assert stats.kstest(values, stats.uniform(-1, 2).cdf).pvalue > 0.001


@each_space
def test_no_action_is_known_and_read_as_zeros(space: ActionSpace) -> None:
    none, some = space.none(3), space.sample(np.random.default_rng(0), 3)
    np.testing.assert_array_equal(absent(none), True)
    np.testing.assert_array_equal(absent(jnp.asarray(some)), False)
    both = space.replaced(some, np.array([False, True, False]), space.none())
    np.testing.assert_array_equal(absent(both), [False, True, False])
    assert space.wrong(none).all()
    vectors = np.asarray(encode_action(jnp.asarray(both), space, jnp.float32))
    assert vectors.shape == (3, space.width)
    np.testing.assert_array_equal(vectors[1], 0)
    assert (np.abs(vectors[[0, 2]]).sum(-1) > 0).all()


def test_a_mixed_action_as_the_networks_read_it() -> None:
    action = jnp.array([1, 0.5, -3.0, 2, 7.0], jnp.float32)  # numbers are cut to [-1, 1]
    vector = encode_action(action, MIXED, jnp.float32)
    np.testing.assert_array_equal(vector, [0, 1, 0.5, -1, 0, 0, 1, 1])


def test_actions_are_checked() -> None:
    checked = MIXED.checked([[1, 2.0, -0.5, 2, 0]], 1)
    np.testing.assert_array_equal(checked, np.array([[1, 1, -0.5, 2, 0]], np.float32))
    bad = [[2, 0, 0, 0, 0], [0.5, 0, 0, 0, 0], [0, np.nan, 0, 0, 0], [0, 0, 0, -1, 0]]
    np.testing.assert_array_equal(MIXED.wrong(MIXED.checked(bad, 4)), True)
    assert MIXED.valid == "[0 … 1, -1 … 1, -1 … 1, 0 … 2, -1 … 1]"
    with pytest.raises(ValueError, match=r"must be \[2, 5\] numbers"):
        MIXED.checked(np.zeros((2, 4)), 2)
    with pytest.raises(ValueError, match=r"must be \[2\] integers"):
        DISCRETE.checked(np.zeros(2), 2)


def test_a_discrete_policy_is_the_function_of_before_to_the_bit() -> None:
    logits, key = outputs(DISCRETE, N), jax.random.split(jax.random.key(3), N)
    policy, log_probs = Policy(DISCRETE, logits, UNIMIX), mixed_log_probs(logits, UNIMIX)
    action = policy.sample(key)
    np.testing.assert_array_equal(action, sample_categorical(key, log_probs))
    np.testing.assert_array_equal(policy.log_prob(action), take_class(log_probs, action))
    np.testing.assert_array_equal(policy.entropy(), entropy(log_probs))
    np.testing.assert_array_equal(policy.mode(), np.argmax(log_probs, -1))
    assert action.dtype == policy.mode().dtype == jnp.int32
    one = jnp.arange(6)
    np.testing.assert_array_equal(
        encode_action(one, DISCRETE, jnp.bfloat16), jax.nn.one_hot(one, 6, dtype=jnp.bfloat16)
    )


def by_hand(space: ActionSpace, row: np.ndarray) -> list:
    """The distributions of one row of outputs from scipy, one per entry, in its order."""
    found, at = [], 0
    for start, size in space.groups():
        del start
        if size > 0:
            odds = np.exp(row[at : at + size] - row[at : at + size].max())
            probs = (1 - UNIMIX) * odds / odds.sum() + UNIMIX / size
            found.append(stats.rv_discrete(values=(np.arange(size), probs / probs.sum())))
            at += size
        else:
            x, y = row[at : at - size], row[at - size : at - 2 * size]
            std = 0.1 + 0.9 / (1 + np.exp(-(y + 2)))
            found += [stats.norm(m, s) for m, s in zip(np.tanh(x), std, strict=True)]
            at += -2 * size
    return found


@each_space
def test_log_probability_and_entropy_are_those_of_scipy(space: ActionSpace) -> None:
    rows, rng = outputs(space, N), np.random.default_rng(2)
    policy = Policy(space, rows, UNIMIX)
    action = space.sample(rng, N)
    if 0 in space.sizes:  # densities hold outside [-1, 1] too
        action = np.where(np.array(space.sizes) == 0, 1.7 * action, action).astype(np.float32)
    for row, taken, log_prob, nats in zip(
        rows, action.reshape(N, -1), policy.log_prob(action), policy.entropy(), strict=True
    ):
        parts = by_hand(space, row.astype(np.float64))
        entries = zip(parts, space.sizes, taken, strict=True)
        each = [p.logpmf(a) if n else p.logpdf(a) for p, n, a in entries]
        np.testing.assert_allclose(log_prob, sum(each), rtol=2e-5, atol=1e-5)
        np.testing.assert_allclose(nats, sum(p.entropy() for p in parts), rtol=2e-5, atol=1e-5)


@each_space
def test_samples_follow_the_policy(space: ActionSpace) -> None:
    row, count = outputs(space), 20_000
    policy = Policy(space, jnp.broadcast_to(row, (count, len(row))), UNIMIX)
    drawn = np.asarray(policy.sample(jax.random.key(0))).reshape(count, -1)
    for part, size, values in zip(by_hand(space, row), space.sizes, drawn.T, strict=True):
        if size:
            shares = np.bincount(values.astype(int), minlength=size) / count
            np.testing.assert_allclose(shares, part.pmf(np.arange(size)), atol=0.015)
        else:
            assert stats.kstest(values, part.cdf).pvalue > 0.001
    assert np.abs(np.corrcoef(drawn.T) - np.eye(drawn.shape[1])).max() < 0.03  # independent


@each_space
def test_what_an_environment_is_given_exists(space: ActionSpace) -> None:
    policy = Policy(space, 3 * outputs(space, 500), UNIMIX)
    for key in (None, jax.random.key(0), jax.random.split(jax.random.key(1), 500)):
        action = np.asarray(policy.act(key))
        assert (action.dtype, action.shape) == (space.dtype, (500, *space.shape))
        assert not space.wrong(action).any()
    # Given numbers are the quantiles: what a caller draws for many steps at once.
    u = jax.random.uniform(jax.random.key(2), (500, *space.shape))
    np.testing.assert_array_equal(policy.sample(u), policy.sample(u))
    assert bool(policy.finite())
    assert not Policy(space, outputs(space, 2) * np.nan, UNIMIX).finite()


def test_normal_numbers_are_finite_quantiles() -> None:
    u = np.array([0.0, 0.025, 0.5, 0.975, np.nextafter(np.float32(1), 0)], np.float32)
    found = np.asarray(standard_normal(u))
    np.testing.assert_allclose(found[1:4], [-1.959964, 0, 1.959964], atol=1e-5)
    assert np.isfinite(found).all()
    assert (np.abs(found) < 6).all()


def test_the_gradient_raises_the_density_of_a_good_action() -> None:
    action = jnp.array([[0.4, -0.2]])

    def log_prob(row: jax.Array) -> jax.Array:
        return Policy(BOX, row, UNIMIX).log_prob(action).sum()

    row = jnp.asarray(outputs(BOX, 1))
    gradient = jax.grad(log_prob)(row)
    direction = 1e-2 * np.eye(4, dtype=np.float32)
    expected = [(log_prob(row + d[None]) - log_prob(row - d[None])) / 2e-2 for d in direction]
    np.testing.assert_allclose(gradient[0], expected, rtol=1e-2, atol=1e-2)
