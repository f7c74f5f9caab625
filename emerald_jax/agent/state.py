"""Networks, parameters and optimisers: the static half of an agent and the half that moves."""

from __future__ import annotations

from typing import Any, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import optax

from emerald_jax.actions import ActionSpace
from emerald_jax.config import Config, OptimConfig
from emerald_jax.models.heads import ActorCritic, build_actor_critic, init_actor_critic
from emerald_jax.models.world_model import (
    WorldModel,
    build_world_model,
    empty_carry,
    init_world_model,
)
from emerald_jax.types import Array, Carry, Key, Params

#: The parameter groups, each with its own optimiser, in the order metrics list them.
GROUPS = ("world_model", "actor", "critic")


class RunError(RuntimeError):
    """A run cannot continue; the message names the failing term, the update, and the way out."""


class Learner(NamedTuple):
    """The static half of an agent: networks and optimisers, no arrays.

    Attributes:
        config: all settings.
        model: the world model.
        actor_critic: actor and critic.
        optimizers: one per parameter group.
    """

    config: Config
    model: WorldModel
    actor_critic: ActorCritic
    optimizers: dict[str, optax.GradientTransformation]


@flax.struct.dataclass
class TrainState:
    """The half of an agent that training changes; one consistent point of a run.

    Attributes:
        params: ``world_model``, ``actor`` and ``critic`` trees of float32 arrays.
        slow_critic: slow copy of the critic's parameters.
        opt_state: one optax state per entry of ``params``.
        return_range: `[]` moving average of P95 - P5 of the lambda-returns.
        step: `[]` int32, updates applied or skipped so far.
        skipped: `[]` int32, updates skipped because a value was not finite.
        bad_streak: `[]` int32, skipped updates in a row.
    """

    params: dict[str, Params]
    slow_critic: Params
    opt_state: dict[str, Any]
    return_range: Array
    step: Array
    skipped: Array
    bad_streak: Array


def build_learner(config: Config, actions: ActionSpace | int) -> Learner:
    """Networks and optimisers for an environment with these actions, or so many discrete ones."""
    actions = ActionSpace.of(actions)
    return Learner(
        config,
        build_world_model(config, actions),
        build_actor_critic(config, actions),
        build_optimizers(config.optim),
    )


def build_optimizers(config: OptimConfig) -> dict[str, optax.GradientTransformation]:
    """Global-norm clip, then Adam, one chain per parameter group (DreamerV3; no weight decay).

    Each optimiser sees its group as one flat vector: a few long operations instead of several per
    array, and checkpoints with few leaves.
    """
    agent = {"eps": config.agent_eps, "clip": config.agent_clip}
    settings = {
        "world_model": {"lr": config.model_lr, "eps": config.model_eps, "clip": config.model_clip},
        "actor": {"lr": config.actor_lr, **agent},
        "critic": {"lr": config.critic_lr, **agent},
    }
    return {
        name: optax.flatten(
            optax.chain(optax.clip_by_global_norm(s["clip"]), optax.adam(s["lr"], eps=s["eps"]))
        )
        for name, s in settings.items()
    }


def init_state(learner: Learner, key: Key) -> TrainState:
    """Fresh parameters and optimisers; ``key`` is consumed."""
    model_key, agent_key = jax.random.split(key)
    actor, critic = init_actor_critic(learner.actor_critic, agent_key)
    model = init_world_model(learner.model, model_key)
    return fresh_state(learner, {"world_model": model, "actor": actor, "critic": critic})


def fresh_state(learner: Learner, params: dict[str, Params]) -> TrainState:
    """Given parameters, fresh optimisers, counters at 0, a slow critic equal to the critic."""
    return TrainState(
        params=params,
        # A copy: donated states must not hold one buffer twice.
        slow_critic=jax.tree.map(jnp.copy, params["critic"]),
        opt_state={name: opt.init(params[name]) for name, opt in learner.optimizers.items()},
        return_range=jnp.zeros(()),
        step=jnp.zeros((), jnp.int32),
        skipped=jnp.zeros((), jnp.int32),
        bad_streak=jnp.zeros((), jnp.int32),
    )


def apply_gradients(
    optimizers: dict[str, optax.GradientTransformation],
    grads: dict[str, Params],
    opt_state: dict[str, optax.OptState],
    params: dict[str, Params],
    pace: Array | float = 1.0,
) -> tuple[dict[str, Params], dict[str, optax.OptState]]:
    """One step of every optimiser; all gradients were taken at ``params``.

    ``pace`` multiplies all learning rates.
    """
    new_params, new_state = {}, {}
    for name, optimizer in optimizers.items():
        updates, new_state[name] = optimizer.update(grads[name], opt_state[name], params[name])
        updates = jax.tree.map(lambda x: pace * x, updates)
        new_params[name] = optax.apply_updates(params[name], updates)
    return new_params, new_state


def init_carry(learner: Learner, batch: int) -> Carry:
    """Empty carry of ``batch`` sequences, leading `[B]`."""
    one = empty_carry(learner.model)
    return jax.tree.map(lambda x: jnp.zeros((batch, *x.shape), x.dtype), one)


def count_parameters(params: dict[str, Params]) -> dict[str, int]:
    """Trainable parameters by component: the world model's modules, actor, critic and total."""
    parts = {**params["world_model"], "actor": params["actor"], "critic": params["critic"]}
    counts = {name: sum(x.size for x in jax.tree.leaves(tree)) for name, tree in parts.items()}
    return {**counts, "total": sum(counts.values())}
