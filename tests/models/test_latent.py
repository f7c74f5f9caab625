"""The vector latent, the posterior that depends on h_t, and the decoder's inputs."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from emerald_jax.agent.state import build_learner
from emerald_jax.models.vision import ImageFeatures, PosteriorHead
from emerald_jax.models.world_model import WorldModel
from emerald_jax.presets import get_preset
from tests import oracles
from tests.model_cases import (
    IMAGE,
    NUM_ACTIONS,
    compiled,
    random_params,
    small_config,
    state_shapes,
    to_numpy,
)


@pytest.mark.parametrize("sequence", ["tssm", "rssm"])
def test_the_vector_latent_has_dreamers_layers(sequence):
    # 32 categoricals of 32 classes in all, from and to images of the same encoder and decoder.
    paper = get_preset("crafter")
    model = dataclasses.replace(paper.model, latent="vector", sequence=sequence)
    config = dataclasses.replace(paper, model=model)
    assert config.tokens == 32
    learner = build_learner(config, 17)
    params = state_shapes(learner).params
    world = params["world_model"]
    frames = jax.ShapeDtypeStruct((5, 64, 64, 3), jnp.uint8)
    h = jax.ShapeDtypeStruct((5, 512), jnp.float32)
    z = jax.ShapeDtypeStruct((5, 1, 32), jnp.int32)

    def look(world, frames, z, h):
        net = learner.model.bind({"params": world})
        features = net.prior_features(h)
        return net.encoder(frames), net.reconstruct(z, h), net.dynamics(features), features

    seen, picture, prior, features = jax.eval_shape(look, world, frames, z, h)
    assert seen.shape == (5, 1, 512)
    assert picture.shape == (5, 64, 64, 3)
    assert prior.shape == (5, 1, 32, 32)
    # DreamerV3's prior: one hidden layer of the GRU's width, then the logits.
    assert features.shape == (5, 1, 512)
    assert world["dynamics_head"]["Dense_0"]["kernel"].shape == (512, 1024)
    assert world["posterior_head"]["Dense_0"]["kernel"].shape[0] == 512
    assert world["sequence"]["latent"]["kernel"].shape == (1024, 512)
    assert params["actor"]["LatentProjection_0"]["kernel"].shape == (1024, 512)


@pytest.mark.parametrize("latent", ["spatial", "vector"])
def test_posterior_head_by_formula(latent):
    config = small_config(model=dict(latent=latent, sequence="rssm")).model
    rng = np.random.default_rng(0)
    features = ImageFeatures(config, 2, jnp.float32)
    image = jax.ShapeDtypeStruct((3, IMAGE, IMAGE, 3), jnp.uint8)
    shapes = jax.eval_shape(features.init_with_output, jax.random.key(0), image)
    seen = rng.normal(size=shapes[0].shape).astype(np.float32)
    # The hidden layer: the encoder's last channels at 16 positions, or the width at one.
    assert seen.shape == ((3, 16, 8) if latent == "spatial" else (3, 1, 24))
    h = rng.normal(size=(3, config.width)).astype(np.float32)
    head = PosteriorHead(config, jnp.float32)
    params = random_params(jax.eval_shape(head.init, jax.random.key(0), seen, h)["params"])
    result = compiled(lambda p: head.apply({"params": p}, seen, h), params)(params)
    p = to_numpy(params)
    hidden = seen + oracles.dense(p["Dense_0"], h).reshape(seen.shape)
    expected = oracles.dense(p["Dense_1"], oracles.norm_silu(p["NormSilu_0"], hidden))
    np.testing.assert_allclose(result, expected.reshape(result.shape), atol=2e-5)
    assert result.shape == (3, config.positions, config.groups, config.classes)


@pytest.mark.parametrize("latent", ["spatial", "vector"])
def test_a_decoder_of_z_ignores_h(latent):
    rng = np.random.default_rng(0)
    reaches = {}
    for what in ("zh", "z"):
        config = small_config(model=dict(latent=latent, decoder_input=what))
        learner = build_learner(config, NUM_ACTIONS)
        params = random_params(state_shapes(learner).params["world_model"])
        z = rng.integers(0, 5, (2, config.model.positions, 3)).astype(np.int32)
        h = rng.normal(size=(2, 24)).astype(np.float32)

        def total(h, z, params=params, learner=learner):
            image = learner.model.apply({"params": params}, z, h, method=WorldModel.reconstruct)
            return jnp.sum(jnp.sin(image)), image

        gradient, image = compiled(jax.grad(total, has_aux=True), h, z)(h, z)
        assert image.shape == (2, IMAGE, IMAGE, 3)
        assert np.ptp(image) > 0.1
        reaches[what] = bool((np.abs(gradient) > 0).any())
    assert reaches == {"zh": True, "z": False}


def test_a_posterior_with_h_cannot_encode_an_image():
    learner = build_learner(small_config(model=dict(sequence="rssm")), NUM_ACTIONS)
    params = state_shapes(learner).params["world_model"]
    image = jax.ShapeDtypeStruct((3, IMAGE, IMAGE, 3), jnp.uint8)
    with pytest.raises(ValueError, match="also depends on h_t"):
        jax.eval_shape(
            lambda p, x: learner.model.apply({"params": p}, x, method=WorldModel.encode),
            params,
            image,
        )
