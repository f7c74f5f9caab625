"""Open-loop pictures: what was read is reconstructed, what follows is dreamt from actions alone."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest

from emerald_jax.agent.dream import open_loop
from tests.model_cases import (
    LENGTH,
    NUM_ACTIONS,
    compiled,
    make_batch,
    make_state,
    sequence_keys,
    small_learner,
    to_numpy,
)

CONTEXT, ROWS = 4, 3


@pytest.fixture(scope="module")
def batch():
    return make_batch(small_learner(), batch=ROWS)


@pytest.fixture(scope="module")
def look(batch):
    learner = small_learner()
    params = make_state(learner).params
    run = partial(open_loop, learner=learner, context=CONTEXT)
    program = compiled(run, params, batch, sequence_keys(0, ROWS))
    return lambda batch: to_numpy(program(params, batch, sequence_keys(0, ROWS)))


def test_the_dream_begins_where_reading_ends(look, batch):
    seen = look(batch)
    assert seen.recon.shape == seen.dream.shape == (ROWS, LENGTH, 16, 16, 3)
    assert seen.reward.shape == seen.cont.shape == (ROWS, LENGTH)
    np.testing.assert_allclose(seen.dream[:, :CONTEXT], seen.recon[:, :CONTEXT], atol=1e-6)
    assert (np.abs(seen.dream - seen.recon)[:, CONTEXT:].max((2, 3, 4)) > 1e-3).all()
    for pictures in (seen.recon, seen.dream):
        assert pictures.min() >= 0
        assert pictures.max() <= 1
    assert ((seen.cont > 0) & (seen.cont < 1)).all()


def test_the_dream_sees_no_later_frame(look, batch):
    image = batch.image.copy()
    image[:, CONTEXT:] = 255 - image[:, CONTEXT:]
    one, two = look(batch), look(batch._replace(image=image))
    np.testing.assert_array_equal(one.dream, two.dream)
    np.testing.assert_array_equal(one.reward, two.reward)
    assert (one.recon != two.recon).any()


def test_the_dream_follows_the_real_actions(look, batch):
    # Action 7 led into frame 7: the frames before it stay, those from it on may differ.
    action = batch.action.copy()
    action[:, 7] = (action[:, 7] + 1) % NUM_ACTIONS
    one, two = look(batch), look(batch._replace(action=action))
    np.testing.assert_array_equal(one.dream[:, :7], two.dream[:, :7])
    assert (np.abs(one.dream - two.dream)[:, 7:].max((2, 3, 4)) > 1e-6).all()
