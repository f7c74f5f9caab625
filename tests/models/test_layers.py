"""Building blocks against NumPy: the two forms of a latent, sinusoids, attention over positions."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from emerald_jax.models.layers import LatentProjection, sinusoids

G, K, F = 3, 5, 4


def test_latent_projection_takes_indices_or_one_hot():
    rng = np.random.default_rng(0)
    index = rng.integers(0, K, (2, 7, G))
    kernel = rng.normal(size=(G * K, F)).astype(np.float32)
    bias = rng.normal(size=F).astype(np.float32)
    module = LatentProjection(G, K, F)
    variables = {"params": {"kernel": jnp.asarray(kernel), "bias": jnp.asarray(bias)}}
    hot = np.eye(K, dtype=np.float32)[index]
    by_index = module.apply(variables, jnp.asarray(index))
    # One row of the kernel for each group's class, summed.
    rows = kernel.reshape(G, K, F)
    expected = sum(rows[g, index[..., g]] for g in range(G)) + bias
    np.testing.assert_allclose(by_index, expected, atol=1e-6)
    np.testing.assert_array_equal(module.apply(variables, jnp.asarray(hot)), by_index)
    # In one-hot form the gradient reaches z: it is the kernel itself.
    gradient = jax.grad(lambda z: module.apply(variables, z)[..., 1].sum())(jnp.asarray(hot))
    np.testing.assert_allclose(gradient, np.broadcast_to(rows[..., 1], hot.shape), atol=1e-6)


def test_sinusoids_by_formula():
    distances, width = np.array([0, 1, 5, 64]), 6
    result = sinusoids(jnp.asarray(distances), width)
    assert result.shape == (4, width)
    for row, distance in enumerate(distances):
        for i in range(width // 2):
            angle = distance / 10000 ** (2 * i / width)
            np.testing.assert_allclose(result[row, i], np.sin(angle), atol=1e-5)
            np.testing.assert_allclose(result[row, width // 2 + i], np.cos(angle), atol=1e-5)
