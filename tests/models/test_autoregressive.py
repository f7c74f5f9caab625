"""The autoregressive predictor: NumPy oracle, causality, cached decoding."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from emerald_jax.models.prior import Autoregressive, MaskGit, empty_cache
from tests import oracles
from tests.model_cases import compiled, random_params, small_config, to_numpy

CONFIG = small_config(model=dict(prior="autoregressive", predictor_blocks=2)).model
P, G, K, F = CONFIG.positions, CONFIG.groups, CONFIG.classes, CONFIG.predictor_width
MODEL = Autoregressive(CONFIG, jnp.float32)
LEAD = (2, 3)


@pytest.fixture(scope="module")
def features():
    return np.random.default_rng(0).normal(size=(*LEAD, P, F)).astype(np.float32)


@pytest.fixture(scope="module")
def tokens():
    return np.random.default_rng(1).integers(0, K, (*LEAD, P, G)).astype(np.int32)


@pytest.fixture(scope="module")
def params(features, tokens):
    shapes = jax.eval_shape(MODEL.init, jax.random.key(0), features, tokens)
    return random_params(shapes["params"])


@pytest.fixture(scope="module")
def predict(params, features, tokens):
    """(tokens, features) -> logits of the complete latent at once."""

    def logits(tokens, features):
        return MODEL.apply({"params": params}, features, tokens)

    program = compiled(logits, tokens, features)
    return lambda tokens, features=features: np.asarray(program(tokens, features))


def oracle(params, features, tokens):
    """Position by position: embed the previous tokens, attend to the earlier positions."""
    p = to_numpy(params)
    shifted = np.concatenate([np.full((1, G), K), tokens[:-1]])
    embedded = p["words"].astype(np.float64)[shifted].reshape(P, G * CONFIG.token_width)
    x = embedded @ p["from_words"] + oracles.dense(p["from_features"], features) + p["places"]
    size = F // CONFIG.heads
    for block in range(CONFIG.predictor_blocks):
        a = p[f"attention_{block}"]
        query, key, value = np.split(oracles.dense(a["qkv"], x), 3, axis=-1)
        mixed = np.zeros_like(x)
        for head in range(CONFIG.heads):
            part = slice(head * size, (head + 1) * size)
            for i in range(P):
                scores = key[: i + 1, part] @ query[i, part] / np.sqrt(size)
                mixed[i, part] = oracles.softmax(scores) @ value[: i + 1, part]
        x = oracles.norm(a["norm"], x + oracles.dense(a["out"], mixed))
        x = oracles.feed_forward(p[f"feed_forward_{block}"], x)
    return oracles.dense(p["out"], x).reshape(P, G, K)


def test_predictor_agrees_with_numpy(params, features, tokens, predict):
    result = predict(tokens)
    assert result.shape == (*LEAD, P, G, K)
    for i in np.ndindex(LEAD):
        np.testing.assert_allclose(result[i], oracle(params, features[i], tokens[i]), atol=3e-5)


def test_a_position_depends_only_on_earlier_positions(tokens, predict):
    base = predict(tokens)
    for place in range(P):
        changed = tokens.copy()
        changed[0, 0, place] = (changed[0, 0, place] + 1) % K
        difference = np.abs(predict(changed) - base).max((-2, -1))
        assert (difference[0, 0, : place + 1] == 0).all()
        assert (difference[0, 0, place + 1 :] > 1e-6).all()
        assert difference.sum() == difference[0, 0].sum(), "states do not mix"


def test_cached_steps_equal_the_full_pass(params, features, tokens, predict):
    def one_by_one(params, features, tokens):
        def body(loop, place):
            previous, cache = loop
            logits, cache = MODEL.apply(
                {"params": params}, features, previous, place, cache, method=Autoregressive.step
            )
            return (tokens[..., place, :], cache), logits

        begin = jnp.full((*LEAD, G), K), empty_cache(CONFIG, LEAD, jnp.float32)
        return jnp.moveaxis(jax.lax.scan(body, begin, jnp.arange(P))[1], 0, -3)

    tokens = jnp.asarray(tokens)
    result = compiled(one_by_one, params, features, tokens)(params, features, tokens)
    np.testing.assert_allclose(result, predict(tokens), atol=1e-5)


def test_it_has_as_many_parameters_as_the_maskgit(params, features, tokens):
    masked = jax.eval_shape(MaskGit(CONFIG, jnp.float32).init, jax.random.key(0), features, tokens)
    sizes = [sum(x.size for x in jax.tree.leaves(tree)) for tree in (params, masked)]
    assert sizes[0] == sizes[1]
