"""A world model must be able to overfit one batch."""

from __future__ import annotations

from functools import partial

import jax
import numpy as np
import optax
import pytest

from emerald_jax.agent.state import build_learner
from emerald_jax.losses import weighted_sum, world_model_losses
from tests.model_cases import (
    IMAGE,
    LENGTH,
    NUM_ACTIONS,
    compiled,
    make_batch,
    make_carry,
    make_state,
    sequence_keys,
    small_config,
)

SEQUENCES, STEPS = 2, 400


def pictures(shape):
    """A coloured square in one of sixteen places on a coloured background."""
    rng = np.random.default_rng(0)
    images = np.zeros((*shape, IMAGE, IMAGE, 3), np.uint8)
    for index in np.ndindex(shape):
        y, x = 4 * rng.integers(0, 4, 2)
        images[index] = 100 * (rng.random(3) < 0.5)
        images[index][y : y + 4, x : x + 4] = 100 + 155 * (rng.random(3) < 0.5)
    return images


@pytest.mark.slow
def test_a_batch_of_images_is_overfitted():
    # 24 frames; their mean alone leaves an error of 0.06, the colours without the place 0.02.
    config = small_config(
        model=dict(channels=12, dropout=0.0), loss=dict(image=16.0), optim=dict(model_lr=5e-3)
    )
    learner = build_learner(config, NUM_ACTIONS)
    batch = make_batch(learner, batch=SEQUENCES)
    nothing = make_carry(learner, np.random.default_rng(0), np.zeros(SEQUENCES, bool))
    batch = batch._replace(image=pictures((SEQUENCES, LENGTH)), reset=batch.is_first, carry=nothing)
    optimizer = learner.optimizers["world_model"]

    def loss(params, keys):
        run = partial(world_model_losses, model=learner.model, config=config.loss)
        terms, (_, metrics) = jax.vmap(run, in_axes=(None, 0, 0))(params, batch, keys)
        return weighted_sum(terms, config.loss).mean(), metrics["pixel_error"].mean()

    def step(params, state, keys):
        grads, error = jax.grad(loss, has_aux=True)(params, keys)
        updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), state, error

    params = make_state(learner).params["world_model"]
    state, errors = optimizer.init(params), []
    program = compiled(step, params, state, sequence_keys(0, SEQUENCES))
    for number in range(STEPS):
        params, state, error = program(params, state, sequence_keys(number, SEQUENCES))
        errors.append(float(error))
    assert errors[0] > 0.06
    assert np.mean(errors[-10:]) < 0.001
