"""``model.remat``: the same model, the same gradients, less kept for the backward pass."""

from __future__ import annotations

from functools import partial

import jax
import numpy as np
import pytest

from benchmarks.suite.harness import NUM_ACTIONS as CRAFTER_ACTIONS
from benchmarks.suite.harness import with_changes
from benchmarks.train import kept_bytes
from emerald_jax.agent.state import build_learner, init_state
from emerald_jax.presets import get_preset
from emerald_jax.training.update import model_loss
from tests.model_cases import (
    NUM_ACTIONS,
    compiled,
    make_batch,
    make_state,
    sequence_keys,
    small_config,
)


def learners(**model):
    """The same small model without and with rematerialisation."""
    return [
        build_learner(small_config(model={"remat": remat, **model}), NUM_ACTIONS)
        for remat in (False, True)
    ]


@pytest.mark.parametrize(
    "variant",
    [{}, {"latent": "vector"}, {"prior": "autoregressive"}, {"sequence": "rssm"}],
    ids=lambda changes: "-".join(changes.values()) or "emerald",
)
def test_parameters_keep_their_names_and_shapes(variant):
    plain, remat = (
        jax.eval_shape(partial(init_state, learner), jax.random.key(0)).params
        for learner in learners(**variant)
    )
    assert jax.tree.map(lambda x: x.shape, plain) == jax.tree.map(lambda x: x.shape, remat)


@pytest.mark.parametrize("prior", ["maskgit", "flow", "autoregressive"])
def test_the_gradient_is_the_same_dropout_included(prior):
    found = []
    for learner in learners(prior=prior, predictor_blocks=2, dropout=0.3):
        params, batch = make_state(learner).params["world_model"], make_batch(learner)
        loss = jax.value_and_grad(partial(model_loss, learner=learner), has_aux=True)
        arguments = params, batch, sequence_keys(0)
        found.append(compiled(loss, *arguments)(*arguments))
    ((plain, _), plain_grads), ((remat, _), remat_grads) = found
    np.testing.assert_allclose(plain, remat, rtol=1e-6)
    jax.tree.map(assert_close, plain_grads, remat_grads)


def assert_close(a, b):
    assert np.linalg.norm(a - b) <= 3e-4 * np.linalg.norm(a)  # other masks would be 1


def test_less_than_half_is_kept_at_the_papers_sizes():
    kept = []
    for remat in (False, True):
        config = with_changes(get_preset("crafter"), model={"dtype": "float32", "remat": remat})
        learner = build_learner(config, CRAFTER_ACTIONS)
        state = jax.eval_shape(partial(init_state, learner), jax.random.key(0))
        kept.append(kept_bytes(learner, state.params["world_model"], config))
    assert kept[1] < 0.5 * kept[0]
    # One sequence's first feature map is 8 MiB, and there are 16: it cannot be nothing either.
    assert kept[1] > 16 * 8 * 2**20
