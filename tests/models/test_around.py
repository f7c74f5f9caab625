"""``model.prior_input`` hz: priors that see what lies around each position in z_{t-1}."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from emerald_jax import imagination
from emerald_jax.actions import ActionSpace
from emerald_jax.agent import dream
from emerald_jax.agent.state import build_learner, init_carry
from emerald_jax.config import ConfigError
from emerald_jax.imagination import Decoded, decode, imagine, starts_from, world_model_step
from emerald_jax.models.prior import Around
from emerald_jax.models.world_model import WorldModel
from emerald_jax.training.update import train_step
from emerald_jax.types import Before
from tests.model_cases import (
    LENGTH,
    NUM_ACTIONS,
    compiled,
    make_batch,
    make_state,
    one_sequence,
    random_params,
    sequence_keys,
    small_config,
    small_learner,
)

SIDE, H = 4, 3


def learner_of(**model):
    return build_learner(small_config(model={"prior_input": "hz", **model}), NUM_ACTIONS)


@pytest.fixture(scope="module")
def learner():
    return learner_of()


@pytest.fixture(scope="module")
def params(learner):
    return make_state(learner).params


@pytest.fixture(scope="module")
def look(learner):
    """``look(z, action, reset)``: features `[4, 4, F]`."""
    net = Around(learner.config.model, ActionSpace.of(NUM_ACTIONS), jnp.float32)
    z, action = jnp.zeros((SIDE**2, 3), jnp.int32), jnp.int32(0)
    shapes = jax.eval_shape(net.init, jax.random.key(0), Before(z, action, jnp.bool_(False)))
    weights = random_params(shapes, 0)

    def run(z, action=1, reset=False):
        out = net.apply(weights, Before(z, jnp.int32(action), jnp.bool_(reset)))
        return np.asarray(out).reshape(SIDE, SIDE, -1)

    return run


def latent(seed=0):
    return np.random.default_rng(seed).integers(0, 5, (SIDE**2, 3))


def test_a_position_sees_its_eight_neighbours_alone(look):
    z, other = latent(), latent()
    other[5] = (other[5] + 1) % 5  # row 1, column 1
    changed = np.abs(look(z) - look(other)).max(-1) > 1e-6
    expected = np.zeros((SIDE, SIDE), bool)
    expected[0:3, 0:3] = True
    np.testing.assert_array_equal(changed, expected)


def test_what_moves_looks_the_same_everywhere(look):
    z = np.zeros((SIDE, SIDE, 3), int)
    here, there = z.copy(), z.copy()
    here[1, 1], there[2, 2] = (1, 2, 3), (1, 2, 3)
    here, there = (look(x.reshape(SIDE**2, 3)) for x in (here, there))
    np.testing.assert_allclose(here[1, 1], there[2, 2], atol=1e-5)
    assert np.abs(here[1, 1] - here[2, 2]).max() > 0.01


def test_the_action_counts_and_a_reset_hides_everything(look):
    assert np.abs(look(latent(), 1) - look(latent(), 2)).max() > 0.01
    blank = look(latent(0), 1, reset=True)
    np.testing.assert_array_equal(blank, look(latent(1), 2, reset=True))
    assert np.abs(blank - look(latent(0), 1)).max() > 0.01


@pytest.mark.parametrize(
    "model", [{}, {"sequence": "rssm", "prior": "linear"}], ids=["tssm", "rssm"]
)
@pytest.mark.parametrize("index", [1, 2, 4], ids=["with-memory", "border", "no-memory"])
def test_real_steps_are_led_by_the_latent_before(model, index):
    learner = learner_of(**model)
    sequence = one_sequence(make_batch(learner), index)
    params = make_state(learner).params["world_model"]

    def run(params, key):
        passed = learner.model.apply({"params": params}, sequence, key)
        z = jnp.concatenate([sequence.carry.z[None], passed.state.z[:-1]])
        valid = np.asarray(sequence.carry.memory.valid).reshape(-1)[-1]
        reset = np.asarray(sequence.reset) | ((np.arange(LENGTH) == 0) & ~valid)
        led = Before(z, jnp.asarray(sequence.action), jnp.asarray(reset))
        again = learner.model.apply(
            {"params": params}, passed.state.h, led, method=WorldModel.prior_features
        )
        return passed.features, again

    found, again = compiled(run, params, jax.random.key(0))(params, jax.random.key(0))
    np.testing.assert_allclose(found, again, atol=1e-5)


def spy(params, h, key, *, before, **options):
    """Instead of decoding: the latent before, its classes moved by the action."""
    z = (before.z + before.action[..., None, None]) % 5
    return Decoded(z, jnp.zeros(z.shape), ())


def test_both_dreams_hand_on_the_latent_and_the_action(monkeypatch, learner, params):
    monkeypatch.setattr(imagination, "decode", spy)
    monkeypatch.setattr(dream, "decode", spy)
    batch = make_batch(learner)
    actions = np.random.default_rng(0).integers(1, NUM_ACTIONS, (H, LENGTH)).astype(np.int32)

    def imagined(params):
        passed = learner.model.apply(
            {"params": params["world_model"]}, one_sequence(batch, 1), jax.random.key(0)
        )
        starts = starts_from(passed, jnp.arange(LENGTH))
        own, step = world_model_step(learner.model, starts, decode_steps=1, horizon=H)
        options = dict(policy=lambda _, state, k, key: jnp.asarray(actions)[k], step=step)
        return imagine(params, starts.state, own, jax.random.key(1), horizon=H, **options).state.z

    z = np.asarray(compiled(imagined, params)(params))
    np.testing.assert_array_equal(z[1:], (z[:-1] + actions[..., None, None]) % 5)

    def dreamt(params):
        carry = init_carry(learner, LENGTH)
        carry = carry._replace(z=jnp.asarray(np.stack([latent(i) for i in range(LENGTH)])))
        options = dict(learner=learner, steps=1)
        after, state = dream.dream_step(
            params, carry, jnp.asarray(actions[0]), jax.random.key(0), **options
        )
        return carry.z, after.z, state.z

    before, carried, z = (np.asarray(x) for x in compiled(dreamt, params)(params))
    np.testing.assert_array_equal(z, (before + actions[0][:, None, None]) % 5)
    np.testing.assert_array_equal(carried, z)


def test_decoding_needs_what_led_there(learner, params):
    h = jnp.zeros((2, learner.config.model.width))
    with pytest.raises(ValueError, match="prior_input is hz"):
        decode(params["world_model"], h, jax.random.key(0), model=learner.model, steps=1)


def test_its_parameters_learn(learner, params):
    batch, state = make_batch(learner), make_state(learner)
    inputs = (state, batch, sequence_keys(0))
    after = compiled(partial(train_step, learner=learner), *inputs)(*inputs)[0]
    moved = jax.tree.map(
        lambda a, b: float(jnp.abs(a - b).max()),
        after.params["world_model"]["around"],
        params["world_model"]["around"],
    )
    assert min(jax.tree.leaves(moved)) > 0
    assert "around" not in make_state(small_learner()).params["world_model"]


def test_a_vector_has_no_positions():
    config = small_config(model={"prior_input": "hz", "latent": "vector"})
    with pytest.raises(ConfigError, match="prior_input hz needs positions"):
        config.validate()
