"""A loaded agent acts as the training code acts, and dreams what the model imagines."""

from __future__ import annotations

import dataclasses
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from emerald_jax.agent import Agent, Observation, act
from emerald_jax.agent.dream import dream_step
from emerald_jax.agent.state import init_carry
from emerald_jax.config import ConfigError
from emerald_jax.imagination import starts_from, world_model_step
from emerald_jax.run.checkpoint import Store
from emerald_jax.run.directory import CheckpointError
from emerald_jax.run.weights import export_weights, load, write_weights
from tests.model_cases import little_optimisation, make_batch, one_sequence
from tests.run_cases import catch_config

H = 5


@pytest.fixture(scope="module", autouse=True)
def _quickly():
    """Programs of this file are compiled with little optimisation."""
    with little_optimisation():
        yield


@pytest.fixture(scope="module")
def agent(run: Path) -> Agent:
    return load(run)


@pytest.fixture(scope="module")
def clip() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(3)
    action = rng.integers(0, 3, (2, 4))
    action[:, 0] = -1
    return rng.integers(0, 256, (2, 4, 16, 16, 3), dtype=np.uint8), action


def test_it_knows_its_run(agent: Agent) -> None:
    assert agent.updates == 9
    assert agent.spec.num_actions == 3
    assert agent.config == catch_config()


def test_load_takes_runs_exports_and_other_settings(
    run: Path, agent: Agent, tmp_path: Path
) -> None:
    assert agent.env_steps is None  # this run's metadata has no counters
    found = Store(run, read_only=True).read("state/params")
    write_weights(tmp_path / "w", found.tree, catch_config(), {"step": 12, "env_steps": 48})
    config = catch_config()
    config = dataclasses.replace(config, envs=dataclasses.replace(config.envs, count=7))
    agent = load(tmp_path / "w", config=config, device=jax.devices()[-1])
    assert agent.config.envs.count == 7
    assert (agent.updates, agent.env_steps) == (12, 48)
    assert jax.tree.leaves(agent.params)[0].devices() == {jax.devices()[-1]}


def test_another_checkpoint(run: Path, agent: Agent) -> None:
    older = load(run, 4, device=jax.devices()[3])
    assert older.updates == 4
    ours, theirs = (jax.tree.leaves(a.params)[0] for a in (older, agent))
    assert ours.devices() == {jax.devices()[3]}
    np.testing.assert_allclose(ours / 1.04, np.asarray(theirs) / 1.09, rtol=1e-5)
    with pytest.raises(CheckpointError, match="has no checkpoint 7, only 4, 9"):
        load(run, 7)


def test_an_export_is_loaded_like_a_run(run: Path, agent: Agent, tmp_path: Path) -> None:
    export_weights(run, tmp_path / "weights", checkpoint=9)
    exported = load(tmp_path / "weights")
    assert (exported.config, exported.updates) == (agent.config, 9)
    jax.tree.map(np.testing.assert_array_equal, exported.params, agent.params)


def test_no_run(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"holds no config\.json"):
        load(tmp_path)


def test_it_acts_as_training_acts(agent: Agent, clip) -> None:
    images, _ = clip
    reference = jax.jit(partial(act, learner=agent.learner))
    carry, action = init_carry(agent.learner, 2), np.full(2, -1, np.int32)
    state = agent.initial(2)
    for t in range(3):
        key = jax.random.key(t)
        # Environment 1 begins a new episode at step 2.
        first = np.array([t == 0, t in (0, 2)])
        seen = Observation(images[:, t], np.where(first, -1, action).astype(np.int32), first)
        expected = reference(agent.params, carry, seen, key)
        chosen, state = agent.act(images[:, t], state, key, is_first=first if t else None)
        np.testing.assert_array_equal(chosen, expected.action)
        np.testing.assert_allclose(state.carry.memory.keys, expected.carry.memory.keys, atol=1e-5)
        carry, action = expected.carry, chosen
    assert agent._act._cache_size() == 1


@pytest.fixture(scope="module")
def dream(agent: Agent, clip):
    return agent.imagine(*clip, horizon=H, key=jax.random.key(5))


def test_shapes_of_a_dream(agent: Agent, dream) -> None:
    c = agent.config.model
    assert dream.frames.shape == (2, H, 16, 16, 3)
    assert dream.seen.shape == (2, 4, 16, 16, 3)
    assert dream.frames.dtype == dream.seen.dtype == np.uint8
    assert dream.tokens.shape == dream.confidence.shape == (2, H, c.grid, c.grid, c.groups)
    assert dream.rewards.shape == dream.continues.shape == dream.actions.shape == (2, H)
    assert ((dream.confidence > 0) & (dream.confidence <= 1)).all()
    assert ((dream.continues > 0) & (dream.continues < 1)).all()
    assert set(np.unique(dream.actions)) <= {0, 1, 2}
    assert dream.tokens.max() < c.classes


def test_one_sequence_needs_no_batch_and_repeats_its_key(agent: Agent, clip) -> None:
    images, actions = clip
    one = agent.imagine(images[0], actions[0], horizon=H, key=jax.random.key(1))
    two = agent.imagine(images[0], actions[0], horizon=H, key=jax.random.key(1))
    assert one.frames.shape == (H, 16, 16, 3)
    np.testing.assert_array_equal(one.tokens, two.tokens)
    other = agent.imagine(images[0], actions[0], horizon=H, key=jax.random.key(2))
    assert (one.tokens != other.tokens).any()


def test_given_actions_are_taken_and_matter(agent: Agent, clip) -> None:
    future = np.array([[0, 1, 2, 1, 0]] * 2)
    options = dict(horizon=H, key=jax.random.key(5))
    one = agent.imagine(*clip, future=future, **options)
    np.testing.assert_array_equal(one.actions, future)
    changed = future.copy()
    changed[:, 3] = 2
    two = agent.imagine(*clip, future=changed, **options)
    np.testing.assert_array_equal(one.tokens[:, :3], two.tokens[:, :3])
    assert (one.frames[:, 3:] != two.frames[:, 3:]).any()


def test_a_cold_dream_draws_the_likeliest_tokens(agent: Agent, clip) -> None:
    options = dict(horizon=H, future=np.zeros((2, H), int))
    cold = [
        agent.imagine(*clip, key=jax.random.key(i), temperature=1e-4, **options) for i in (1, 2)
    ]
    # Nearly: two classes may be equally likely to four digits.
    assert min((dream.confidence > 0.99).mean() for dream in cold) > 0.98
    warm = agent.imagine(*clip, key=jax.random.key(1), temperature=1.0, **options)
    assert warm.confidence.mean() < 0.9


def test_it_dreams_on_as_training_imagines(agent: Agent) -> None:
    """The carry of acting and the shared past of training lead to the same h_t."""
    learner, sequence = agent.learner, one_sequence(make_batch(agent.learner), 1)
    sequence = sequence._replace(action=np.minimum(sequence.action, 2))

    def both(params, sequence, key):
        model = learner.model
        passed = model.apply({"params": params["world_model"]}, sequence, key)
        last = jnp.array([sequence.action.shape[0] - 1])
        starts = starts_from(passed, last)
        own, step = world_model_step(model, starts, decode_steps=1, horizon=1)
        action = jnp.array([2])
        _, imagined = step(params, own, starts.state, action, jnp.int32(0), key)
        carry = jax.tree.map(lambda x: x[None], passed.carry)
        _, dreamt = dream_step(params, carry, action, key, learner=learner, steps=1)
        return imagined.h, dreamt.h

    imagined, dreamt = jax.jit(both)(agent.params, sequence, jax.random.key(0))
    np.testing.assert_allclose(imagined, dreamt, atol=1e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"obs": np.zeros((2, 4, 8, 8, 3), np.uint8)}, "obs is"),
        ({"obs": np.zeros((2, 4, 16, 16, 3))}, "must be .* uint8"),
        ({"actions": None}, "actions is missing"),
        ({"actions": np.full((2, 4), 3)}, "actions must lie in -1 or 0 … 2"),
        ({"actions": np.zeros((2, 3), int)}, "actions must be"),
        ({"future": np.full((2, H), -1)}, "future must lie in 0 … 2"),
        ({"horizon": 0}, "horizon 0"),
        ({"temperature": 0.0}, "temperature 0"),
        ({"steps": 49}, "steps is 49: it must lie in 0 … 48"),
    ],
)
def test_what_does_not_fit_is_refused(agent: Agent, clip, change, message) -> None:
    images, actions = clip
    arguments = dict(obs=images, actions=actions, horizon=H, key=jax.random.key(0)) | change
    with pytest.raises(ValueError, match=message):
        agent.imagine(**arguments)


def test_observations_that_do_not_fit_are_refused(agent: Agent, clip) -> None:
    images, _ = clip
    state, key = agent.initial(2), jax.random.key(0)
    with pytest.raises(ValueError, match=r"obs is \(1, 16, 16, 3\) uint8"):
        agent.act(images[:1, 0], state, key)
    with pytest.raises(ValueError, match="is_first has shape"):
        agent.act(images[:, 0], state, key, is_first=np.ones(1, bool))
