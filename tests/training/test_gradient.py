"""Gradients by parts are the gradient; how many parts a batch has."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from emerald_jax.config import Config, ConfigError
from emerald_jax.presets import get_preset
from emerald_jax.training.update import batch_parts, batched, mean_gradient


def loss(params, data):
    # One sample: (w x - y)^2, whose gradient is 2 x (w x - y).
    x, y = data
    error = params["w"] * x - y
    return jnp.mean(error**2), (error, {"size": jnp.mean(jnp.abs(error))})


@pytest.mark.parametrize("parts", [1, 2, 3, 6])
def test_parts_add_up_to_the_batch(parts):
    x, y = np.random.default_rng(0).normal(size=(2, 6)).astype(np.float32)
    grads, (error, metrics) = jax.jit(
        lambda w: mean_gradient(loss, {"w": w}, (jnp.asarray(x), jnp.asarray(y)), parts)
    )(jnp.float32(0.7))
    np.testing.assert_allclose(grads["w"], np.mean(2 * x * (0.7 * x - y)), rtol=1e-5)
    np.testing.assert_allclose(error, 0.7 * x - y, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(metrics["size"], np.abs(0.7 * x - y).mean(), rtol=1e-5)


@pytest.mark.parametrize("parts", [1, 3])
def test_parts_of_a_function_join_to_the_batch(parts):
    x, y = jnp.arange(6.0), jnp.arange(12.0).reshape(6, 2)
    sizes = []

    def add(data):
        sizes.append(len(data[0]))
        return {"sum": data[0][:, None] + data[1]}

    found = batched(add, (x, y), parts)
    np.testing.assert_array_equal(found["sum"], x[:, None] + y)
    assert set(sizes) == {6 // parts}


def with_micro_batch(config: Config, size: int) -> Config:
    return dataclasses.replace(config, optim=dataclasses.replace(config.optim, micro_batch=size))


def test_parts_are_the_fewest_that_are_small_enough():
    # 12 sequences, at most 5 each: 12 = 3 x 4.
    counts = [
        batch_parts(with_micro_batch(Config(), size), 12) for size in (1, 4, 5, 6, 11, 12, 99)
    ]
    assert counts == [12, 3, 3, 2, 2, 1, 1]


def test_a_cpu_chooses_by_the_first_feature_map():
    # 64 frames x 32 x 32 pixels x 32 channels x 4 bytes are 8 MiB: one sequence at a time.
    assert jax.default_backend() == "cpu"
    assert batch_parts(get_preset("crafter"), 16) == 16
    assert batch_parts(get_preset("crafter"), 4) == 4
    # 32 frames x 32 x 32 x 8 x 4 bytes are 1 MiB: the whole batch.
    assert batch_parts(get_preset("crafter-small"), 4) == 1
    assert batch_parts(get_preset("quickstart"), 8) == 1


def test_a_negative_size_is_refused():
    with pytest.raises(ConfigError, match="micro_batch is -1"):
        with_micro_batch(get_preset("tiny"), -1).validate()
