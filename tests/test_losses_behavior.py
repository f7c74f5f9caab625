"""Actor and critic losses against NumPy, and that each trains only its own network.

The oracles start from the heads' outputs over a random trajectory and do the rest in float64.
"""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
import pytest
import scipy.special

from emerald_jax.losses import Returns, actor_losses, critic_losses, evaluate_trajectory
from emerald_jax.models.world_model import WorldModel
from emerald_jax.types import State, Trajectory
from tests.model_cases import NUM_ACTIONS, compiled, make_state, small_learner, to_numpy
from tests.oracles import two_hot_cross_entropy, two_hot_expectation

P, G, K, BINS, UNIMIX = 16, 3, 5, 41, 0.01


@pytest.fixture(scope="module")
def params():
    return make_state(small_learner()).params


H, STARTS = 4, 3


@pytest.fixture(scope="module")
def trajectory():
    rng = np.random.default_rng(11)
    z = rng.integers(0, K, (H + 1, STARTS, P, G)).astype(np.int32)
    h = rng.normal(size=(H + 1, STARTS, 24)).astype(np.float32)
    return Trajectory(State(z, h), rng.integers(0, NUM_ACTIONS, (H, STARTS)).astype(np.int32))


def test_soft_continuation_is_a_probability(params, trajectory):
    learner = small_learner()
    model, agent = learner.model, learner.actor_critic

    def run(soft):
        config = dataclasses.replace(learner.config.behavior, soft_continue=soft)
        shared = {"model": model, "actor_critic": agent, "config": config}
        cont_0 = np.ones(STARTS, np.float32)
        return jax.jit(lambda *x: evaluate_trajectory(*x, cont_0, **shared))(params, trajectory)

    soft, hard = run(True), run(False)
    state = jax.tree.map(lambda x: x[1:], trajectory.state)
    frozen = {"params": params["world_model"]}
    logit = jax.jit(lambda *x: model.apply(frozen, *x, method=WorldModel.cont))(*state)
    np.testing.assert_allclose(soft.cont, scipy.special.expit(logit), rtol=1e-5)
    np.testing.assert_array_equal(hard.cont, soft.cont > 0.5)
    np.testing.assert_allclose(soft.weight[1], 0.997 * soft.cont[0], rtol=1e-5)


@pytest.fixture(scope="module")
def behavior(params, trajectory):
    """Returns, losses and raw head outputs of a random trajectory; gradients of both losses."""
    learner = small_learner()
    model, agent, config = learner.model, learner.actor_critic, learner.config.behavior
    cont_0, scale = np.float32([1, 0, 1]), 2.5
    slow = make_state(learner, seed=5).params["critic"]

    def both(params, slow, trajectory):
        returns = evaluate_trajectory(
            params, trajectory, cont_0, model=model, actor_critic=agent, config=config
        )
        actor, extra = actor_losses(
            params["actor"], trajectory, returns, scale, actor_critic=agent, config=config
        )
        critic = critic_losses(
            params["critic"], slow, trajectory, returns, actor_critic=agent, config=config
        )
        return (actor, critic), (returns, extra)

    def run(params, slow, trajectory):
        (actor, critic), aux = both(params, slow, trajectory)
        frozen = {"params": params["world_model"]}
        state = trajectory.state
        outputs = {
            "reward": model.apply(frozen, *state, method=WorldModel.reward),
            "cont": model.apply(frozen, *state, method=WorldModel.cont),
            "value": agent.value_logits(params["critic"], state),
            "slow": agent.value_logits(slow, state),
            "policy": agent.actor.apply({"params": params["actor"]}, *state),
        }
        gradients = []
        for which in range(2):

            def total(params, slow, h, which=which):
                other = trajectory._replace(state=State(state.z, h))
                return both(params, slow, other)[0][which].mean()

            gradients.append(jax.grad(total, argnums=(0, 1, 2))(params, slow, state.h))
        return actor, critic, *aux, outputs, gradients

    return to_numpy(compiled(run, params, slow, trajectory)(params, slow, trajectory))


def test_returns_of_a_trajectory(behavior):
    returns, outputs = behavior[2], behavior[4]
    assert isinstance(returns, Returns)
    reward = two_hot_expectation(outputs["reward"])[1:]
    cont = (outputs["cont"] > 0).astype(np.float64)[1:]
    value = two_hot_expectation(outputs["value"])
    assert 0 < cont.mean() < 1
    np.testing.assert_allclose(returns.reward, reward, rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(returns.cont, cont)
    np.testing.assert_allclose(returns.value, value[:-1], rtol=1e-4, atol=1e-4)
    ret, target = value[-1], []
    for k in reversed(range(H)):
        ret = reward[k] + 0.997 * cont[k] * (0.05 * value[k + 1] + 0.95 * ret)
        target.insert(0, ret)
    np.testing.assert_allclose(returns.target, target, rtol=1e-4, atol=1e-4)
    weight = np.array([1.0, 0, 1])  # the starts' own continuation, from the data
    for k in range(H):
        np.testing.assert_allclose(returns.weight[k], weight, rtol=1e-5)
        weight = weight * 0.997 * cont[k]


def policy_loss(logits, action, advantage, weight):
    probs = (1 - UNIMIX) * scipy.special.softmax(logits.astype(np.float64), -1)
    log_probs = np.log(probs + UNIMIX / NUM_ACTIONS)
    taken = np.take_along_axis(log_probs, action[..., None], -1)[..., 0]
    entropy = -(np.exp(log_probs) * log_probs).sum(-1)
    return -(taken * advantage + 3e-4 * entropy) * weight, entropy


def test_actor_loss(behavior, trajectory):
    actor, _, returns, extra, outputs, _ = behavior
    advantage = (returns.target - returns.value).astype(np.float64) / 2.5
    expected, entropy = policy_loss(
        outputs["policy"][:-1], trajectory.action, advantage, returns.weight
    )
    np.testing.assert_allclose(actor, expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(extra["policy_entropy"], entropy, rtol=1e-4)
    np.testing.assert_allclose(extra["advantage"], advantage, rtol=1e-4, atol=1e-6)


def test_critic_loss(behavior):
    _, critic, returns, _, outputs, _ = behavior
    logits = outputs["value"][:-1]
    slow = two_hot_expectation(outputs["slow"][:-1])
    expected = two_hot_cross_entropy(logits, returns.target) + two_hot_cross_entropy(logits, slow)
    np.testing.assert_allclose(critic, expected * returns.weight, rtol=1e-4, atol=1e-5)


def test_actor_gradient_is_the_policy_gradient(behavior, trajectory):
    # Central differences of the NumPy loss in the actor's last bias, the advantage held fixed.
    _, _, returns, _, outputs, gradients = behavior
    advantage = (returns.target - returns.value).astype(np.float64) / 2.5

    def loss(shift):
        logits = outputs["policy"][:-1].astype(np.float64) + shift
        return policy_loss(logits, trajectory.action, advantage, returns.weight)[0].mean()

    expected = [(loss(d) - loss(-d)) / 2e-5 for d in 1e-5 * np.eye(NUM_ACTIONS)]
    ours = gradients[0][0]["actor"]["Dense_3"]["bias"]
    assert np.abs(ours).max() > 1e-4
    np.testing.assert_allclose(ours, expected, rtol=1e-3, atol=1e-6)


def test_critic_gradient_holds_its_targets_fixed(behavior):
    _, _, returns, _, outputs, gradients = behavior
    slow = two_hot_expectation(outputs["slow"][:-1])

    def loss(shift):
        logits = outputs["value"][:-1].astype(np.float64) + shift
        both = two_hot_cross_entropy(logits, returns.target) + two_hot_cross_entropy(logits, slow)
        return (both * returns.weight).mean()

    expected = [(loss(d) - loss(-d)) / 2e-5 for d in 1e-5 * np.eye(BINS)]
    ours = gradients[1][0]["critic"]["Dense_3"]["bias"]
    np.testing.assert_allclose(ours, expected, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize(("which", "name"), [(0, "actor"), (1, "critic")])
def test_behavior_losses_train_only_their_own_network(behavior, which, name):
    # Although the returns were made from the world model and the critic inside the loss.
    params, slow, h = behavior[5][which]
    for group, tree in params.items():
        size = max(np.abs(x).max() for x in jax.tree.leaves(tree))
        assert (size > 1e-6) == (group == name), group
        assert group == name or size == 0
    assert all((x == 0).all() for x in jax.tree.leaves(slow))
    assert (h == 0).all(), "no gradient into the trajectory"
