"""The heads' shared trunk against NumPy."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from emerald_jax.models.heads import Head
from tests import oracles
from tests.model_cases import compiled, random_params, small_config, to_numpy

CONFIG = small_config().model
P, G, K, D = CONFIG.grid**2, CONFIG.groups, CONFIG.classes, CONFIG.width


def test_head_by_formula():
    # z -> 1x1 convolution, norm, SiLU -> flatten -> linear D, with h -> two layers -> outputs.
    rng = np.random.default_rng(0)
    z = rng.integers(0, K, (4, 2, P, G)).astype(np.int32)
    h = rng.normal(size=(4, 2, D)).astype(np.float32)
    head = Head(CONFIG, 7, 1.0, jnp.float32)
    params = random_params(jax.eval_shape(head.init, jax.random.key(0), z, h)["params"])
    hot = np.eye(K, dtype=np.float32)[z]

    def both(params):
        variables = {"params": params}
        return head.apply(variables, z, h), head.apply(variables, hot, h)

    by_index, by_one_hot = compiled(both, params)(params)
    p = to_numpy(params)
    latent = oracles.dense(p["LatentProjection_0"], hot.reshape(4, 2, P, G * K))
    x = oracles.norm_silu(p["NormSilu_0"], latent).reshape(4, 2, -1)
    x = np.concatenate([oracles.dense(p["Dense_0"], x), h], axis=-1)
    for layer in (1, 2):
        x = oracles.norm_silu(p[f"NormSilu_{layer}"], oracles.dense(p[f"Dense_{layer}"], x))
    np.testing.assert_allclose(by_index, oracles.dense(p["Dense_3"], x), atol=2e-5)
    np.testing.assert_allclose(by_one_hot, by_index, atol=2e-5)
