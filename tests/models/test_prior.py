"""The MaskGIT predictor against NumPy: embedding, projection, attention over the positions."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from emerald_jax.models.prior import MaskGit
from tests import oracles
from tests.model_cases import compiled, random_params, small_config, to_numpy

CONFIG = small_config().model
P, G, K, F = CONFIG.grid**2, CONFIG.groups, CONFIG.classes, CONFIG.predictor_width
MODEL = MaskGit(CONFIG, jnp.float32)


@pytest.fixture(scope="module")
def features():
    return np.random.default_rng(0).normal(size=(2, P, F)).astype(np.float32)


@pytest.fixture(scope="module")
def tokens():
    return np.random.default_rng(1).integers(0, K + 1, (2, P, G)).astype(np.int32)


@pytest.fixture(scope="module")
def params(features, tokens):
    shapes = jax.eval_shape(MODEL.init, jax.random.key(0), features, tokens)
    return random_params(shapes["params"])


@pytest.fixture(scope="module")
def predict(params, features, tokens):
    """tokens -> logits."""

    def logits(features, tokens):
        return MODEL.apply({"params": params}, features, tokens)

    program = compiled(logits, features, tokens)
    return lambda tokens: np.asarray(program(features, np.asarray(tokens, np.int32)))


def oracle(params, features, tokens):
    """Embed every token, flatten each position, project together with its features."""
    p = to_numpy(params)
    embedded = p["words"].astype(np.float64)[tokens].reshape(P, G * CONFIG.token_width)
    x = embedded @ p["from_words"] + oracles.dense(p["from_features"], features) + p["places"]
    for block in range(CONFIG.predictor_blocks):
        x = oracles.position_attention(p[f"attention_{block}"], x, CONFIG.heads)
        x = oracles.feed_forward(p[f"feed_forward_{block}"], x)
    return oracles.dense(p["out"], x).reshape(P, G, K)


def test_predictor_agrees_with_numpy(params, features, tokens, predict):
    result = predict(tokens)
    assert result.shape == (2, P, G, K)
    for i in range(2):
        expected = oracle(params, features[i], tokens[i])
        np.testing.assert_allclose(result[i], expected, atol=2e-5)


def test_none_equals_all_masked(params, features, predict):
    nothing = compiled(lambda x: MODEL.apply({"params": params}, x, None), features)
    everything_masked = np.full((2, P, G), K)
    np.testing.assert_allclose(nothing(features), predict(everything_masked), atol=1e-5)


def test_every_token_reaches_every_position(tokens, predict):
    base = predict(tokens)
    changed = tokens.copy()
    changed[0, 3, 1] = (changed[0, 3, 1] + 1) % (K + 1)
    difference = np.abs(predict(changed) - base).max((2, 3))
    assert (difference[0] > 1e-6).all(), "attention is bidirectional over the positions"
    assert (difference[1] == 0).all(), "states do not mix"


def test_groups_and_positions_are_distinguished(tokens, predict):
    base = predict(tokens)
    swapped = tokens.copy()
    swapped[0, 2] = (0, 1, 2)
    one = predict(swapped)
    swapped[0, 2] = (1, 0, 2)
    assert np.abs(predict(swapped) - one).max() > 1e-3
    assert np.abs(base[0, 0] - base[0, 1]).max() > 1e-3
