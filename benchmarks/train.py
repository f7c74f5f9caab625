"""One update: how many per second, and where its time goes.

The whole update is the program that training runs. The split compiles its four parts on their own,
from the same functions, and feeds each with what the one before it gave; so the parts lose what the
compiler saves by seeing all of them at once, and ``rest_seconds`` (whole less parts) may be
negative.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from itertools import product
from typing import Any

import jax
import jax.numpy as jnp
import optax

from benchmarks.suite.flops import update_flops
from benchmarks.suite.harness import (
    NUM_ACTIONS,
    Options,
    compile_for,
    device_counts,
    full_carry,
    memory_peaks,
    on_cpu,
    random_batch,
    random_state,
    repeat,
    repeat_beside_ceiling,
    share_facts,
    unless_memory_lacks,
    with_changes,
)
from benchmarks.suite.report import PARTS, Row, Spread
from emerald_jax.agent.state import (
    Learner,
    TrainState,
    apply_gradients,
    build_learner,
    count_parameters,
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
    dtypes = options.dtypes or ((own,) if options.quick else every)
    remats = options.remat or ((config.model.remat,) if options.quick else (False, True))
    split_of = (dtypes[0], remats[0])
    for devices, dtype, remat in product(device_counts(options), dtypes, remats):
        if config.replay.batch % devices:
            yield f"train on {devices} devices: they do not divide {config.replay.batch} sequences"
            continue
        changed = with_changes(config, model={"dtype": dtype, "remat": remat})
        parts = devices == 1 and (dtype, remat) == split_of
        found = unless_memory_lacks(
            f"train dtype={dtype} remat={remat} devices={devices}",
            partial(measure_update, changed, devices, options, parts=parts),
        )
        if isinstance(found, Row):
            options.found.setdefault("updates_per_s", found.value.median)
        yield found


class Update:
    """The compiled update of a configuration and a batch of noise; a call runs it once.

    Attributes:
        learner: networks and settings.
        program: :class:`Compiled`.
        state: what the last call left.
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
        self.program = compile_for(step, self.state, self.batch, self._keys)

    def __call__(self) -> Any:
        """One update; returns what to wait for."""
        self.state, carry, metrics = self.program.call(self.state, self.batch, self._keys)
        return carry, metrics


def measure_update(config: Config, devices: int, options: Options, *, parts: bool) -> Row:
    """Compile and time the whole update, and its parts if asked for."""
    update = Update(config, devices)
    seconds, ceiling = repeat_beside_ceiling(update, options.budget(), config.model.dtype)
    facts = {
        **share_facts(
            update_flops(config, NUM_ACTIONS)["whole"],
            Spread.of(seconds).median,
            ceiling,
            model=config.model,
            devices=devices,
        ),
        **update.program.facts(),
        **memory_peaks(),
        "kept_bytes": kept_bytes(update.learner, update.state.params["world_model"], config),
        "parameters": count_parameters(update.state.params)["total"],
        "env_steps_per_s": frames(config) / Spread.of(seconds).median,
    }
    if parts:
        facts |= measure_parts(update.learner, update.state, update.batch, update.keys, options)
        known = sum(facts[f"{name}_seconds"] for name in PARTS)
        facts["rest_seconds"] = facts["seconds"] - known
    return Row(
        benchmark=NAME,
        case={
            "preset": config.preset,
            "dtype": config.model.dtype,
            "remat": config.model.remat,
            "devices": devices,
        },
        unit="updates/s",
        value=Spread.of([1 / s for s in seconds]),
        facts=facts,
    )


def kept_bytes(learner: Learner, params: Params, config: Config) -> int:
    """What autodiff keeps from the world model's forward pass for its backward pass, by shapes.

    Of the whole batch, before the compiler: what it then plans is ``temporaries_bytes``, and what
    devices or ``optim.micro_batch`` divide is not divided here. Parameters count too.

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
    """Environment steps that are played for one update: what ``train_ratio`` asks for."""
    return config.replay.batch * config.replay.length / config.train_ratio


def measure_parts(
    learner: Learner, state: TrainState, batch: Batch, keys: Key, options: Options
) -> dict[str, float]:
    """Median seconds and useful FLOP/s of the four parts, each compiled by itself."""
    work = update_flops(learner.config, NUM_ACTIONS)
    params = state.params
    found: dict[str, float] = {}

    def run(name: str, function: Callable, *arguments: Any) -> Any:
        program = compile_for(jax.jit(function), *arguments)
        result = program.call(*arguments)
        seconds = Spread.of(repeat(lambda: program.call(*arguments), options.budget())).median
        found[f"{name}_seconds"] = seconds
        if name in work:
            found[f"{name}_useful_flops"] = work[name].useful
        return result

    model_grads, passed = run(
        "world_model", partial(read, learner=learner), params["world_model"], batch, keys
    )
    starts = jax.jit(partial(make_starts, learner=learner))(passed)
    trajectory = run("imagination", partial(dream, learner=learner), params, starts, keys)
    agent_grads = run(
        "actor_critic", partial(learn, learner=learner), params, state.slow_critic, trajectory
    )
    grads = {"world_model": model_grads, **agent_grads}
    run("optimizer", partial(move, learner=learner), state, grads)
    return found


def read(params: Any, batch: Batch, keys: Key, *, learner: Learner) -> tuple:
    """World model: loss and gradients of a batch, and the pass that imagination starts from."""
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


def move(state: TrainState, grads: Any, *, learner: Learner) -> tuple:
    """Optimisers and slow critic."""
    params, opt_state = apply_gradients(learner.optimizers, grads, state.opt_state, state.params)
    rate = learner.config.behavior.slow_rate
    return params, opt_state, optax.incremental_update(params["critic"], state.slow_critic, rate)
