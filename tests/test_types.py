"""Keys of seeds."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from emerald_jax.types import key_of


@pytest.mark.parametrize("seed", [0, 1, 7, 2**31 - 1, 2**31, 2**32 - 1])
def test_below_32_bits_a_key_is_that_of_jax(seed: int) -> None:
    np.testing.assert_array_equal(
        jax.random.key_data(key_of(seed)), jax.random.key_data(jax.random.key(seed))
    )


def test_seeds_that_differ_in_high_bits_have_different_keys() -> None:
    seeds = [0, 1, 2**32, 2**32 + 1, 2**33, 2**62, 2**63 - 1, 2**63 - 2, 2**31, 2**31 + 2**32]
    keys = {tuple(np.asarray(jax.random.key_data(key_of(seed))).tolist()) for seed in seeds}
    assert len(keys) == len(seeds)
