"""What training carries from update to update, and the networks it belongs to."""

from __future__ import annotations

from typing import Any, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import optax

from emerald_jax.config import Config
from emerald_jax.models.agent import Agent, build_agent, init_agent
from emerald_jax.models.world_model import (
    WorldModel,
    build_world_model,
    empty_carry,
    init_world_model,
)
from emerald_jax.training.optimizer import build_optimizers
from emerald_jax.types import Array, Carry, Key, Params


@flax.struct.dataclass
class TrainState:
    """One consistent point of a training run.

    Attributes:
        params: ``world_model``, ``actor`` and ``critic`` trees of float32 arrays.
        slow_critic: the critic's slow copy.
        opt_state: one optax state per entry of ``params``.
        return_range: `[]` moving average of P95 - P5 of the lambda-returns.
        step: `[]` int32, updates applied or skipped so far.
        skipped: `[]` int32, updates skipped because something was not finite.
        bad_streak: `[]` int32, skipped updates in a row.
    """

    params: dict[str, Params]
    slow_critic: Params
    opt_state: dict[str, Any]
    return_range: Array
    step: Array
    skipped: Array
    bad_streak: Array


class Learner(NamedTuple):
    """The static half of training: networks and optimisers, no arrays.

    Attributes:
        config: the whole configuration.
        model: the world model.
        agent: actor and critic.
        optimizers: one per parameter group.
    """

    config: Config
    model: WorldModel
    agent: Agent
    optimizers: dict[str, optax.GradientTransformation]


def build_learner(config: Config, num_actions: int) -> Learner:
    """Networks and optimisers of a configuration, for an environment of ``num_actions``."""
    return Learner(
        config,
        build_world_model(config, num_actions),
        build_agent(config, num_actions),
        build_optimizers(config.optim),
    )


def init_state(learner: Learner, key: Key) -> TrainState:
    """Fresh parameters and optimisers.

    Args:
        learner: from :func:`build_learner`.
        key: consumed.
    """
    model_key, agent_key = jax.random.split(key)
    actor, critic = init_agent(learner.agent, agent_key)
    params = {
        "world_model": init_world_model(learner.model, model_key),
        "actor": actor,
        "critic": critic,
    }
    return TrainState(
        params=params,
        # A copy: donated states must not hold one buffer twice.
        slow_critic=jax.tree.map(jnp.copy, critic),
        opt_state={name: opt.init(params[name]) for name, opt in learner.optimizers.items()},
        return_range=jnp.zeros(()),
        step=jnp.zeros((), jnp.int32),
        skipped=jnp.zeros((), jnp.int32),
        bad_streak=jnp.zeros((), jnp.int32),
    )


def init_carry(learner: Learner, batch: int) -> Carry:
    """Empty carry of ``batch`` sequences, leading `[B]`."""
    one = empty_carry(learner.model)
    return jax.tree.map(lambda x: jnp.zeros((batch, *x.shape), x.dtype), one)


def count_parameters(params: dict[str, Params]) -> dict[str, int]:
    """Trainable parameters by component: the world model's modules, actor, critic and total."""
    parts = {**params["world_model"], "actor": params["actor"], "critic": params["critic"]}
    counts = {name: sum(x.size for x in jax.tree.leaves(tree)) for name, tree in parts.items()}
    return {**counts, "total": sum(counts.values())}
