"""One update: how many per second, and how its time is divided.

The complete update is the program that training runs. The split compiles its four parts separately,
from the same functions, each fed with the results of the one before. The parts lose what the
compiler gains by seeing all of them at once, and ``rest_seconds`` (complete update minus parts) may
be negative.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache, partial
from itertools import product
from typing import Any

import jax
import jax.numpy as jnp
import optax

from benchmarks.suite.flops import Flops, reference, trace_flops
from benchmarks.suite.harness import (
    NUM_ACTIONS,
    Options,
    compile_for,
    device_counts,
    full_carry,
    on_cpu,
    program_row,
    random_batch,
    random_state,
    repeat,
    unless_memory_lacks,
    with_changes,
)
from benchmarks.suite.report import PARTS, Repeats, Row
from emerald_jax.agent.state import (
    Learner,
    TrainState,
    apply_gradients,
    build_learner,
    count_parameters,
    init_state,
)
from emerald_jax.config import Config
from emerald_jax.imagination import starts_from
from emerald_jax.training.devices import (
    compile_train_step,
    local_devices,
    place_shares,
    place_state,
    put_batch,
    split,
)
from emerald_jax.training.update import (
    behavior_gradient,
    judge,
    model_gradient,
    model_loss,
    rollout,
    start_positions,
)
from emerald_jax.types import Batch, Key, Params, Starts, Trajectory

NAME = "train"


def measure(options: Options) -> Iterator[Row | str]:
    """Rows of every compute type, with and without rematerialisation, on every device count."""
    config = options.config()
    own = "float32" if on_cpu() else "bfloat16"
    every = ("float32", "bfloat16") if options.full or not on_cpu() else (own,)
    dtypes = options.dtype or ((own,) if options.quick else every)
    named = tuple(value == "on" for value in options.remat)
    remats = named or ((config.model.remat,) if options.quick else (False, True))
    for devices, dtype, remat in product(device_counts(options), dtypes, remats):
        if config.replay.batch % devices:
            yield f"train on {devices} devices: they do not divide {config.replay.batch} sequences"
            continue
        changed = with_changes(config, model={"dtype": dtype, "remat": remat})
        parts = (devices, dtype, remat) == (1, dtypes[0], remats[0])
        found = unless_memory_lacks(
            f"train dtype={dtype} remat={remat} devices={devices}",
            partial(measure_update, changed, devices, options, parts=parts),
        )
        if isinstance(found, Row):
            options.found.setdefault("updates_per_s", found.value.median)
        yield found


class Update:
    """The compiled update of a configuration, with a batch of noise; a call runs it once.

    Attributes:
        learner: networks and settings.
        facts: of its compilation, for a row.
        state: the train state after the last call.
        batch: on its devices.
        keys: `[B]`, not split over devices.
    """

    def __init__(self, config: Config, devices: int) -> None:
        """Compile it for the first ``devices`` local devices."""
        chosen = local_devices(devices)
        self.learner = learner = build_learner(config, NUM_ACTIONS)
        batch = random_batch(config)._replace(carry=full_carry(learner, config.replay.batch))
        self.keys = jax.random.split(jax.random.key(1), config.replay.batch)
        self.batch = put_batch(batch, chosen)
        self._keys = place_shares(split(self.keys, devices), chosen)
        self.state = place_state(random_state(learner), chosen)
        step = compile_train_step(learner, chosen)
        self._program, self.facts = compile_for(step, self.state, self.batch, self._keys)

    def __call__(self) -> Any:
        """Run one update; returns its results, to be waited for."""
        self.state, carry, metrics = self._program(self.state, self.batch, self._keys)
        return carry, metrics


def measure_update(config: Config, devices: int, options: Options, *, parts: bool) -> Row:
    """Compile and time the complete update, and its parts on request."""
    update, work = Update(config, devices), update_flops(config)
    model = config.model
    case = {"dtype": model.dtype, "remat": model.remat, "devices": devices}
    _, row = program_row(
        update,
        work["whole"],
        update.facts,
        amount=1,
        budget=options.budget(),
        benchmark=NAME,
        case={"preset": config.preset, **case},
        unit="updates/s",
    )
    facts = row.facts
    facts["kept_bytes"] = kept_bytes(update.learner, update.state.params["world_model"], config)
    facts["parameters"] = count_parameters(update.state.params)["total"]
    facts["env_steps_per_s"] = frames(config) / facts["seconds"]
    if parts:
        facts |= measure_parts(update, work, options)
        known = sum(facts[f"{name}_seconds"] for name in PARTS)
        facts["rest_seconds"] = facts["seconds"] - known
    return row


def kept_bytes(learner: Learner, params: Params, config: Config) -> int:
    """Bytes that autodiff keeps from the world model's forward pass for its backward pass.

    Counted from shapes, of the complete batch, parameters included. The compiler's plan is
    ``temporaries_bytes``; devices and ``optim.micro_batch`` divide the batch, which is not counted.

    Args:
        learner: networks and settings.
        params: the world model's; only shapes are read.
        config: batch and length.
    """

    def backward(params: Params, batch: Batch, keys: Key) -> Any:
        return jax.vjp(lambda p: model_loss(p, batch, keys, learner)[0], params)[1]

    size = config.replay.batch
    batch = random_batch(config)._replace(carry=full_carry(learner, size))
    kept = jax.eval_shape(backward, params, batch, jax.random.split(jax.random.key(0), size))
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(kept))


def frames(config: Config) -> float:
    """Environment steps per update, by ``train_ratio``."""
    return config.replay.batch * config.replay.length / config.train_ratio


def starts_per_sequence(config: Config) -> int:
    """Rollouts that share one real past, n."""
    return config.replay.length // config.behavior.start_stride


@cache
def update_flops(config: Config, num_actions: int = NUM_ACTIONS) -> dict[str, Flops]:
    """FLOPs of one update by part, and of the ``whole``.

    The agent's losses evaluate policy and critic a second time on states where imagination and the
    returns have evaluated them already; these forward passes are not useful and are subtracted. The
    optimiser has no products.
    """
    learner = build_learner(reference(config), num_actions)
    size = config.replay.batch
    state = jax.eval_shape(partial(init_state, learner), jax.random.key(0))
    carry = jax.eval_shape(partial(full_carry, learner, size))
    batch = random_batch(config, num_actions)._replace(carry=carry)
    keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), size))

    def trace(function: Callable, *arguments: Any) -> tuple[Flops, Any]:
        return trace_flops(partial(function, learner=learner), *arguments)

    model, (_, passed) = trace(read, state.params["world_model"], batch, keys)
    starts = jax.eval_shape(partial(make_starts, learner=learner), passed)
    imagination, trajectory = trace(dream, state.params, starts, keys)
    behavior, _ = trace(learn, state.params, state.slow_critic, trajectory)
    again, _ = trace(judge_again, state.params, trajectory)
    parts = (model, imagination, behavior - again)
    return {**dict(zip(PARTS, parts, strict=False)), "whole": sum(parts, Flops())}


def measure_parts(update: Update, work: dict[str, Flops], options: Options) -> dict[str, float]:
    """Median seconds and useful FLOPs of the four parts, each compiled separately."""
    learner, state, keys = update.learner, update.state, update.keys
    params, found = state.params, {}

    def run(name: str, function: Callable, *arguments: Any) -> Any:
        program, _ = compile_for(jax.jit(partial(function, learner=learner)), *arguments)
        result = program(*arguments)
        seconds = repeat(lambda: program(*arguments), options.budget())
        found[f"{name}_seconds"] = Repeats.of(seconds).median
        if name in work:
            found[f"{name}_useful_flops"] = work[name].useful
        return result

    model_grads, passed = run("world_model", read, params["world_model"], update.batch, keys)
    starts = jax.jit(partial(make_starts, learner=learner))(passed)
    trajectory = run("imagination", dream, params, starts, keys)
    agent_grads = run("actor_critic", learn, params, state.slow_critic, trajectory)
    run("optimizer", move, state, {"world_model": model_grads, **agent_grads})
    return found


def read(params: Any, batch: Batch, keys: Key, *, learner: Learner) -> tuple:
    """World model: gradients of a batch, and the pass that imagination starts from."""
    grads, (passed, _) = model_gradient(params, batch, keys, learner)
    return grads, passed


def make_starts(passed: Any, *, learner: Learner) -> Starts:
    """Starts `[B, n]` of the pass, as an update takes them."""
    behavior, replay = learner.config.behavior, learner.config.replay
    positions = start_positions(replay.length, behavior.start_stride)
    return jax.vmap(lambda one: starts_from(one, positions))(passed)


def dream(params: Any, starts: Starts, keys: Key, *, learner: Learner) -> Trajectory:
    """Imagination from the starts of every sequence."""
    return jax.vmap(partial(rollout, params, learner=learner))(starts, keys)


def learn(params: Any, slow: Any, trajectory: Trajectory, *, learner: Learner) -> dict[str, Any]:
    """Actor and critic: returns of the trajectory, both losses and their gradients."""
    returns = judge(params, trajectory, jnp.ones(trajectory.action[:, 0].shape), learner)
    return behavior_gradient(params, slow, trajectory, returns, jnp.float32(1), learner)[0]


def judge_again(params: Any, trajectory: Trajectory, *, learner: Learner) -> tuple:
    """The forward passes of policy and critic on the imagined states, one more time."""
    state = jax.tree.map(lambda x: x[:, :-1], trajectory.state)
    agent = learner.actor_critic
    return agent.policy(params["actor"], state), agent.value_logits(params["critic"], state)


def move(state: TrainState, grads: Any, *, learner: Learner) -> tuple:
    """Optimisers and slow critic."""
    params, opt_state = apply_gradients(learner.optimizers, grads, state.opt_state, state.params)
    rate = learner.config.behavior.slow_rate
    return params, opt_state, optax.incremental_update(params["critic"], state.slow_critic, rate)
