"""``model.center``: images as differences from the mean of every pixel."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from emerald_jax.agent.state import build_learner, init_state
from emerald_jax.models.vision import _CENTER_BATCHES, Center, learn_center
from emerald_jax.training.update import train_step
from tests.model_cases import NUM_ACTIONS, make_batch, sequence_keys, small_config, small_learner


def images(seed, batches):
    return np.random.default_rng(seed).integers(0, 256, (batches, 2, 3, 4, 4, 3), dtype=np.uint8)


def fresh():
    shape = (4, 4, 3)
    return {"mean": jnp.zeros(shape), "variance": jnp.ones(shape), "batches": jnp.zeros(())}


def test_the_mean_is_that_of_all_batches():
    params, all_images = fresh(), images(0, 5)
    for image in all_images:
        params = learn_center(params, image, None)
    plain = all_images.reshape(-1, 4, 4, 3) / 255 - 0.5
    np.testing.assert_allclose(params["mean"], plain.mean(0), atol=1e-6)
    np.testing.assert_allclose(params["variance"], plain.var(0), atol=1e-6)
    seen = Center(4).apply({"params": params}, plain, method=Center.enter)
    np.testing.assert_allclose(seen.mean(0), 0, atol=1e-5)
    spread = plain.std(0) / np.sqrt(plain.var(0) + 0.05**2)
    np.testing.assert_allclose(seen.std(0), spread, atol=1e-4)


def test_later_batches_change_nothing():
    params = {**fresh(), "batches": jnp.float32(_CENTER_BATCHES - 1)}
    last = learn_center(params, images(0, 1)[0], None)
    assert float(jnp.abs(last["mean"] - params["mean"]).max()) > 0
    after = learn_center(last, images(1, 1)[0], None)
    jax.tree.map(np.testing.assert_array_equal, after, last)


def test_devices_agree_on_the_mean():
    image = images(0, 1)[0]
    both = jax.pmap(learn_center, "data", in_axes=(None, 0, None), static_broadcasted_argnums=2)
    halves = both(fresh(), image[:, None], "data")
    whole = learn_center(fresh(), image, None)
    whole = jax.tree.map(lambda x: np.broadcast_to(x, (2, *x.shape)), whole)
    jax.tree.map(partial(np.testing.assert_allclose, atol=1e-6), halves, whole)


@pytest.fixture(scope="module")
def learner():
    return build_learner(small_config(model={"center": True}), NUM_ACTIONS)


@pytest.mark.slow
def test_an_update_learns_the_mean_and_the_first_picture_is_it(learner):
    state, batch = init_state(learner, jax.random.key(0)), make_batch(learner)
    step = jax.jit(lambda *a: train_step(*a, learner=learner))
    after, _, metrics = step(state, batch, sequence_keys(0))
    center = after.params["world_model"]["center"]
    np.testing.assert_allclose(center["mean"], (batch.image / 255 - 0.5).mean((0, 1)), atol=1e-5)
    assert metrics["finite"] == 1
    harmed = batch._replace(reward=np.full_like(batch.reward, np.nan))
    kept, _, metrics = step(state, harmed, sequence_keys(0))
    assert metrics["finite"] == 0
    jax.tree.map(np.testing.assert_array_equal, kept.params, state.params)
    # Untrained apart from the mean, a picture is the mean.
    params = {**state.params["world_model"], "center": center}
    c = learner.config.model
    z, h = jnp.zeros((1, c.positions, c.groups), jnp.int32), jnp.ones((1, c.width))
    picture = learner.model.apply({"params": params}, z, h, method="reconstruct")
    np.testing.assert_allclose(picture[0], center["mean"], atol=1e-6)


def test_without_it_there_is_nothing_to_learn():
    params = jax.eval_shape(lambda: init_state(small_learner(), jax.random.key(0))).params
    assert "center" not in params["world_model"]
