"""Building blocks against NumPy: the two forms of a latent, sinusoids, attention over positions."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from emerald_jax.actions import ActionSpace
from emerald_jax.models.layers import (
    Dense,
    LatentProjection,
    Norm,
    embed_tokens,
    init_together,
    sinusoids,
)
from emerald_jax.models.tssm import Tssm
from emerald_jax.target import Target, tracing_for
from tests import oracles
from tests.model_cases import small_config

G, K, F = 3, 5, 4


def test_latent_projection_of_indices_equals_that_of_one_hot():
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


@pytest.mark.parametrize(("groups", "rows"), [(32, 33), (3, 5)])  # gathered; a product
def test_embedding_sums_the_rows_of_the_tokens(groups, rows):
    rng = np.random.default_rng(0)
    tokens = jnp.asarray(rng.integers(0, rows, (2, 7, groups)))
    table = jnp.asarray(rng.normal(size=(groups, rows, F)), jnp.float32)
    expected = sum(np.asarray(table)[g, np.asarray(tokens)[..., g]] for g in range(groups))
    np.testing.assert_allclose(embed_tokens(tokens, table), expected, atol=1e-5)
    # d / d table[g, w] is the sum of dy over the positions whose group g is w.
    dy = rng.normal(size=expected.shape).astype(np.float32)
    gradient = np.zeros(table.shape)
    for g in range(groups):
        np.add.at(gradient[g], np.asarray(tokens)[..., g], dy)

    def one(table, tokens, dy):
        return jnp.sum(embed_tokens(tokens, table) * dy)

    np.testing.assert_allclose(jax.grad(one)(table, tokens, dy), gradient, atol=1e-4)
    batched = jax.vmap(jax.grad(one), in_axes=(None, 0, 0))(table, tokens, dy)
    np.testing.assert_allclose(batched.sum(0), gradient, atol=1e-4)


def test_sinusoids_by_formula():
    distances, width = np.array([0, 1, 5, 64]), 6
    result = sinusoids(jnp.asarray(distances), width)
    assert result.shape == (4, width)
    for row, distance in enumerate(distances):
        for i in range(width // 2):
            angle = distance / 10000 ** (2 * i / width)
            np.testing.assert_allclose(result[row, i], np.sin(angle), atol=1e-5)
            np.testing.assert_allclose(result[row, width // 2 + i], np.cos(angle), atol=1e-5)


def test_parameters_drawn_together_have_their_own_distributions():
    # Two equal kernels, a vector and a bias, in modules of which one is rematerialised.
    config = small_config(model=dict(width=64, remat=True)).model
    model = Tssm(config, ActionSpace((3,)), jnp.float32)

    def init(key):
        z = jnp.zeros((2, config.positions, config.groups), jnp.int32)
        memory = Tssm.empty_memory(config, jnp.float32)
        return model.init(key, z, jnp.zeros(2, jnp.int32), jnp.zeros(2, bool), memory)["params"]

    params = init_together(init, jax.random.key(0))
    expected = jax.eval_shape(init, jax.random.key(0))
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(jnp.shape, expected)
    attention = params["attention_0"]
    kernel = np.asarray(attention["qkv"]["kernel"])
    # 64 inputs: a deviation of 1/8, cut off at two deviations of the normal, 2 / (8 x 0.8796).
    assert kernel.std() == pytest.approx(1 / 8, rel=0.03)
    assert np.abs(kernel).max() == pytest.approx(2 / (8 * 0.8796), rel=0.02)
    assert np.abs(kernel - params["attention_1"]["qkv"]["kernel"]).min() > 0
    assert np.std(params["start"]) == pytest.approx(0.02, rel=0.3)
    assert not np.any(attention["qkv"]["bias"])
    np.testing.assert_array_equal(attention["norm"]["scale"], 1)
    # A weak type would make another program of a train step, compiled again.
    assert not any(x.weak_type for x in jax.tree.leaves(params))
    traced = jax.jit(lambda key: init_together(init, key))
    again, other = traced(jax.random.key(0)), traced(jax.random.key(1))
    np.testing.assert_allclose(again["attention_0"]["qkv"]["kernel"], kernel, atol=1e-6)
    assert np.abs(other["attention_0"]["qkv"]["kernel"] - kernel).mean() > 0.05


def test_a_kernel_of_a_module_alone_has_the_same_distribution():
    kernel = Dense(500).init(jax.random.key(0), jnp.zeros((1, 64)))["params"]["kernel"]
    assert np.std(kernel) == pytest.approx(1 / 8, rel=0.03)


@pytest.mark.parametrize("platform", ["cpu", "gpu", "tpu"])
def test_both_forms_of_the_norm_are_layer_norms(platform):
    """A GPU gets another formula of the variance, as XLA makes fewer kernels of it."""
    x = np.random.default_rng(0).normal(3.0, 2.0, (5, 7, 64)).astype(np.float32)
    params = {"scale": jnp.linspace(0.5, 2.0, 64), "bias": jnp.linspace(-1.0, 1.0, 64)}
    with tracing_for(Target(platform, bfloat16=False)):
        found = jax.jit(Norm().apply)({"params": params}, x)
    np.testing.assert_allclose(found, oracles.norm(params, x), atol=2e-5)
