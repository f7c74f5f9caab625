"""Random numbers for batches of keys: one key's numbers do not depend on the other keys."""

from __future__ import annotations

import jax
import numpy as np
import scipy.stats

from emerald_jax.ops.random import bits, short_bits, split, uniform

KEYS = jax.random.split(jax.random.key(0), 6)


def test_each_key_has_its_own_numbers():
    grid = KEYS.reshape(2, 3)
    numbers = np.asarray(uniform(grid, (4, 5)))
    assert numbers.shape == (2, 3, 4, 5)
    for i, j in np.ndindex(2, 3):
        np.testing.assert_array_equal(numbers[i, j], uniform(grid[i, j], (4, 5)))
    assert len(np.unique(numbers)) == numbers.size
    first = uniform(KEYS, (4, 5), before=1)
    np.testing.assert_array_equal(first, np.moveaxis(numbers.reshape(6, 4, 5), 0, 1))
    assert bits(KEYS, (7,)).shape == (6, 7)


def test_numbers_drawn_before_are_used():
    numbers = np.full((3, 2), 0.25, np.float32)
    assert uniform(numbers, (99,)) is numbers


def test_split_keys_differ_and_come_first():
    one, two, three = split(KEYS, 3)
    assert one.shape == (6,)
    data = np.asarray(jax.random.key_data(jax.numpy.stack([one, two, three])))
    assert len(np.unique(data.reshape(18, -1), axis=0)) == 18
    assert (jax.random.key_data(one[2]) == jax.random.key_data(split(KEYS[2], 3)[0])).all()


def test_short_bits_are_uniform_and_independent():
    odd = np.asarray(short_bits(KEYS, (3, 5001)))  # an odd count: half a word is left over
    assert odd.shape == (6, 3, 5001)
    assert odd.dtype == np.uint16
    counts = np.bincount(odd.ravel() >> 12, minlength=16)
    assert scipy.stats.chisquare(counts).pvalue > 1e-3
    # The two halves of a word are neighbours.
    table = np.histogram2d(odd[..., :-1:2].ravel() >> 14, odd[..., 1::2].ravel() >> 14, bins=4)[0]
    assert scipy.stats.chi2_contingency(table).pvalue > 1e-3
