"""Decoding and imagination: MaskGIT's invariants, and rollouts that share one real past."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from emerald_jax.imagination import (
    decode,
    imagine,
    maskgit_decode,
    starts_from,
    world_model_step,
)
from emerald_jax.models.world_model import WorldModel
from emerald_jax.ops.maskgit import mask_counts, remask_counts
from emerald_jax.types import State
from tests.model_cases import (
    LENGTH,
    NUM_ACTIONS,
    compiled,
    make_batch,
    make_state,
    one_sequence,
    small_learner,
    to_numpy,
)

DRAWS = 4000


class Recorder:
    """A predictor that records the tokens of every call."""

    def __init__(self, shape, classes):
        self.classes, self.seen = classes, []
        noise = np.random.default_rng(0).normal(size=(*shape, classes + 1, classes))
        self.table = jnp.asarray(noise, jnp.float32)

    def __call__(self, tokens):
        self.seen.append(tokens if tokens is None else np.asarray(tokens))
        if tokens is None:
            return jax.nn.softmax(self.table[..., -1, :])
        rows = jnp.take_along_axis(self.table, tokens[..., None, None], axis=-2)[..., 0, :]
        return jax.nn.softmax(rows + rows.mean((-3, -2), keepdims=True))


@pytest.mark.parametrize("steps", [2, 3, 8, 20])
@pytest.mark.parametrize("method", ["maskgit", "mdlm", "halton"])
def test_kept_tokens_never_change(steps, method):
    shape, classes = (2, 4, 3), 5
    fake = Recorder(shape, classes)
    options = {"steps": steps, "shape": shape, "method": method}
    decoded = to_numpy(maskgit_decode(fake, jax.random.key(0), **options))
    assert len(decoded.masked) == len(fake.seen) == steps
    assert fake.seen[0] is None
    assert decoded.masked[0].all()
    counts = mask_counts(12, steps)
    for s in range(1, steps):
        tokens, masked = fake.seen[s], decoded.masked[s]
        np.testing.assert_array_equal(tokens == classes, masked)
        np.testing.assert_array_equal(masked.sum((1, 2)), counts[s])
        assert not (masked & ~decoded.masked[s - 1]).any(), "a kept token was masked again"
        # Tokens kept now equal those of the result.
        np.testing.assert_array_equal(tokens[~masked], decoded.z[~masked])
    assert ((decoded.z >= 0) & (decoded.z < classes)).all()


@pytest.mark.parametrize("method", ["maskgit", "remdm"])
def test_log_probs_are_those_of_the_last_draw(method):
    shape, classes = (2, 4, 3), 5
    fake = Recorder(shape, classes)
    options = {"steps": 4, "shape": shape, "method": method}
    decoded = to_numpy(maskgit_decode(fake, jax.random.key(1), **options))
    for s in range(4):
        last = decoded.masked[s] & ~np.any(decoded.masked[s + 1 :], axis=0)
        probs = fake(None if s == 0 else jnp.asarray(fake.seen[s]))
        expected = np.log(np.take_along_axis(np.asarray(probs), decoded.z[..., None], -1))
        np.testing.assert_allclose(decoded.log_prob[last], expected[..., 0][last], rtol=1e-5)


def test_remasking_draws_kept_tokens_again():
    shape, classes, steps = (2, 4, 3), 5, 6
    fake = Recorder(shape, classes)
    options = {"steps": steps, "shape": shape, "method": "remdm"}
    decoded = to_numpy(maskgit_decode(fake, jax.random.key(0), **options))
    counts, again = mask_counts(12, steps), remask_counts(mask_counts(12, steps))
    assert sum(again) > 2
    for s in range(1, steps):
        masked, before = decoded.masked[s], decoded.masked[s - 1]
        np.testing.assert_array_equal(fake.seen[s] == classes, masked)
        np.testing.assert_array_equal(masked.sum((1, 2)), counts[s])
        np.testing.assert_array_equal((masked & ~before).sum((1, 2)), again[s])
        shown = ~masked & ~before
        if s > 1:
            np.testing.assert_array_equal(fake.seen[s][shown], fake.seen[s - 1][shown])
    kept = ~decoded.masked[-1]
    np.testing.assert_array_equal(decoded.z[kept], fake.seen[-1][kept])


def test_one_step_is_one_parallel_sample():
    # Each token from its own distribution, independent of the others; the predictor is asked once.
    fake = Recorder((2, 3), 5)
    probs = np.asarray(fake(None))
    fake.seen.clear()

    def many(tokens):
        return jnp.broadcast_to(fake(tokens), (DRAWS, 2, 3, 5))

    z = np.asarray(maskgit_decode(many, jax.random.key(2), steps=1, shape=(DRAWS, 2, 3)).z)
    assert fake.seen == [None]
    for p in range(2):
        for g in range(3):
            expected = probs[p, g].astype(np.float64)
            expected *= DRAWS / expected.sum()
            seen = np.bincount(z[:, p, g], minlength=5)
            assert scipy.stats.chisquare(seen, expected).pvalue > 1e-3
    table = np.zeros((5, 5))
    np.add.at(table, (z[:, 0, 0], z[:, 1, 2]), 1)
    assert scipy.stats.chi2_contingency(table).pvalue > 1e-3


def coin(tokens, shape):
    """Eight copies of one fair coin: even odds, then the value of the first known token."""
    if tokens is None:
        return jnp.full((*shape, 2), 0.5)
    flat = tokens.reshape(shape[0], -1)
    first = jnp.argmax(flat < 2, axis=-1)
    known = jnp.take_along_axis(flat, first[:, None], axis=-1)
    return jax.nn.one_hot(jnp.broadcast_to(known[..., None], shape), 2)


@pytest.mark.parametrize(
    ("steps", "agree"),
    # After step 0, n_1 of 8 tokens are masked again: 8 - n_1 independent coins stay, and the rest
    # follows the first of them. All eight agree when those kept do, with chance 2^(1 - kept).
    # n_1 = floor(8 cos(90 deg / S)): S = 2: 5, S = 3: 6, S = 8: 7.
    [(1, 2.0**-7), (2, 2.0**-2), (3, 2.0**-1), (8, 1.0)],
)
def test_correlated_tokens_agree_as_steps_grow(steps, agree):
    shape = (DRAWS, 4, 2)
    decoded = jax.jit(partial(maskgit_decode, lambda t: coin(t, shape), steps=steps, shape=shape))(
        jax.random.key(3)
    )
    z = np.asarray(decoded.z).reshape(DRAWS, 8)
    rate = (z == z[:, :1]).all(1).mean()
    assert rate == pytest.approx(agree, abs=4 * np.sqrt(agree * (1 - agree) / DRAWS) + 1e-9)
    assert z.mean() == pytest.approx(0.5, abs=0.05), "and the coin itself stays fair"


def test_confident_tokens_are_kept_with_gumbel_odds():
    # Two tokens, S = 2: one goes back to MASK. Token A is certain, token B one of four: with noise
    # of temperature one A is kept with odds p_A : p_B = 1 : 1/4, that is 80 %.
    shape = (DRAWS, 1, 2)
    table = jnp.array([[[1.0, 0, 0, 0], [0.25] * 4]])
    decoded = maskgit_decode(
        lambda tokens: jnp.broadcast_to(table, (*shape, 4)),
        jax.random.key(4),
        steps=2,
        shape=shape,
    )
    masked = np.asarray(decoded.masked[1])[:, 0]
    assert (masked.sum(-1) == 1).all()
    assert masked[:, 1].mean() == pytest.approx(0.8, abs=0.025)


def fake_step(params, carry, state, action, step, key):
    del key
    carry = carry + params["gain"] * action
    return carry, State(state.z + step + 1, carry[:, None].astype(jnp.float32))


def fake_policy(params, state, step, key):
    del params, key
    return state.z[:, 0, 0] + 10 * step


def test_imagine_by_hand():
    # Start z = 1; z' = z + step + 1: 1, 2, 4. Actions a = z + 10 step: 1, 12, 24. The carry adds
    # 2 a: 2, 26, 74, and is seen as h.
    state = State(jnp.array([[[1]], [[5]]]), jnp.zeros((2, 1)))
    result = imagine(
        {"gain": 2},
        state,
        jnp.zeros(2, jnp.int32),
        jax.random.key(0),
        policy=fake_policy,
        step=fake_step,
        horizon=3,
    )
    np.testing.assert_array_equal(result.state.z[:, 0, 0, 0], [1, 2, 4, 7])
    np.testing.assert_array_equal(result.action[:, 0], [1, 12, 24])
    np.testing.assert_array_equal(result.state.h[:, 0, 0], [0, 2, 26, 74])
    np.testing.assert_array_equal(result.state.z[:, 1, 0, 0], [5, 6, 8, 11])
    assert result.state.z.shape == (4, 2, 1, 1)
    assert result.action.shape == (3, 2)


def test_imagine_gives_every_step_its_own_key():
    def policy(params, state, step, key):
        return jax.random.randint(key, state.h.shape[:1], 0, 10**6)

    def step(params, carry, state, action, index, key):
        return carry, State(state.z, jax.random.uniform(key, state.h.shape))

    state = State(jnp.zeros((3, 1, 1), jnp.int32), jnp.zeros((3, 1)))
    dream = partial(imagine, None, state, (), policy=policy, step=step, horizon=5)
    first, again, other = (
        dream(key) for key in jax.random.split(jax.random.key(0))[jnp.array([0, 0, 1])]
    )
    assert len(np.unique(first.action)) == 15
    assert len(np.unique(first.state.h[1:])) == 15
    np.testing.assert_array_equal(first.action, again.action)
    np.testing.assert_array_equal(first.state.h, again.state.h)
    assert not (np.asarray(first.action) == np.asarray(other.action)).any()


HORIZON = 9


def random_policy(params, state, step, key):
    del params, step
    return jax.random.randint(key, state.h.shape[:1], 0, NUM_ACTIONS)


def dream(params, sequence, key, horizon=HORIZON):
    """Read a sequence without dropout and start from each of its steps."""
    model = small_learner().model
    pass_key, dream_key = jax.random.split(key)
    passed = model.apply({"params": params}, sequence, pass_key)
    starts = starts_from(passed, jnp.arange(LENGTH))
    own, step = world_model_step(model, starts, decode_steps=2, horizon=horizon)
    trajectory = imagine(
        {"world_model": params},
        starts.state,
        own,
        dream_key,
        policy=random_policy,
        step=step,
        horizon=horizon,
    )
    return passed, trajectory


@pytest.fixture(scope="module")
def params():
    return make_state(small_learner()).params["world_model"]


@pytest.mark.parametrize("index", [1, 3, 6], ids=["with-memory", "border", "death-no-memory"])
def test_shared_past_equals_a_copy_for_every_start(params, dreamt, full, index):
    # For each start separately, the oracle reads its complete real past and the imagined tokens as
    # one real sequence. Window 7, horizon 9: real keys leave the window.
    sequence = one_sequence(make_batch(small_learner()), index)
    passed, trajectory = to_numpy(dreamt(params, sequence, jax.random.key(index)))
    inputs = copied_inputs(sequence, passed.state.z, trajectory)
    h = np.asarray(full(params, *inputs, sequence.carry.memory))
    assert bool(sequence.carry.memory.valid.any()) == (index % 2 == 1)
    for t in range(LENGTH):
        real = passed.state.h[: t + 1]
        np.testing.assert_allclose(h[t, : t + 1], real, atol=1e-5)
        np.testing.assert_allclose(
            h[t, t : t + HORIZON + 1], trajectory.state.h[:, t], atol=1e-5, err_msg=f"start {t}"
        )
    np.testing.assert_array_equal(trajectory.state.z[0], passed.state.z)
    # The dream is not one rollout repeated: starts and steps differ.
    every = trajectory.state.h.reshape(-1, trajectory.state.h.shape[-1])
    assert len(np.unique(every, axis=0)) == len(every) == (HORIZON + 1) * LENGTH


def copied_inputs(sequence, z, trajectory):
    """z_prev, action and reset of every start's own sequence, `[LENGTH starts, LENGTH + H]`."""
    total = LENGTH + HORIZON
    z_prev = np.zeros((LENGTH, total, *z.shape[1:]), np.int32)
    action = np.zeros((LENGTH, total), np.int32)
    reset = np.zeros((LENGTH, total), bool)
    real = np.concatenate([sequence.carry.z[None], z[:-1]])
    for t in range(LENGTH):
        z_prev[t, : t + 1], action[t, : t + 1] = real[: t + 1], sequence.action[: t + 1]
        reset[t, : t + 1] = sequence.reset[: t + 1]
        z_prev[t, t + 1 : t + 1 + HORIZON] = trajectory.state.z[:-1, t]
        action[t, t + 1 : t + 1 + HORIZON] = trajectory.action[:, t]
    return z_prev, action, reset


@pytest.fixture(scope="module")
def dreamt(params):
    sequence = one_sequence(make_batch(small_learner()), 1)
    return compiled(dream, params, sequence, jax.random.key(0))


@pytest.fixture(scope="module")
def full(params):
    """h of every start's own full sequence, after the same memory."""
    model = small_learner().model
    sequence = one_sequence(make_batch(small_learner()), 1)

    def h(params, z_prev, action, reset, memory):
        def one(z_prev, action, reset):
            variables = {"params": params}
            return model.apply(variables, z_prev, action, reset, memory, method=WorldModel.advance)

        return jax.vmap(one)(z_prev, action, reset)[0]

    z_prev = np.zeros((LENGTH, LENGTH + HORIZON, *sequence.carry.z.shape), np.int32)
    flags = np.zeros(z_prev.shape[:2], bool)
    return compiled(h, params, z_prev, flags.astype(np.int32), flags, sequence.carry.memory)


def test_starts_of_one_episode_ignore_the_other(params, dreamt):
    # Sequence 3 has a border at step 5. Another past, before it, must leave the dreams of the later
    # starts as they are; those before must change.
    sequence = one_sequence(make_batch(small_learner()), 3)
    action = np.where(np.arange(LENGTH) < 5, (sequence.action + 1) % NUM_ACTIONS, sequence.action)
    other = sequence._replace(action=action)
    one, two = (dreamt(params, s, jax.random.key(0))[1].state.h for s in (sequence, other))
    np.testing.assert_array_equal(one[:, 5:], two[:, 5:])
    assert (np.abs(one[1:, :5] - two[1:, :5]).max(-1) > 1e-6).all()


@pytest.fixture(scope="module")
def decoders(params):
    model = small_learner().model

    def everything(params, h, key):
        features = model.apply({"params": params}, h, method=WorldModel.prior_features)
        results = {s: decode(params, h, key, model=model, steps=s) for s in (0, 1, 3)}
        dynamics = model.apply({"params": params}, features, method=WorldModel.dynamics)
        masked = model.apply({"params": params}, features, None, method=WorldModel.masked_prior)
        return results, {0: dynamics, 1: masked}

    h = np.random.default_rng(5).normal(size=24).astype(np.float32)
    many = np.broadcast_to(h, (2, DRAWS // 2, 24))
    program = compiled(everything, params, many, jax.random.key(0))
    return lambda seed: to_numpy(program(params, many, jax.random.key(seed)))


@pytest.mark.parametrize("steps", [0, 1])
def test_decoding_samples_the_right_distribution(decoders, steps):
    results, log_probs = decoders(0)
    z, log_probs = results[steps].z.reshape(DRAWS, 16, 3), log_probs[steps][0, 0]
    assert len(results[steps].masked) == 1
    pvalues = []
    for p in range(16):
        for g in range(3):
            expected = np.exp(log_probs[p, g].astype(np.float64))
            seen = np.bincount(z[:, p, g], minlength=5)
            pvalues.append(scipy.stats.chisquare(seen, expected * DRAWS / expected.sum()).pvalue)
    assert min(pvalues) > 1e-4
    assert 0.2 < np.mean(pvalues) < 0.8


def test_the_same_key_decodes_the_same_latent(decoders):
    first, again, other = (decoders(seed)[0] for seed in (0, 0, 1))
    for steps in (0, 1, 3):
        np.testing.assert_array_equal(first[steps].z, again[steps].z)
        assert (first[steps].z != other[steps].z).any()
    assert [m[0, 0].sum() for m in first[3].masked] == [48, 41, 24]  # 48 cos(30 deg) = 41.6
    assert (first[1].z != first[3].z).any()
