"""Size and dtypes of the complete model, from shapes; predictions of an untrained model."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from emerald_jax.agent.state import build_learner, count_parameters
from emerald_jax.imagination import decode
from emerald_jax.models.heads import ActorCritic
from emerald_jax.models.layers import compute_dtype
from emerald_jax.models.world_model import WorldModel
from emerald_jax.ops.scalars import two_hot_mean
from emerald_jax.presets import get_preset
from emerald_jax.types import State
from tests.model_cases import (
    NUM_ACTIONS,
    compiled,
    fresh_state,
    make_batch,
    one_sequence,
    small_config,
    small_learner,
    state_shapes,
)


def test_the_paper_preset_has_30_million_parameters():
    learner = build_learner(get_preset("crafter"), 17)
    params = state_shapes(learner).params
    counts = count_parameters(params)
    assert abs(counts["total"] - 30.5e6) < 0.05 * 30.5e6
    leaves = jax.tree.leaves(params)
    assert counts["total"] == sum(x.size for x in leaves)
    assert sum(count for name, count in counts.items() if name != "total") == counts["total"]
    assert {x.dtype for x in leaves} == {jnp.dtype(jnp.float32)}
    # 17 actions, 255 bins, 512 tokens of 32 classes from 16 positions.
    assert params["actor"]["Dense_3"]["bias"].shape == (17,)
    assert params["critic"]["Dense_3"]["bias"].shape == (255,)
    assert params["world_model"]["maskgit"]["words"].shape == (33, 32)
    assert params["world_model"]["maskgit"]["out"]["bias"].shape == (1024,)


@pytest.fixture(scope="module")
def half():
    """A bfloat16 model and the shapes of all its outputs."""
    config = small_config(model=dict(dtype="bfloat16"))
    learner = build_learner(config, NUM_ACTIONS)
    batch = one_sequence(make_batch(learner), 1)
    state = state_shapes(learner)
    variables = {"params": state.params["world_model"]}
    model = learner.model

    def everything(variables, agent_params, sequence, key):
        out = model.apply(variables, sequence, key)
        net = model.bind(variables)
        results = {
            "dynamics": net.dynamics(out.features),
            "masked": net.masked_prior(out.features, out.state.z),
            "decoder": net.reconstruct(out.z, out.state.h),
            "reward": net.reward(out.z, out.state.h),
            "cont": net.cont(out.z, out.state.h),
            "decoded": decode(variables["params"], out.state.h, key, model=model, steps=3).log_prob,
            "policy": learner.actor_critic.policy(agent_params["actor"], out.state).parts[0],
            "value": learner.actor_critic.value_logits(agent_params["critic"], out.state),
        }
        # The logits of latents, before they become distributions.
        logits = (
            model.apply(variables, sequence.image, method=lambda net, x: net.encoder(x)),
            model.apply(variables, out.features, method=lambda net, x: net.dynamics_head(x)),
            model.apply(variables, out.features, method=lambda net, x: net.maskgit(x, None)),
        )
        return out, results, logits

    args = (variables, state.params, batch, jax.random.key(0))
    return (state, *jax.eval_shape(everything, *args))


def test_bfloat16_is_the_compute_type_only(half):
    state, out, results, logits = half
    floats = [x for x in jax.tree.leaves(state) if jnp.issubdtype(x.dtype, jnp.floating)]
    assert {x.dtype for x in floats} == {jnp.dtype(jnp.float32)}
    for name, value in results.items():
        assert value.dtype == jnp.float32, name
    assert out.posterior.dtype == jnp.float32
    memory = out.carry.memory
    for computed in (out.state.h, out.features, memory.keys, memory.values, *logits):
        assert computed.dtype == jnp.bfloat16


def test_compute_type_follows_the_setting():
    assert compute_dtype("bfloat16") == jnp.bfloat16
    assert compute_dtype("float32") == jnp.float32
    assert compute_dtype("auto") == jnp.float32, "the tests run on CPUs"


@pytest.mark.parametrize(("image", "grid", "stages"), [(64, 4, 4), (16, 4, 2), (64, 8, 3)])
def test_stages_follow_from_image_and_grid(image, grid, stages):
    config = small_config(envs=dict(image_size=image), model=dict(grid=grid))
    assert config.stages == stages
    learner = build_learner(config, NUM_ACTIONS)
    params = state_shapes(learner).params["world_model"]
    frames = jax.ShapeDtypeStruct((5, image, image, 3), jnp.uint8)
    posterior = jax.eval_shape(
        lambda p, x: learner.model.apply({"params": p}, x, method=WorldModel.encode),
        params,
        frames,
    )
    assert posterior.shape == (5, grid**2, 3, 5)
    state = State(
        jax.ShapeDtypeStruct((5, grid**2, 3), jnp.int32), jax.ShapeDtypeStruct((5, 24), jnp.float32)
    )
    picture = jax.eval_shape(
        lambda p, s: learner.model.apply({"params": p}, *s, method=WorldModel.reconstruct),
        params,
        state,
    )
    assert picture.shape == (5, image, image, 3)


@pytest.fixture(scope="module")
def fresh():
    return fresh_state()


def test_untrained_heads_are_neutral(fresh):
    learner = small_learner()
    rng = np.random.default_rng(0)
    z = jnp.asarray(rng.integers(0, 5, (4, 16, 3)), jnp.int32)
    state = State(z, jnp.asarray(rng.normal(size=(4, 24)), jnp.float32))

    def look(params):
        variables = {"params": params["world_model"]}
        agent: ActorCritic = learner.actor_critic
        return (
            two_hot_mean(learner.model.apply(variables, *state, method=WorldModel.reward)),
            two_hot_mean(agent.value_logits(params["critic"], state)),
            agent.policy(params["actor"], state).parts[0],
        )

    reward, value, policy = compiled(look, fresh.params)(fresh.params)
    assert (np.asarray(reward) == 0).all()
    assert (np.asarray(value) == 0).all()
    np.testing.assert_allclose(policy, np.log(1 / NUM_ACTIONS), atol=0.3)


def test_an_initial_state_is_consistent(fresh):
    for mine, theirs in zip(
        jax.tree.leaves(fresh.params["critic"]), jax.tree.leaves(fresh.slow_critic), strict=True
    ):
        np.testing.assert_array_equal(mine, theirs)
        assert mine is not theirs, "a donated state must not hold one buffer twice"
    assert int(fresh.step) == int(fresh.skipped) == int(fresh.bad_streak) == 0
    assert np.abs(fresh.params["world_model"]["sequence"]["start"]).min() > 0
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(fresh))
