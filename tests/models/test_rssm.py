"""The GRU: its equations in NumPy, single steps against the full pass, resets."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special

from emerald_jax.actions import ActionSpace
from emerald_jax.models.sequence import NoPast, Rssm
from emerald_jax.types import Recurrent, Starts, State
from tests import oracles
from tests.model_cases import NUM_ACTIONS, compiled, random_params, small_config, to_numpy

T, RESETS = 9, (4,)
CONFIG = small_config(model=dict(sequence="rssm")).model
MODEL = Rssm(CONFIG, ActionSpace((NUM_ACTIONS,)), jnp.float32)
P, G, K, D = CONFIG.positions, CONFIG.groups, CONFIG.classes, CONFIG.width


def make_inputs(seed=0, resets=RESETS):
    """z_prev, action and reset of T steps."""
    rng = np.random.default_rng(seed)
    reset = np.zeros(T, bool)
    reset[list(resets)] = True
    action = np.where(reset, -1, rng.integers(0, NUM_ACTIONS, T)).astype(np.int32)
    z = rng.integers(0, K, (T, P, G)).astype(np.int32)
    return jnp.asarray(z), jnp.asarray(action), jnp.asarray(reset)


def make_memory(seed=1, valid=True):
    h = np.random.default_rng(seed).uniform(-1, 1, D).astype(np.float32)
    return Recurrent(jnp.asarray(h), jnp.asarray(valid))


@pytest.fixture(scope="module")
def params():
    empty = Rssm.empty_memory(CONFIG, jnp.float32)
    shapes = jax.eval_shape(MODEL.init, jax.random.key(0), *make_inputs(), empty)
    return random_params(shapes["params"])


@pytest.fixture(scope="module")
def full(params):
    """h of all steps, and the memory after them."""

    def run(inputs, memory):
        return MODEL.apply({"params": params}, *inputs, memory)[:2]

    program = compiled(run, make_inputs(), make_memory())
    return lambda inputs, memory: to_numpy(program(inputs, memory))


def oracle(params, inputs, memory):
    """DreamerV3's recurrence, one step at a time in float64."""
    p = to_numpy(params)
    z, action, reset = to_numpy(inputs)
    h, known = np.asarray(memory.h, np.float64), bool(memory.valid)
    rows = p["latent"]["kernel"].reshape(G, K, -1)
    result = []
    for t in range(T):
        fresh = reset[t] or not known
        if fresh:
            h, embedded = np.tanh(p["initial"].astype(np.float64)), p["start"]
        else:
            latent = sum(rows[g, z[t, :, g]] for g in range(G)) + p["latent"]["bias"]
            embedded = oracles.dense(p["flat"], oracles.norm_silu(p["latent_norm"], latent).ravel())
        led = np.zeros(NUM_ACTIONS) if action[t] < 0 else np.eye(NUM_ACTIONS)[action[t]]
        x = oracles.dense(p["join"], np.concatenate([embedded, led]))
        x = oracles.norm_silu(p["join_norm"], x)
        gates = oracles.dense(p["from_input"], x) + oracles.dense(p["from_state"], h)
        update, forget, candidate = np.split(oracles.norm(p["gate_norm"], gates), 3)
        update = scipy.special.expit(update - 1)
        candidate = np.tanh(scipy.special.expit(forget) * candidate)
        h, known = update * candidate + (1 - update) * h, True
        result.append(h)
    return np.stack(result)


@pytest.mark.parametrize("valid", [True, False], ids=["memory", "no-memory"])
def test_recurrence_by_formula(params, full, valid):
    memory = make_memory(valid=valid)
    h, after = full(make_inputs(), memory)
    expected = oracle(params, make_inputs(), memory)
    np.testing.assert_allclose(h, expected, atol=2e-5)
    np.testing.assert_allclose(after.h, expected[-1], atol=2e-5)
    assert after.valid
    assert (np.ptp(expected, axis=0) > 0.02).all(), "the case does not move"


def test_single_steps_equal_the_full_pass(params, full):
    # Reading one by one as acting does, filtering as the posterior that sees h does, and imagining.
    inputs, memory = make_inputs(), make_memory()
    z, action, _ = inputs

    def one_by_one(params):
        variables = {"params": params}

        def read(memory, now):
            h, memory, _ = MODEL.apply(variables, *(x[None] for x in now), memory)
            return memory, h[0]

        def filtered(h, now):
            h = MODEL.apply(variables, h, *now, method=Rssm.step)
            return h, h

        def dream(h, now):
            starts, state = Starts(None, NoPast()), State(now[0][None], h[None])
            h, _ = MODEL.apply(variables, state, now[1][None], 0, starts, (), method=Rssm.imagine)
            return h[0], h[0]

        begin = memory.h
        return (
            jax.lax.scan(read, memory, inputs)[1],
            jax.lax.scan(filtered, begin, inputs)[1],
            jax.lax.scan(dream, begin, (z, action))[1],
        )

    read, filtered, dreamt = to_numpy(compiled(one_by_one, params)(params))
    expected = full(inputs, memory)[0]
    np.testing.assert_allclose(read, expected, atol=1e-6)
    np.testing.assert_allclose(filtered, expected, atol=1e-6)
    # A dream knows no reset: equal up to the border, another after it.
    border = RESETS[0]
    np.testing.assert_allclose(dreamt[:border], expected[:border], atol=1e-6)
    assert (np.abs(dreamt[border:] - expected[border:]).max(-1) > 1e-3).all()


def test_a_reset_forgets(full):
    inputs = make_inputs()
    one, two = (full(inputs, make_memory(seed))[0] for seed in (1, 2))
    border = RESETS[0]
    assert (np.abs(one[:border] - two[:border]).max(-1) > 1e-4).all()
    np.testing.assert_array_equal(one[border:], two[border:])
    z = inputs[0].at[border].set((inputs[0][border] + 1) % K)
    np.testing.assert_array_equal(full((z, *inputs[1:]), make_memory())[0], one)


def test_an_empty_memory_equals_a_reset(full):
    # After a skipped update the carry is all zeros; a chunk entered in mid-episode is marked.
    inputs = make_inputs()
    unmarked = full(inputs, Recurrent(jnp.zeros(D), jnp.zeros((), bool)))[0]
    marked = full((*inputs[:2], inputs[2].at[0].set(True)), make_memory())[0]
    np.testing.assert_array_equal(unmarked, marked)


def test_every_parameter_gets_a_gradient(params):
    # Also the two learned starts, through a reset in mid-sequence alone.
    def loss(params):
        h = MODEL.apply({"params": params}, *make_inputs(), make_memory())[0]
        return jnp.sum(jnp.square(h[-1]))

    gradient = compiled(jax.grad(loss), params)(params)
    for path, leaf in jax.tree_util.tree_leaves_with_path(gradient):
        assert (np.abs(leaf) > 0).any(), jax.tree_util.keystr(path)
    for name in ("start", "initial"):
        assert (np.abs(gradient[name]) > 1e-7).all(), name
