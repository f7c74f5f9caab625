"""The looking glass shows what the model computes, not something like it."""

from __future__ import annotations

import dataclasses

import flax.linen as nn
import jax
import numpy as np
import pytest

from emerald_jax.imagination import decode
from emerald_jax.look.inspect import attention_weights, by_distance, decoding_trace
from emerald_jax.models.tssm import RelativeAttention
from emerald_jax.models.world_model import no_before
from emerald_jax.ops.maskgit import mask_counts
from tests.model_cases import (
    LENGTH,
    compiled,
    make_batch,
    make_state,
    one_sequence,
    small_learner,
)

STEPS = 4


@pytest.fixture(scope="module")
def params():
    return make_state(small_learner()).params


@pytest.mark.parametrize("method", ["maskgit", "remdm"])
def test_a_trace_ends_in_what_decode_draws(params, method) -> None:
    learner = small_learner()
    behavior = dataclasses.replace(learner.config.behavior, decode_method=method)
    learner = learner._replace(config=dataclasses.replace(learner.config, behavior=behavior))
    key = jax.random.key(3)
    h = np.random.default_rng(0).normal(size=24).astype(np.float32)

    def both(params, h, key, before):
        options = {"model": learner.model, "steps": STEPS, "method": method}
        drawn = decode(params["world_model"], h, key, **options)
        return decoding_trace(params, h, before, key, learner=learner, steps=STEPS), drawn

    inputs = (params, h, key, no_before(learner.model))
    trace, drawn = compiled(both, *inputs)(*inputs)
    np.testing.assert_array_equal(trace.tokens[-1], drawn.z)
    np.testing.assert_allclose(trace.confidence[-1], np.exp(drawn.log_prob), rtol=1e-5)
    assert trace.frame.shape == (STEPS, 16, 16, 3)
    assert trace.masked.sum((1, 2)).tolist() == list(mask_counts(48, STEPS))
    for s in range(1, STEPS):
        kept = ~np.asarray(trace.masked[s])
        # What is not masked in a step is what stood there before it.
        np.testing.assert_array_equal(trace.tokens[s][kept], trace.tokens[s - 1][kept])
    assert (np.asarray(trace.tokens[1:]) != np.asarray(trace.tokens[:-1])).any()


def test_attention_is_the_models_own(params) -> None:
    """Mixing the values by the weights found gives what the block itself computes."""
    learner = small_learner()
    sequence = one_sequence(make_batch(learner), 2)

    def both(params, sequence, key):
        weights = attention_weights(params, sequence, key, learner=learner)
        outs = []

        def again(run, args, kwargs, context):
            out = run(*args, **kwargs)
            module = context.module
            if isinstance(module, RelativeAttention) and context.method_name == "chunk":
                found = weights[len(outs)].astype(out[2].dtype)
                mix = jax.numpy.einsum("hqk,khd->qhd", found, out[2])
                outs.append((out[0], module.finish(args[0], mix, None)))
            return out

        with nn.intercept_methods(again):
            learner.model.apply({"params": params["world_model"]}, sequence, key)
        return weights, outs

    key = jax.random.key(0)
    weights, outs = compiled(both, params, sequence, key)(params, sequence, key)
    assert len(outs) == 2
    for block, ours in outs:
        np.testing.assert_allclose(block, ours, atol=1e-5)
    context = learner.config.model.context
    assert weights.shape == (2, 4, LENGTH, context + LENGTH)
    np.testing.assert_allclose(weights.sum(-1), 1, rtol=1e-5)
    # Sequence 2 begins anew at step 5: nothing before it is attended to from there on.
    assert np.asarray(weights)[:, :, 5:, : context + 5].max() == 0
    far = by_distance(np.asarray(weights), context)
    assert far.shape == (2, 4, LENGTH, context + 1)
    np.testing.assert_allclose(far[:, :, 7, :3].sum(-1), 1, rtol=1e-5)


def test_by_distance_by_hand() -> None:
    # C = 2, L = 2: query 0 sees keys 0 1 2, query 1 sees keys 1 2 3, the newest last.
    weights = np.array([[[0.1, 0.2, 0.7, 0.0], [0.0, 0.3, 0.3, 0.4]]], np.float32)
    np.testing.assert_array_equal(
        by_distance(weights, 2)[0], np.float32([[0.7, 0.2, 0.1], [0.4, 0.3, 0.3]])
    )
