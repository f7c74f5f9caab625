import numpy as np
import pytest

from emerald_jax.envs.gym import area_weights, resize_area


def test_weights_by_hand():
    # Three pixels on two: the middle one belongs to both halves.
    wanted = [[2 / 3, 1 / 3, 0], [0, 1 / 3, 2 / 3]]
    np.testing.assert_allclose(area_weights(3, 2), wanted, atol=1e-6)
    # Two pixels on four: each is doubled.
    np.testing.assert_allclose(area_weights(2, 4), [[1, 0], [1, 0], [0, 1], [0, 1]], atol=1e-6)


@pytest.mark.parametrize(("old", "new"), [(210, 64), (160, 64), (64, 64), (7, 64), (63, 64)])
def test_rows_sum_to_one_and_every_pixel_counts_alike(old, new):
    weights = area_weights(old, new)
    np.testing.assert_allclose(weights.sum(1), 1, rtol=1e-5)
    np.testing.assert_allclose(weights.sum(0), new / old, rtol=1e-5)


def test_whole_factors_are_block_means_and_repetitions():
    rng = np.random.default_rng(0)
    image = rng.integers(256, size=(8, 12, 3))
    small = resize_area(image, 4)
    np.testing.assert_allclose(small, image.reshape(4, 2, 4, 3, 3).mean((1, 3)), rtol=1e-5)
    large = resize_area(image[:4, :4], 8)
    np.testing.assert_allclose(large, image[:4, :4].repeat(2, 0).repeat(2, 1), rtol=1e-5)
