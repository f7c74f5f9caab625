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
from statistics import median
from typing import Any

import jax
import jax.numpy as jnp
import optax

import emerald_jax as ej
from benchmarks.suite import harness
from benchmarks.suite.flops import Flops, trace_flops
from benchmarks.suite.harness import Options, on_cpu
from benchmarks.suite.report import PARTS, Row
from emerald_jax.agent.state import Learner, TrainState, apply_gradients, count_parameters
from emerald_jax.imagination import starts_from
from emerald_jax.training import devices as parallel
from emerald_jax.training import update as training
from emerald_jax.types import Key, Params

NAME = "train"


def measure(options: Options) -> Iterator[Row | str]:
    """Rows of every compute type, with and without rematerialisation, on every device count."""
    config = options.config()
    own = "float32" if on_cpu() else "bfloat16"
    every = ("float32", "bfloat16") if options.full or not on_cpu() else (own,)
    dtypes = options.dtype or ((own,) if options.quick else every)
    named = tuple(value == "on" for value in options.remat)
    remats = named or ((config.model.remat,) if options.quick else (False, True))
    for devices, dtype, remat in product(harness.device_counts(options), dtypes, remats):
        if config.replay.batch % devices:
            yield f"train on {devices} devices: they do not divide {config.replay.batch} sequences"
            continue
        changed = harness.with_changes(config, model={"dtype": dtype, "remat": remat})
        parts = (devices, dtype, remat) == (1, dtypes[0], remats[0])
        found = harness.unless_memory_lacks(
            f"train dtype={dtype} remat={remat} devices={devices}",
            partial(measure_update, changed, devices, options, parts=parts),
        )
        if isinstance(found, Row):
            options.found.setdefault("updates_per_s", found.value.median)
        yield found


class Update:
    """The compiled update of a configuration, with a batch of noise; a call runs it once.

    ``facts`` are those of its compilation, ``state`` the newest train state, ``keys`` `[B]`.
    """

    def __init__(self, config: ej.Config, devices: int) -> None:
        """Compile it for the first ``devices`` local devices."""
        chosen = parallel.local_devices(devices)
        self.learner = learner = ej.build_learner(config, harness.NUM_ACTIONS)
        count = config.replay.batch
        batch = harness.full_batch(learner)
        self.keys = jax.random.split(jax.random.key(1), count)
        self.batch = parallel.put_batch(batch, chosen)
        self._keys = parallel.place_shares(parallel.split(self.keys, devices), chosen)
        self.state = parallel.place_state(harness.random_state(learner), chosen)
        step = parallel.compile_train_step(learner, chosen)
        # From shapes, as a run does, so that a compilation cache has one entry for both.
        shapes = jax.eval_shape(lambda: (self.state, self.batch, self._keys))
        self._program, self.facts = harness.compile_for(step, *shapes)

    def __call__(self) -> Any:
        """Run one update; returns its results, to be waited for."""
        self.state, carry, metrics = self._program(self.state, self.batch, self._keys)
        return carry, metrics


def measure_update(config: ej.Config, devices: int, options: Options, *, parts: bool) -> Row:
    """Compile and time the complete update, and its parts on request."""
    update, work, model = Update(config, devices), update_flops(config), config.model
    case = {"preset": config.preset, "dtype": model.dtype, "remat": model.remat}
    names = {"benchmark": NAME, "case": {**case, "devices": devices}, "unit": "updates/s"}
    program = (update, 1, work["whole"], update.facts)
    row = harness.program_row(options.budget(), *program, **names)[1]
    facts, params = row.facts, update.state.params
    facts["kept_bytes"] = kept_bytes(update.learner, params["world_model"], config)
    facts["parameters"] = count_parameters(params)["total"]
    facts["env_steps_per_s"] = frames(config) / facts["seconds"]
    if parts:
        facts |= measure_parts(update, work, options)
        known = sum(facts[f"{name}_seconds"] for name in PARTS)
        facts["rest_seconds"] = facts["seconds"] - known
    return row


def measure_seeds(config: ej.Config, seeds: int, options: Options) -> Row:
    """Updates per second of ``seeds`` seeds in one program on one device, over all of them.

    As ``train --seeds`` computes them on an accelerator. All seeds have the same parameters and
    batch, and their own random numbers.
    """
    learner, count = ej.build_learner(config, harness.NUM_ACTIONS), config.replay.batch
    batch = harness.full_batch(learner)
    one = harness.random_state(learner), batch
    state, batch = jax.tree.map(lambda x: jnp.stack([jnp.asarray(x)] * seeds), one)
    keys = jax.random.split(jax.random.key(1), (seeds, count))
    step = jax.jit(jax.vmap(partial(training.train_step, learner=learner)), donate_argnums=0)
    program, facts = harness.compile_for(step, *jax.eval_shape(lambda: (state, batch, keys)))

    def update() -> Any:
        nonlocal state
        state, *found = program(state, batch, keys)
        return found

    case = {"preset": config.preset, "dtype": config.model.dtype, "seeds": seeds}
    names = {"benchmark": "seeds", "case": case, "unit": "updates/s"}
    work = seeds * update_flops(config)["whole"]
    return harness.program_row(options.budget(), update, seeds, work, facts, **names)[1]


def kept_bytes(learner: Learner, params: Params, config: ej.Config) -> int:
    """Bytes that autodiff keeps from the world model's forward pass for its backward pass.

    Counted from shapes, of the complete batch, which devices and ``optim.micro_batch`` divide,
    parameters included. The compiler's plan is ``temporaries_bytes``.
    """

    def backward(params: Params, batch: ej.Batch, keys: Key) -> Any:
        return jax.vjp(lambda p: training.model_loss(p, batch, keys, learner)[0], params)[1]

    size = config.replay.batch
    batch = harness.full_batch(learner)
    kept = jax.eval_shape(backward, params, batch, jax.random.split(jax.random.key(0), size))
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(kept))


def frames(config: ej.Config) -> float:
    """Environment steps per update, by ``train_ratio``."""
    return config.replay.batch * config.replay.length / config.train_ratio


def starts_per_sequence(config: ej.Config) -> int:
    """Rollouts that share one real past, n."""
    return config.replay.length // config.behavior.start_stride


@cache
def update_flops(config: ej.Config, num_actions: int = harness.NUM_ACTIONS) -> dict[str, Flops]:
    """FLOPs of one update by part, and of the ``whole``; the optimiser has no products.

    The agent's losses evaluate policy and critic a second time on the imagined states; these
    forward passes are not useful and are subtracted.
    """
    model, passed, state, keys, learner = _trace_model(config, num_actions)

    def judge_again(params: Any, trajectory: ej.Trajectory) -> tuple:
        state, agent = jax.tree.map(lambda x: x[:, :-1], trajectory.state), learner.actor_critic
        policy = agent.policy(params["actor"], state)
        return policy.parts, agent.value_logits(params["critic"], state)

    params, slow = state.params, state.slow_critic
    starts = jax.eval_shape(partial(make_starts, learner=learner), passed)
    imagination, trajectory = trace_flops(partial(dream, learner=learner), params, starts, keys)
    behavior, _ = trace_flops(partial(learn, learner=learner), params, slow, trajectory)
    parts = (model, imagination, behavior - trace_flops(judge_again, params, trajectory)[0])
    return dict(zip(PARTS, parts, strict=False)) | {"whole": sum(parts, Flops())}


def model_flops(config: ej.Config, num_actions: int = harness.NUM_ACTIONS) -> Flops:
    """FLOPs of the world model's part of one update."""
    return _trace_model(config, num_actions)[0]


def _trace_model(config: ej.Config, num_actions: int) -> tuple:
    """FLOPs of the world model's part; shapes of its pass, the state and keys; the learner."""
    # What rematerialisation and micro-batches compute again is not useful.
    config = harness.with_changes(config, model={"remat": False}, optim={"micro_batch": 0})
    learner, size = ej.build_learner(config, num_actions), config.replay.batch
    state = jax.eval_shape(partial(ej.init_state, learner), jax.random.key(0))
    carry = jax.eval_shape(partial(harness.full_carry, learner, size))
    batch = harness.random_batch(config, num_actions)._replace(carry=carry)
    keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), size))
    arguments = (state.params["world_model"], batch, keys)
    model, (_, passed) = trace_flops(partial(read, learner=learner), *arguments)
    return model, passed, state, keys, learner


def measure_parts(update: Update, work: dict[str, Flops], options: Options) -> dict[str, float]:
    """Median seconds and useful FLOPs of the four parts, each compiled separately."""
    learner, state, keys = update.learner, update.state, update.keys
    params, found = state.params, {}

    def run(name: str, function: Callable, *arguments: Any) -> Any:
        program, _ = harness.compile_for(jax.jit(partial(function, learner=learner)), *arguments)
        result = program(*arguments)
        seconds = harness.repeat(lambda: program(*arguments), options.budget())
        found[f"{name}_seconds"] = median(seconds)
        if name in work:
            found[f"{name}_useful_flops"] = work[name].useful
        return result

    model_grads, passed = run("world_model", read, params["world_model"], update.batch, keys)
    starts = jax.jit(partial(make_starts, learner=learner))(passed)
    trajectory = run("imagination", dream, params, starts, keys)
    agent_grads = run("actor_critic", learn, params, state.slow_critic, trajectory)
    run("optimizer", move, state, {"world_model": model_grads, **agent_grads})
    return found


def read(params: Any, batch: ej.Batch, keys: Key, *, learner: Learner) -> tuple:
    """World model: gradients of a batch, and the pass that imagination starts from."""
    grads, (passed, _) = training.model_gradient(params, batch, keys, learner)
    return grads, passed


def make_starts(passed: Any, *, learner: Learner) -> ej.Starts:
    """Starts `[B, n]` of the pass, as an update takes them."""
    behavior, replay = learner.config.behavior, learner.config.replay
    positions = training.start_positions(replay.length, behavior.start_stride)
    return starts_from(passed, positions)


def dream(params: Any, starts: ej.Starts, keys: Key, *, learner: Learner) -> ej.Trajectory:
    """Imagination from the starts of every sequence."""
    return training.rollout(params, starts, keys, learner=learner)


def learn(params: Any, slow: Any, trajectory: ej.Trajectory, *, learner: Learner) -> dict[str, Any]:
    """Actor and critic: returns of the trajectory, both losses and their gradients."""
    returns = training.judge(params, trajectory, jnp.ones(trajectory.action[:, 0].shape), learner)
    return training.behavior_gradient(params, slow, trajectory, returns, jnp.float32(1), learner)[0]


def move(state: TrainState, grads: Any, *, learner: Learner) -> tuple:
    """Optimisers and slow critic."""
    params, opt_state = apply_gradients(learner.optimizers, grads, state.opt_state, state.params)
    rate = learner.config.behavior.slow_rate
    return params, opt_state, optax.incremental_update(params["critic"], state.slow_critic, rate)
