"""Learning from the steps just played: each counts once, with the return that really followed."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from emerald_jax.agent.state import apply_gradients, build_learner
from emerald_jax.config import Config
from emerald_jax.envs.base import VectorStep
from emerald_jax.losses import Returns, actor_losses, played_returns
from emerald_jax.ops.scalars import two_hot_mean
from emerald_jax.presets import get_preset
from emerald_jax.run.checkpoint import Store
from emerald_jax.training import update
from emerald_jax.training.played import Recent, due_steps, nothing_played
from emerald_jax.training.train import train, train_seeds
from emerald_jax.training.update import played_gradient, train_step
from emerald_jax.types import Played, State, Trajectory
from tests.model_cases import (
    NUM_ACTIONS,
    compiled,
    make_batch,
    make_state,
    random_params,
    sequence_keys,
    small_config,
    state_shapes,
)

ENVS, WEIGHT = 4, 0.5


#: An update for every third vector step.
CONFIG = dataclasses.replace(small_config(behavior={"real_weight": WEIGHT}), train_ratio=8.0)
LEARNER = build_learner(CONFIG, NUM_ACTIONS)
DUE = due_steps(LEARNER.config)
WINDOW = DUE + LEARNER.config.behavior.horizon


def vector_step(number: int) -> VectorStep:
    flags = np.zeros(ENVS, bool)
    image = np.zeros((ENVS, 16, 16, 3), np.uint8)
    reward = np.full(ENVS, number, np.float32)
    return VectorStep(image, flags, reward, flags, flags, flags)


def test_every_step_is_learned_from_once_and_after_a_horizon():
    rng, recent = np.random.default_rng(0), Recent(LEARNER, ENVS)
    blank = nothing_played(LEARNER, ENVS).state
    player = SimpleNamespace(state=State(blank.z[:, 0], blank.h[:, 0]))
    played, learned = 0, []
    for _ in range(50):
        for _ in range(rng.integers(0, DUE + 1)):
            player.log_prob = np.full(ENVS, -played, np.float32)
            action = np.full(ENVS, played, np.int32)
            recent.add(vector_step(played), player, action, np.ones(ENVS, bool))
            played += 1
        taken = recent.take()
        assert taken.due.shape == (ENVS, WINDOW)
        assert (taken.due == taken.due[0]).all()
        due = np.flatnonzero(taken.due[0, :DUE])
        numbers = taken.reward[0].astype(int)
        np.testing.assert_array_equal(taken.action[0], numbers)
        np.testing.assert_array_equal(taken.log_prob[0], -numbers)
        assert (played - 1 - numbers[due] >= LEARNER.config.behavior.horizon).all()
        learned += numbers[due].tolist()
    assert learned == list(range(len(learned))), "a step is missing, or came twice"
    assert len(learned) > played - WINDOW


def make_played(seed: int = 0) -> Played:
    """Random steps with a death in environment 0, a time limit in 1, and a fault in 2."""
    rng, blank = np.random.default_rng(seed), nothing_played(LEARNER, ENVS)
    first, terminal = blank.is_first.copy(), blank.is_terminal.copy()
    terminal[0, 3] = first[0, 4] = True
    first[1, 2] = True
    first[2, 1] = first[2, 6] = True
    due = rng.random(first.shape) < 0.8
    due[3] = True
    return Played(
        State(
            rng.integers(0, 5, blank.state.z.shape).astype(np.int32),
            rng.normal(size=blank.state.h.shape).astype(np.float32),
        ),
        rng.integers(0, NUM_ACTIONS, first.shape).astype(np.int32),
        rng.uniform(-2.5, -1.0, first.shape).astype(np.float32),
        rng.normal(size=first.shape).astype(np.float32),
        first,
        terminal,
        due,
    )


def test_returns_are_those_of_the_real_rewards():
    params = random_params(state_shapes(LEARNER).params["critic"])
    played, behavior = make_played(), LEARNER.config.behavior
    options = {"actor_critic": LEARNER.actor_critic, "config": behavior, "count": DUE}
    run, found = compiled(lambda p, x: played_returns(p, x, **options), params, played)(
        params, played
    )
    value = np.asarray(
        two_hot_mean(
            LEARNER.actor_critic.value_logits(params, jax.tree.map(jnp.asarray, played.state))
        )
    )
    gamma, lam = behavior.gamma, behavior.lam
    for env in range(ENVS):
        after = value[env, -1]
        for k in range(WINDOW - 2, -1, -1):
            # Cut here: what follows is another episode, or not the policy's doing.
            if played.is_first[env, k + 1] or not played.due[env, k]:
                after, weight = value[env, k], 0.0
            else:
                alive = 0.0 if played.is_terminal[env, k + 1] else gamma
                onward = (1 - lam) * value[env, k + 1] + lam * after
                after, weight = played.reward[env, k + 1] + alive * onward, 1.0
            if k < DUE:
                np.testing.assert_allclose(found.target[k, env], after, rtol=1e-4, atol=1e-5)
                assert (found.weight[k, env] > 0) == bool(weight), (env, k)
    np.testing.assert_allclose(np.mean(found.weight), 1, rtol=1e-5)
    np.testing.assert_array_equal(run.action, played.action[:, :DUE].T)
    np.testing.assert_array_equal(run.state.h, np.swapaxes(played.state.h, 0, 1)[: DUE + 1])


@pytest.fixture(scope="module")
def gradient():
    """Gradients and metrics of played steps."""

    def found(state, played, scale=1.0):
        return played_gradient(state, played, jnp.float32(scale), LEARNER)

    return jax.jit(found)


def test_steps_that_are_not_due_have_no_gradient(gradient):
    played = make_played()
    grads, metrics = gradient(make_state(LEARNER), played._replace(due=np.zeros_like(played.due)))
    assert not any(np.any(x) for x in jax.tree.leaves(grads))
    assert metrics["real/due"] == metrics["real/return"] == 0
    grads, metrics = gradient(make_state(LEARNER), played)
    assert all(np.any(grads[name]["Dense_0"]["kernel"]) for name in ("actor", "critic"))
    assert 0 < metrics["real/due"] < 1


def test_a_policy_learns_what_was_rewarded(gradient):
    """Action 2 was followed by a reward, the others were not: it becomes more probable."""
    state, played = make_state(LEARNER), make_played(1)
    action = np.arange(WINDOW)[None] % NUM_ACTIONS + np.zeros((ENVS, 1), int)
    no = np.zeros_like(played.is_first)
    reward = np.zeros(no.shape, np.float32)
    reward[:, 1:] = 10.0 * (action[:, :-1] == 2)
    played = played._replace(
        action=action.astype(np.int32), reward=reward, is_first=no, is_terminal=~no, due=~no
    )
    seen = jax.tree.map(lambda x: jnp.asarray(x[:, :DUE]), played.state)

    @jax.jit
    def chance(actor):
        policy = LEARNER.actor_critic.policy(actor, seen)
        return jnp.exp(policy.log_prob(jnp.full((ENVS, DUE), 2))).mean()

    @jax.jit
    def log_prob(actor):
        states = jax.tree.map(jnp.asarray, played.state)
        return LEARNER.actor_critic.policy(actor, states).log_prob(jnp.asarray(action))

    optimizers = {name: LEARNER.optimizers[name] for name in ("actor", "critic")}
    params = {name: state.params[name] for name in optimizers}
    moments = {name: optimizer.init(params[name]) for name, optimizer in optimizers.items()}
    apply = jax.jit(lambda *x: apply_gradients(optimizers, *x))
    before = chance(params["actor"])
    for _ in range(60):
        played = played._replace(log_prob=log_prob(params["actor"]))
        grads, _ = gradient(state.replace(params={**state.params, **params}), played)
        params, moments = apply(grads, moments, params)
    assert chance(params["actor"]) > before + 0.1


@pytest.mark.parametrize("sign", [-1, 1])
def test_an_action_is_not_pushed_further_than_its_probability_may_change(sign):
    """PPO's clipping, without an entropy bonus: no gradient where the policy has moved on."""
    behavior = dataclasses.replace(LEARNER.config.behavior, entropy=0.0)
    played, actor = jax.tree.map(jnp.asarray, make_played()), make_state(LEARNER).params["actor"]
    states, action = jax.tree.map(lambda x: x[:, :3], played.state), played.action[:, :2]
    run = Trajectory(states, action)
    run = jax.tree.map(lambda x: jnp.swapaxes(x, 0, 1), run)
    acted = jax.tree.map(lambda x: x[:-1], run.state)
    now = LEARNER.actor_critic.policy(actor, acted).log_prob(run.action)
    one, advantage = jnp.ones(now.shape), jnp.full(now.shape, 2.0 * sign)

    def mean_loss(actor, before):
        returns = Returns(advantage, 0 * one, one, one, one, before)
        options = {"actor_critic": LEARNER.actor_critic, "config": behavior}
        return actor_losses(actor, run, returns, 1.0, **options)[0].mean()

    step = jax.jit(jax.value_and_grad(mean_loss))
    for moved, ratio, moves in [
        (sign * 0.1, np.exp(sign * 0.1), True),
        (sign * 0.5, 1 + sign * 0.2, False),  # far enough: clipped
        (sign * -0.5, np.exp(sign * -0.5), True),  # back again
    ]:
        loss, grads = step(actor, now - moved)
        np.testing.assert_allclose(loss, -2 * sign * ratio, rtol=1e-4)
        assert any(np.any(x) for x in jax.tree.leaves(grads)) == moves


def test_an_update_adds_them_to_those_of_imagination(gradient):
    state, played, batch = make_state(LEARNER), make_played(), make_batch(LEARNER)

    def grads_of(state, grads, return_range, carry, metrics, pace, learner):
        return grads, carry, metrics

    def step(state, batch):
        with mock.patch.object(update, "_apply", grads_of):
            return train_step(state, batch, sequence_keys(0), learner=LEARNER)

    none = played._replace(due=np.zeros_like(played.due))
    batches = [batch._replace(played=x) for x in (none, played)]
    program = compiled(step, state, batches[0])
    (imagined, _, _), (both, _, metrics) = (program(state, x) for x in batches)
    real, _ = gradient(state, played, metrics["behavior/return_scale"])
    for name in ("actor", "critic"):
        sums = jax.tree.map(lambda x, y: x + WEIGHT * y, imagined[name], real[name])
        for x, y in zip(*map(jax.tree.leaves, (both[name], sums)), strict=True):
            np.testing.assert_allclose(x, y, rtol=1e-3, atol=1e-6)
    for x, y in zip(*(jax.tree.leaves(g["world_model"]) for g in (both, imagined)), strict=True):
        np.testing.assert_array_equal(x, y)


def tiny(logdir: Path, steps: int, **changes: int) -> Config:
    preset = get_preset("tiny")
    log = dataclasses.replace(preset.log, every=5, pictures=0, quiet=True, eval_episodes=0)
    behavior = dataclasses.replace(preset.behavior, real_weight=0.5)
    settings = {"behavior": behavior, "log": log, "devices": 1, "seed": 5, **changes}
    return dataclasses.replace(preset, logdir=str(logdir), steps=steps, **settings)


def saved(logdir: Path) -> dict:
    with Store(logdir, read_only=True) as store:
        return {part: store.read(part).tree for part in ("state", "played")}


@pytest.mark.slow
def test_two_devices_and_seeds_trained_together_do_the_same(tmp_path):
    train(tiny(tmp_path / "one", 140))
    train_seeds(tiny(tmp_path / "seeds", 140), 2)
    alone, together = saved(tmp_path / "one"), saved(tmp_path / "seeds-5")
    np.testing.assert_array_equal(alone["played"]["due"], together["played"]["due"])
    for x, y in zip(*map(jax.tree.leaves, (alone, together)), strict=True):
        # Another program, which rounds otherwise; moments of the optimisers reach 20.
        np.testing.assert_allclose(x, y, rtol=2e-3, atol=1e-3)
    train(tiny(tmp_path / "two", 140, devices=2))
    two = saved(tmp_path / "two")
    for x, y in zip(*(jax.tree.leaves(x["state"]["params"]) for x in (alone, two)), strict=True):
        np.testing.assert_allclose(x, y, atol=0.02)
