"""One gradient update: world model, imagination, actor and critic, as one pure function.

The order is the paper's (section 5): the world model reads the batch, imagination starts from that
same pass, all gradients are taken at the same parameters, and only then are parameters updated.

A device works on its batch at once, or, where caches are small, in equal parts: on two CPU cores
the paper's world model takes 2.3 core seconds a sequence in parts of one, 3 in parts of four (own
measurement). The parts' mean gradient is the batch's; only one part's activations are kept.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.flatten_util import ravel_pytree

from emerald_jax.agent.state import Learner, TrainState, apply_gradients
from emerald_jax.config import Config
from emerald_jax.imagination import decoding_draws, imagine, starts_from, world_model_step
from emerald_jax.losses import (
    Returns,
    actor_losses,
    critic_losses,
    evaluate_trajectory,
    played_returns,
    weighted_sum,
    world_model_losses,
)
from emerald_jax.models.vision import learn_center, looped
from emerald_jax.models.world_model import Pass, with_tables
from emerald_jax.ops.random import split, uniform
from emerald_jax.ops.returns import moving_average, percentile_range
from emerald_jax.target import target
from emerald_jax.training.played import due_steps
from emerald_jax.types import Array, Batch, Carry, Key, Params, Played, Starts, State, Trajectory

Metrics = dict[str, Array]

#: Bytes of the encoder's first feature map that one part may have on a CPU (O, measured).
_PART_BYTES = 8 * 2**20


def train_step(
    state: TrainState,
    batch: Batch,
    key: Key,
    *,
    learner: Learner,
    axis_name: str | None = None,
) -> tuple[TrainState, Carry, Metrics]:
    """One update of everything; ``axis_name`` is the only trace of parallelism.

    Args:
        state: :class:`TrainState`; donate it.
        batch: :class:`Batch` `[B, L]` with its ``carry``; under pmap this device's share.
        key: `[B]` typed keys, one per sequence, so that a sequence's noise does not depend on which
            device holds it.
        learner: networks, optimisers and settings (static).
        axis_name: the pmap axis, or None.

    Returns:
        the next state; the carry for each sequence's next chunk; metrics, float32 scalars equal on
        all devices. An update with a non-finite loss or gradient changes only its counters and
        empties the carry; ``metrics["finite"]`` is then 0.
    """
    played, batch = batch.played, batch._replace(played=None)
    model_key, dream_key = split(key, 2)
    model_grads, (passed, metrics) = model_gradient(
        state.params["world_model"], batch, model_key, learner
    )
    positions = start_positions(batch.action.shape[1], learner.config.behavior.start_stride)
    starts = starts_from(passed, positions)
    trajectory = rollout(state.params, starts, dream_key, learner=learner)
    cont_0 = 1.0 - batch.is_terminal[:, positions]
    returns = judge(state.params, trajectory, cont_0, learner)
    now = percentile_range(returns.target, axis_name=axis_name)
    decay = learner.config.behavior.return_decay
    return_range = moving_average(state.return_range, now, decay)
    scale = jnp.maximum(1.0, return_range)
    pace = annealed(state.step, learner.config)
    agent_grads, agent_metrics = behavior_gradient(
        state.params, state.slow_critic, trajectory, returns, scale, learner, pace
    )
    if played is not None:
        weight = learner.config.behavior.real_weight
        real_grads, real = played_gradient(state, played, scale, learner, pace)
        agent_grads = jax.tree.map(lambda x, y: x + weight * y, agent_grads, real_grads)
        agent_metrics |= real
    grads = {"world_model": model_grads, **agent_grads}
    metrics = {**metrics, **agent_metrics, **_dream_metrics(returns)}
    if axis_name is not None:
        grads, metrics = mean_over((grads, metrics), axis_name)
    # A ratio of means over all devices: each may have rollouts of other lengths.
    metrics["behavior/imagined_reward"] /= jnp.maximum(metrics["behavior/weight"], 1e-8)
    metrics["behavior/return_scale"] = scale
    after, carry, metrics = _apply(state, grads, return_range, passed.carry, metrics, pace, learner)
    if learner.config.model.center:  # no gradient moves it
        model = after.params["world_model"]
        center = learn_center(model["center"], batch.image, axis_name)
        finite = partial(jnp.where, metrics["finite"] == 1)
        center = jax.tree.map(finite, center, model["center"])
        params = {**after.params, "world_model": {**model, "center": center}}
        after = after.replace(params=params)
    return after, carry, metrics


def annealed(step: Array, config: Config) -> Array | float:
    """Share of the learning rates and of the entropy bonus in update ``step``: 1 but for
    ``optim.anneal``.
    """
    if not config.optim.anneal:
        return 1.0
    return jnp.maximum(0.0, 1 - step / max(1, config.total_updates))


def mean_over(tree: Any, axis_name: str) -> Any:
    """Mean of float32 arrays over the devices; of several hosts, as one message instead of many."""
    if jax.process_count() == 1:
        return jax.lax.pmean(tree, axis_name)
    flat, restore = ravel_pytree(tree)
    return restore(jax.lax.pmean(flat, axis_name))


def model_gradient(
    params: Params, batch: Batch, keys: Key, learner: Learner
) -> tuple[Params, tuple[Pass, Metrics]]:
    """Gradient of :func:`model_loss`, in parts; also its pass `[B]` and mean metrics."""

    def loss(params: Params, data: tuple[Batch, Key]) -> tuple:
        return model_loss(params, *data, learner)

    parts = batch_parts(learner.config, batch.action.shape[0])
    return mean_gradient(loss, params, (batch, keys), parts)


def model_loss(params: Params, batch: Batch, keys: Key, learner: Learner) -> tuple:
    """Mean world-model loss over `[B, L]`; auxiliary: the pass `[B]` and mean metrics."""
    config = learner.config.loss
    options = {"model": learner.model, "config": config}
    terms, (passed, extra) = world_model_losses(params, batch, keys, **options)
    total = weighted_sum(terms, config).mean()
    metrics = {f"loss/{name}": term.mean() for name, term in terms.items()}
    metrics |= {f"model/{name}": value.mean() for name, value in extra.items()}
    return total, (jax.lax.stop_gradient(passed), {"loss/model": total, **metrics})


def rollout(params: dict[str, Params], starts: Starts, key: Key, *, learner: Learner) -> Trajectory:
    """Imagine `[B, H + 1, n]` from the starts `[B, n]` with the agent's own policy.

    ``params`` are ``world_model`` and ``actor``; ``key`` `[B]` is consumed; ``learner`` sets H, S.
    """
    behavior = learner.config.behavior

    def policy(params: Params, state: State, step: Array, key: Key) -> Array:
        del step
        return learner.actor_critic.policy(params["actor"], state).sample(key)

    model, horizon, steps = learner.model, behavior.horizon, behavior.decode_steps
    sizes = {"decode_steps": steps, "horizon": horizon}
    own, step = world_model_step(model, starts, **sizes, **behavior.decoding)
    act_key, model_key = split(key, 2)
    count = starts.state.h.shape[-2]
    noise = (
        uniform(act_key, (horizon, count, *model.actions.shape), before=1),
        uniform(model_key, (horizon, *decoding_draws(model, steps, (count,))), before=2),
    )
    options = {"policy": policy, "step": step, "horizon": horizon}
    # Once for all imagined steps: XLA would compute them again in each.
    used = {name: in_compute_type(params[name], model.dtype) for name in ("world_model", "actor")}
    used["world_model"] = with_tables(model, used["world_model"])
    trajectory = imagine(used, starts.state, own, noise, **options)
    return swapped(trajectory)


def in_compute_type(params: Params, dtype: jnp.dtype) -> Params:
    """Kernels, and the biases next to them, in the compute type; the results do not change."""
    if "kernel" in params:
        return jax.tree.map(lambda x: x.astype(dtype), params)
    return {k: in_compute_type(v, dtype) if isinstance(v, dict) else v for k, v in params.items()}


def start_positions(length: int, stride: int) -> Array:
    """Steps where imagination starts: stride - 1, 2 stride - 1, … (3, 7, 11, … by default)."""
    return jnp.arange(stride - 1, length, stride)


def judge(
    params: dict[str, Params], trajectory: Trajectory, cont_0: Array, learner: Learner
) -> Returns:
    """`evaluate_trajectory` `[B]` with the learner's networks.

    ``trajectory`` is `[B, H + 1, n]`; ``cont_0`` `[B, n]` the real continuation of the starts.
    """
    shared = {"model": learner.model, "actor_critic": learner.actor_critic}
    config = learner.config.behavior

    def evaluate(part: tuple[Trajectory, Array]) -> Returns:
        trajectory, cont_0 = part
        return swapped(
            evaluate_trajectory(params, swapped(trajectory), cont_0, **shared, config=config)
        )

    return batched(evaluate, (trajectory, cont_0), batch_parts(learner.config, len(cont_0)))


def swapped(tree: Any) -> Any:
    """Swap the first two axes of all arrays: sequences first, or time first."""
    return jax.tree.map(lambda x: jnp.swapaxes(x, 0, 1), tree)


def behavior_gradient(
    params: dict[str, Params],
    slow: Params,
    trajectory: Trajectory,
    returns: Returns,
    scale: Array,
    learner: Learner,
    pace: Array | float = 1.0,
) -> tuple[dict[str, Params], Metrics]:
    """Gradients of actor and critic, ``{"actor": ..., "critic": ...}``, and mean metrics.

    ``slow`` is the slow critic; ``trajectory`` `[B, H + 1, n]`; ``returns`` `[B, H, n]`; ``scale``
    `[]` the return scale; ``pace`` from :func:`annealed`.
    """
    agent = {name: params[name] for name in ("actor", "critic")}
    loss = partial(_behavior_loss, slow, scale, pace, learner=learner)
    parts = batch_parts(learner.config, len(returns.weight))
    grads, (_, metrics) = mean_gradient(loss, agent, (trajectory, returns), parts)
    return grads, metrics


def played_gradient(
    state: TrainState,
    played: Played,
    scale: Array,
    learner: Learner,
    pace: Array | float = 1.0,
) -> tuple[dict[str, Params], Metrics]:
    """:func:`behavior_gradient` of the steps ``played`` `[E, W]` that are due."""
    shared = {"actor_critic": learner.actor_critic, "config": learner.config.behavior}
    rollouts, returns = played_returns(
        state.params["critic"], played, **shared, count=due_steps(learner.config)
    )
    one_start = partial(jax.tree.map, lambda x: jnp.swapaxes(x, 0, 1)[:, :, None])
    real = one_start((rollouts, returns))
    grads, found = behavior_gradient(state.params, state.slow_critic, *real, scale, learner, pace)
    metrics = {f"real/{name.split('/')[1]}": value for name, value in found.items()}
    metrics["real/return"] = (returns.weight * returns.target).mean()
    metrics["real/due"] = (returns.weight > 0).mean()
    return grads, metrics


def _behavior_loss(
    slow: Params,
    scale: Array,
    pace: Array | float,
    params: dict[str, Params],
    data: tuple[Trajectory, Returns],
    *,
    learner: Learner,
) -> tuple[Array, tuple[None, Metrics]]:
    """Mean actor and critic loss over all sequences, steps and starts, summed: they share
    no parameter, so the gradient of the sum is the gradient of each.
    """
    shared = {"actor_critic": learner.actor_critic, "config": learner.config.behavior}
    trajectory, returns = swapped(data)
    shares = {**shared, "pace": pace}
    actor, extra = actor_losses(params["actor"], trajectory, returns, scale, **shares)
    critic = critic_losses(params["critic"], slow, trajectory, returns, **shared)
    actor, critic, extra = jax.tree.map(jnp.mean, (actor, critic, extra))
    metrics = {f"behavior/{name}": value for name, value in extra.items()}
    return actor + critic, (None, {"loss/actor": actor, "loss/critic": critic, **metrics})


def _dream_metrics(returns: Returns) -> Metrics:
    """Statistics that warn of model exploitation: imagined reward, value and continuation.

    Rewards count by survival, as in the losses; the caller divides by the mean weight.
    """
    return {
        "behavior/imagined_reward": (returns.weight * returns.reward).mean(),
        "behavior/imagined_continue": returns.cont.mean(),
        "behavior/value": returns.value.mean(),
        "behavior/return": returns.target.mean(),
        "behavior/weight": returns.weight.mean(),
    }


def _apply(
    state: TrainState,
    grads: dict[str, Params],
    return_range: Array,
    carry: Carry,
    metrics: Metrics,
    pace: Array | float,
    learner: Learner,
) -> tuple[TrainState, Carry, Metrics]:
    """Update parameters, slow critic and return range, unless a value is not finite."""
    # The optimisers' flat vectors (see `build_optimizers`): one sum instead of one for each array.
    flat = {name: ravel_pytree(tree)[0] for name, tree in grads.items()}
    metrics |= {f"grad_norm/{name}": jnp.linalg.norm(vector) for name, vector in flat.items()}
    finite = jnp.all(jnp.isfinite(jnp.stack([*metrics.values()])))
    params, opt_state = apply_gradients(
        learner.optimizers, grads, state.opt_state, state.params, pace
    )
    rate = learner.config.behavior.slow_rate
    slow_critic = optax.incremental_update(params["critic"], state.slow_critic, rate)
    updated = (params, opt_state, slow_critic, return_range)
    kept = (state.params, state.opt_state, state.slow_critic, state.return_range)
    params, opt_state, slow_critic, return_range = jax.tree.map(
        lambda new, old: jnp.where(finite, new, old), updated, kept
    )
    skipped = 1 - finite.astype(jnp.int32)
    new_state = TrainState(
        params=params,
        slow_critic=slow_critic,
        opt_state=opt_state,
        return_range=return_range,
        step=state.step + 1,
        skipped=state.skipped + skipped,
        bad_streak=(state.bad_streak + 1) * skipped,
    )
    carry = jax.tree.map(lambda x: jnp.where(finite, x, jnp.zeros_like(x)), carry)
    return new_state, carry, {**metrics, "finite": finite.astype(jnp.float32)}


def batch_parts(config: Config, sequences: int) -> int:
    """Number of equal parts in which the gradients of a device's sequences are computed.

    The smallest divisor of ``sequences`` with at most ``optim.micro_batch`` sequences in a part; a
    setting of 0 means all on accelerators, and on a CPU as many as fit its caches.
    """
    most = config.optim.micro_batch
    if most == 0 and target().platform != "cpu":
        return 1
    if most == 0:
        side = config.envs.image_size // 2
        first_map = 4 * config.replay.length * side**2 * config.model.channels
        most = max(1, _PART_BYTES // first_map)
    return next(n for n in range(1, sequences + 1) if sequences % n == 0 and sequences // n <= most)


def mean_gradient(
    loss: Callable[..., tuple[Array, tuple[Any, Any]]], params: Params, data: Any, parts: int
) -> tuple[Params, tuple[Any, Any]]:
    """Gradient of a mean over a batch of `[B, ...]` arrays, in equal parts, and its extras.

    ``loss``: ``(params, data) -> (mean loss, (extras [B], mean metrics []))``; ``parts`` divides B.
    """
    gradient = jax.grad(loss, has_aux=True)
    if parts == 1:
        return gradient(params, data)

    def body(total: Params, part: Any) -> tuple[Params, tuple[Any, Any]]:
        with looped():
            grads, found = gradient(params, part)
        return jax.tree.map(jnp.add, total, grads), found

    data = in_parts(data, parts)
    total, (extras, metrics) = jax.lax.scan(body, jax.tree.map(jnp.zeros_like, params), data)
    extras = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), extras)
    metrics = jax.tree.map(lambda x: x.mean(0), metrics)
    return jax.tree.map(lambda x: x / parts, total), (extras, metrics)


def batched(function: Callable[[Any], Any], data: Any, parts: int) -> Any:
    """``function(data)`` of `[B, ...]` arrays in ``parts``, one after another."""
    if parts == 1:
        return function(data)
    found = jax.lax.map(function, in_parts(data, parts))
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), found)


def in_parts(data: Any, parts: int) -> Any:
    """`[B, ...]` -> `[parts, B / parts, ...]`."""
    return jax.tree.map(lambda x: x.reshape(parts, x.shape[0] // parts, *x.shape[1:]), data)
