"""Acting, step by step, sees what training sees, and keeps its environments apart."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from emerald_jax.agent import Observation, act
from emerald_jax.agent.state import build_learner, init_carry
from emerald_jax.types import Batch
from tests.model_cases import NUM_ACTIONS, compiled, make_state, small_config, to_numpy

ENVS, T = 3, 16
#: First frames per environment: one long episode, one border, two borders in a row.
FIRST = ((0,), (0, 6), (0, 4, 5))


@pytest.fixture(scope="module")
def learner():
    # Without the uniform share, and with a loud encoder, a frame has one latent: acting and
    # training must draw the same although their random numbers differ.
    return build_learner(small_config(model=dict(unimix=0.0)), NUM_ACTIONS)


@pytest.fixture(scope="module")
def params(learner):
    params = make_state(learner).params
    last = params["world_model"]["encoder"]["Conv_0"]
    assert last["bias"].shape == (3 * 5,), "not the convolution to the logits"
    loud = {name: 1e6 * x for name, x in last.items()}
    encoder = {**params["world_model"]["encoder"], "Conv_0": loud}
    return {**params, "world_model": {**params["world_model"], "encoder": encoder}}


def make_frames(seed=0):
    """Observations `[T, E]`."""
    rng = np.random.default_rng(seed)
    is_first = np.zeros((T, ENVS), bool)
    for env, steps in enumerate(FIRST):
        is_first[list(steps), env] = True
    image = rng.integers(0, 256, (T, ENVS, 16, 16, 3), dtype=np.uint8)
    action = np.where(is_first, -1, rng.integers(0, NUM_ACTIONS, (T, ENVS))).astype(np.int32)
    return Observation(image, action, is_first)


def act_along(params, frames, key, learner):
    """Act at every step; beside it, at the same memory, the mode and the policy."""

    def body(carry, inputs):
        frame, step_key = inputs
        acted = act(params, carry, frame, step_key, learner=learner)
        mode = act(params, carry, frame, step_key, learner=learner, mode=True).action
        log_probs = learner.actor_critic.policy(params["actor"], acted.state).parts[0]
        return acted.carry, (acted._replace(carry=None), mode, log_probs)

    carry, steps = jax.lax.scan(body, init_carry(learner, ENVS), (frames, jax.random.split(key, T)))
    return carry, *steps


@pytest.fixture(scope="module")
def acting(learner, params):
    frames, key = make_frames(), jax.random.key(0)
    program = compiled(partial(act_along, learner=learner), params, frames, key)
    return lambda frames=frames, seed=0, params=params: to_numpy(
        program(params, frames, jax.random.key(seed))
    )


def training_pass(params, frames, key, learner):
    """All frames of every environment at once, as the world-model loss reads them."""
    by_env = jax.tree.map(lambda x: jnp.moveaxis(x, 0, 1), frames)
    nothing = jnp.zeros((ENVS, T), bool)
    batch = Batch(
        image=by_env.image,
        action=by_env.action,
        reward=jnp.zeros((ENVS, T)),
        is_first=by_env.is_first,
        is_last=nothing,
        is_terminal=nothing,
        reset=by_env.is_first,
        carry=init_carry(learner, ENVS),
    )
    one = partial(learner.model.apply, {"params": params["world_model"]})
    passed = jax.vmap(one)(batch, jax.random.split(key, ENVS))
    return passed.state, passed.carry


def test_acting_equals_the_training_pass(learner, params, acting):
    # 16 steps, twice the window of 7: the cache has slid, across borders too.
    carry, acted, _, _ = acting()
    args = (params, make_frames(), jax.random.key(99))
    state, next_one = to_numpy(compiled(partial(training_pass, learner=learner), *args)(*args))
    assert len(np.unique(acted.state.z)) == 5
    np.testing.assert_array_equal(np.moveaxis(acted.state.z, 0, 1), state.z)
    np.testing.assert_allclose(np.moveaxis(acted.state.h, 0, 1), state.h, atol=1e-5)
    # What acting remembers is what training would hand to the next chunk.
    np.testing.assert_array_equal(carry.z, next_one.z)
    np.testing.assert_array_equal(carry.memory.valid, next_one.memory.valid)
    valid = carry.memory.valid[:, None, :, None, None]
    for mine, theirs in zip(carry.memory[:2], next_one.memory[:2], strict=True):
        np.testing.assert_allclose(np.where(valid, mine, 0), np.where(valid, theirs, 0), atol=1e-5)


def test_environments_do_not_hear_one_another(acting):
    frames, other = make_frames(), make_frames(seed=1)
    mixed = jax.tree.map(lambda a, b: np.concatenate([a[:, :1], b[:, 1:]], axis=1), frames, other)
    (_, one, *_), (_, two, *_) = acting(frames), acting(mixed)
    np.testing.assert_array_equal(one.action[:, 0], two.action[:, 0])
    np.testing.assert_array_equal(one.state.h[:, 0], two.state.h[:, 0])
    heard = (one.state.h != two.state.h).any(-1)
    np.testing.assert_array_equal(heard[:, 1:], ~frames.is_first[:, 1:])


def test_a_first_frame_forgets_everything(acting):
    # Environment 1 begins anew at step 6, whatever came before.
    frames, other = make_frames(), make_frames(seed=1)
    image, action = frames.image.copy(), frames.action.copy()
    image[:6, 1], action[1:6, 1] = other.image[:6, 1], other.action[1:6, 1]
    (carry, one, *_), (changed, two, *_) = (
        acting(frames),
        acting(frames._replace(image=image, action=action)),
    )
    np.testing.assert_array_equal(one.state.h[6:, 1], two.state.h[6:, 1])
    assert (one.state.h[1:6, 1] != two.state.h[1:6, 1]).any(-1).all()
    np.testing.assert_array_equal(carry.memory.keys[1], changed.memory.keys[1])
    # A first frame is the learned start alone: the same h for every episode.
    first = one.state.h[np.nonzero(frames.is_first)]
    assert len(first) == 6
    np.testing.assert_allclose(first, np.broadcast_to(first[0], first.shape), atol=1e-6)
    later = one.state.h[np.nonzero(~frames.is_first)]
    assert (np.abs(later - first[0]).max(-1) > 1e-3).all()


def test_the_mode_is_the_most_probable_action(acting):
    _, acted, mode, log_probs = acting()
    np.testing.assert_array_equal(mode, log_probs.argmax(-1))
    assert (mode != acted.action).any(), "samples are no modes"
    assert mode.dtype == acted.action.dtype == np.int32


def test_actions_are_samples_of_the_policy(acting):
    # The latents are certain, so every seed meets the same policies: 60 draws of each of 48.
    draws = np.stack([acting(seed=seed)[1].action for seed in range(60)])
    probs = np.exp(acting()[3].astype(np.float64))
    rate = np.stack([(draws == a).mean(0) for a in range(NUM_ACTIONS)], axis=-1)
    z = (rate - probs) / np.sqrt(probs * (1 - probs) / len(draws))
    assert ((draws >= 0) & (draws < NUM_ACTIONS)).all()
    assert 0.8 < np.mean(z**2) < 1.25


def test_numbers_that_are_none_are_reported(acting, params):
    assert acting()[1].finite.all()
    actor = jax.tree.map(lambda x: x * np.nan, params["actor"])
    assert not acting(params={**params, "actor": actor})[1].finite.any()
