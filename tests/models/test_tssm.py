"""The temporal transformer: cache against full pass, window, Transformer-XL's equations."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from emerald_jax.actions import ActionSpace
from emerald_jax.models.tssm import RelativeAttention, Tssm, episode_mask, skew
from emerald_jax.types import Memory
from tests import oracles
from tests.model_cases import NUM_ACTIONS, compiled, random_params, small_config, to_numpy

C, T, BLOCKS = 4, 20, 2
#: Episodes 0-8, 9 alone, 10-19: longer than the window, and as short as can be.
RESETS = (0, 9, 10)
CONFIG = small_config(model=dict(context=C, blocks=BLOCKS)).model
MODEL = Tssm(CONFIG, ActionSpace((NUM_ACTIONS,)), jnp.float32)


class Inputs(NamedTuple):
    """z_{t-1}, the action that led into t, and whether t is a reset."""

    z_prev: jax.Array
    action: jax.Array
    reset: jax.Array


def make_inputs(seed=0, length=T, resets=RESETS):
    rng = np.random.default_rng(seed)
    reset = np.zeros(length, bool)
    reset[list(resets)] = True
    action = np.where(reset, -1, rng.integers(0, NUM_ACTIONS, length)).astype(np.int32)
    z = rng.integers(0, CONFIG.classes, (length, CONFIG.grid**2, CONFIG.groups))
    return jax.tree.map(jnp.asarray, Inputs(z.astype(np.int32), action, reset))


@pytest.fixture(scope="module")
def params():
    inputs, memory = make_inputs(), Tssm.empty_memory(CONFIG, jnp.float32)
    shapes = jax.eval_shape(MODEL.init, jax.random.key(0), *inputs, memory)
    return random_params(shapes["params"])


def run(params, inputs, memory=None):
    """h of all steps at once after a memory, and the memory after them."""
    memory = memory or Tssm.empty_memory(CONFIG, jnp.float32)
    h, memory, history = MODEL.apply({"params": params}, *inputs, memory)
    return h, memory, history.visible


def run_in_chunks(params, inputs, length):
    """The same h, ``length`` steps at a time passing the memory on."""

    def body(memory, chunk):
        h, memory, _ = run(params, Inputs(*chunk), memory)
        return memory, h

    chunks = jax.tree.map(lambda x: x.reshape(-1, length, *x.shape[1:]), inputs)
    _, h = jax.lax.scan(body, Tssm.empty_memory(CONFIG, jnp.float32), chunks)
    return h.reshape(-1, h.shape[-1])


@pytest.fixture(scope="module")
def full(params):
    return compiled(run, params, make_inputs())


@pytest.mark.parametrize("length", [1, 2, 5, 10])
def test_cached_steps_equal_the_full_sequence(params, full, length):
    # Chunks shorter and longer than the window, their borders on, before and after the resets.
    inputs = make_inputs()
    expected = np.asarray(full(params, inputs)[0])
    program = compiled(lambda p, x: run_in_chunks(p, x, length), params, inputs)
    np.testing.assert_allclose(program(params, inputs), expected, atol=1e-5)
    assert (np.ptp(expected, axis=0) > 0.1).all()


def changed_steps(params, perturbed):
    """Which steps' h differ from those of the unperturbed inputs, `[variants, T]`."""
    function = jax.vmap(lambda x: run(params, x)[0])
    base = make_inputs()
    both = jax.tree.map(lambda a, b: jnp.concatenate([a[None], b]), base, perturbed)
    h = np.asarray(compiled(function, both)(both))
    return np.abs(h[1:] - h[0]).max(-1)


@pytest.mark.parametrize("what", ["z_prev", "action"])
def test_a_step_depends_only_on_its_window_and_episode(params, what):
    # Variant j changes token j. With B blocks of window C it must reach every later step of its own
    # episode up to B * C steps on, and no other.
    base = make_inputs()
    eye = np.eye(T, dtype=bool)
    if what == "z_prev":
        other = (base.z_prev + 1) % CONFIG.classes
        mixed = jnp.where(eye[:, :, None, None], other[None], base.z_prev[None])
    else:
        # Also the reset steps have an action here: one led into a chunk entered in mid-episode.
        mixed = jnp.where(eye, ((base.action + 1) % NUM_ACTIONS)[None], base.action[None])
    variants = jax.tree.map(lambda x: jnp.broadcast_to(x[None], (T, *x.shape)), base)
    difference = changed_steps(params, variants._replace(**{what: mixed}))
    episode = np.cumsum(np.asarray(base.reset))
    j, i = np.indices((T, T))
    reached = (episode[i] == episode[j]) & (i >= j) & (i - j <= BLOCKS * C)
    if what == "z_prev":
        reached &= ~np.asarray(base.reset)[j]  # z_{t-1} of a reset is unused
    assert (difference[~reached] == 0).all()
    assert (difference[reached] > 1e-7).all()
    assert reached[11, 19], "the sequence is too short to reach the end of the window"
    assert not reached[10, 19], "the sequence is too short to leave the window"


def test_memory_is_used_until_the_first_reset(params, full):
    del full
    rng = np.random.default_rng(1)
    empty = Tssm.empty_memory(CONFIG, jnp.float32)
    valid = np.array([False, True, True, True])

    def memory(scale):
        noise = [rng.normal(size=empty.keys.shape).astype(np.float32) * scale for _ in range(2)]
        return Memory(jnp.asarray(noise[0]), jnp.asarray(noise[1]), jnp.asarray(valid))

    base = memory(1.0)
    hidden = Memory(base.keys.at[:, 0].add(9), base.values.at[:, 0].add(9), base.valid)
    inputs = make_inputs(resets=(3,), length=6)
    memories = jax.tree.map(lambda *x: jnp.stack(x), base, memory(2.0), hidden)
    function = jax.vmap(lambda m: run(params, inputs, m)[::2])
    h, visible = to_numpy(compiled(function, memories)(memories))
    difference = np.abs(h - h[0]).max(-1)
    assert (difference[1, :3] > 1e-3).all(), "a valid memory must be read"
    assert (difference[1, 3:] == 0).all(), "a reset must forget it"
    assert (difference[2] == 0).all(), "an invalid key must not be read"
    expected = np.concatenate([np.repeat(valid[None], 6, 0), np.tri(6, dtype=bool)], 1)
    expected[3:, : C + 3] = False
    np.testing.assert_array_equal(visible[0], expected)


def test_memory_keeps_the_newest_tokens(params, full):
    h, memory, visible = full(params, make_inputs())
    assert memory.keys.shape == (BLOCKS, C, CONFIG.heads, CONFIG.width // CONFIG.heads)
    assert np.asarray(memory.valid).all()
    # The last episode began one step ago: only its token is valid for the next chunk.
    inputs = make_inputs(resets=(0, 9, T - 1))
    np.testing.assert_array_equal(full(params, inputs)[1].valid, [False, False, False, True])
    assert h.shape == (T, CONFIG.width)
    assert visible.shape == (T, C + T)


def test_an_empty_memory_equals_a_reset(params, full):
    # A chunk entered in mid-episode without a carry (after a skipped update it is emptied) uses the
    # learned start with its real action, as training and acting do; never a made-up zero latent.
    inputs = make_inputs(resets=(9, 10))
    unmarked = full(params, inputs)[0]
    marked = full(params, inputs._replace(reset=inputs.reset.at[0].set(True)))[0]
    np.testing.assert_allclose(unmarked, marked, atol=1e-6)


def test_embedding_by_hand(params):
    inputs = make_inputs()
    embed = compiled(lambda p, x: MODEL.apply({"params": p}, *x, method=Tssm.embed), params, inputs)
    result = np.asarray(embed(params, inputs))
    p = to_numpy(params)
    rows = p["latent"]["kernel"].reshape(CONFIG.groups, CONFIG.classes, -1)
    for t in range(T):
        action, z = int(inputs.action[t]), np.asarray(inputs.z_prev[t])
        if t in RESETS:
            assert action == -1
            known = p["start"]
        else:
            latent = sum(rows[g, z[:, g]] for g in range(CONFIG.groups)) + p["latent"]["bias"]
            known = oracles.dense(p["flat"], oracles.norm_silu(p["latent_norm"], latent).ravel())
        # No action is a zero vector, not class 0.
        led = np.zeros(NUM_ACTIONS) if action < 0 else np.eye(NUM_ACTIONS)[action]
        joined = oracles.dense(p["join"], np.concatenate([known, led]))
        expected = oracles.dense(p["enter"], oracles.norm_silu(p["join_norm"], joined))
        np.testing.assert_allclose(result[t], expected, atol=2e-5)


def test_the_learned_start_gets_a_gradient(params):
    def loss(start, inputs):
        h = run({**params, "start": start}, inputs)[0]
        return jnp.sum(jnp.square(h[:, :3]))

    inputs = make_inputs(resets=(9,))
    memory_less = make_inputs()
    gradient = compiled(jax.grad(loss), params["start"], inputs)
    for case in (inputs, memory_less):
        assert (np.abs(gradient(params["start"], case)) > 1e-6).all()


def test_one_block_follows_transformer_xl(params):
    # Random visibility inside the window, so that a wrong distance cannot hide.
    length = 7
    rng = np.random.default_rng(2)
    x = rng.normal(size=(length, CONFIG.width)).astype(np.float32)
    size = (C, CONFIG.heads, CONFIG.width // CONFIG.heads)
    past = tuple(rng.normal(size=size).astype(np.float32) for _ in range(2))
    i, j = np.indices((length, C + length))
    distance = C + i - j
    visible = (distance >= 0) & (distance <= C) & (rng.random(i.shape) < 0.7) | (distance == 0)
    module = RelativeAttention(CONFIG, jnp.float32)
    p = params["attention_0"]
    result, keys, values = module.apply(
        {"params": p}, jnp.asarray(x), past, jnp.asarray(visible), None, method="chunk"
    )
    expected = oracles.relative_attention(to_numpy(p), x, past, visible)
    np.testing.assert_allclose(result, expected, atol=2e-5)
    np.testing.assert_array_equal(keys[:C], past[0])
    np.testing.assert_array_equal(values[:C], past[1])


def test_skew_gathers_by_distance():
    heads, length, context = 2, 5, 3
    terms = np.random.default_rng(3).normal(size=(heads, length, context + 1))
    result = np.asarray(skew(jnp.asarray(terms), context + length))
    assert result.shape == (heads, length, context + length)
    for i in range(length):
        for j in range(context + length):
            distance = context + i - j
            if 0 <= distance <= context:  # terms run from the farthest to distance 0
                np.testing.assert_allclose(result[:, i, j], terms[:, i, context - distance])


def test_episode_mask_by_hand():
    valid, reset = jnp.array([False, True]), jnp.array([False, True, False])
    #            cached    own
    expected = [
        [False, True, True, False, False],
        [False, False, False, True, False],
        [False, False, False, True, True],
    ]
    np.testing.assert_array_equal(episode_mask(valid, reset), np.array(expected))
