"""An agent in training, on its devices: the compiled programs, and all multi-device code.

The state has single-device shapes and is replicated on every device; the batch, its carry and its
keys are split along a leading device axis by ``jax.pmap`` over the local devices. On one device
plain ``jit`` runs the same function. Where several hosts train together, ``shard_map`` does the
same over the devices of all: a host places its own shares of the global arrays. All programs are
compiled before the run starts and refuse any other shape, so no compilation can fail in the middle
of a run.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from hashlib import sha256
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

from emerald_jax.agent import Player, abstract_acting, compile_acting
from emerald_jax.agent.dream import OpenLoop, open_loop
from emerald_jax.agent.state import (
    Learner,
    TrainState,
    build_learner,
    fresh_state,
    init_carry,
    init_state,
)
from emerald_jax.config import Config, ConfigError
from emerald_jax.envs.base import EnvSpec, VectorStep
from emerald_jax.run.machine import compile_program
from emerald_jax.target import target
from emerald_jax.training.played import Recent, with_played
from emerald_jax.training.update import batch_parts, rollout, train_step
from emerald_jax.types import Array, Batch, Key, Params, Starts, Trajectory, key_of

AXIS = "data"
#: Programs that run at every step; the others need not be fast.
OFTEN = ("train", "act")
#: Devices that a CPU is divided into for a small model; a number of its own, so that the results of
#: a seed do not depend on the machine's cores.
CPU_DEVICES = 2
#: Sequences in a run's picture, and the maximum number of frames of each.
PICTURE_SEQUENCES, PICTURE_FRAMES = 3, 20


class TrainingAgent:
    """The agent of one run, the only part of training that knows networks.

    Attributes:
        learner: networks, optimisers and settings.
        spec: the environment's spec.
        devices: devices of all hosts that the batch is split over.
        state: :class:`TrainState`, replicated on all devices; None before :meth:`start`.
        player: :class:`Player` of the training environments.
        seconds: wall time of tracing and compiling.
        temporaries: bytes that an update needs in addition to its inputs and outputs.
        memory: bytes that an update needs in all, per device; 0 before :meth:`start`.
    """

    def __init__(self, config: Config, spec: EnvSpec, devices: list[jax.Device]) -> None:
        """Build the networks; nothing is computed before :meth:`start`."""
        self.learner = build_learner(config, spec.actions)
        self.spec, self.devices = spec, devices
        #: This host's environments.
        self._envs = config.envs.count * len(mine(devices)) // len(devices)
        keys = jax.random.split(key_of(config.seed), 4)
        self._init_key, self._update_key, self._act_key, self._picture_key = keys
        if jax.process_index():  # hosts act in different environments
            self._act_key = jax.random.fold_in(self._act_key, 2**30 + jax.process_index())
        self.state: TrainState | None = None
        real = config.behavior.real_weight
        self._recent = Recent(self.learner, self._envs) if real else None
        self.seconds, self.temporaries, self.memory = 0.0, 0, 0
        self._began = time.monotonic()
        self._pool, self._compiling = ThreadPoolExecutor(), {}

    def programs(self) -> dict[str, Callable[[], Any]]:
        """Functions that trace the run's programs, by name; pass what they return to `compile`."""
        config, count = self.learner.config, len(self.devices)
        base, index = jax.eval_shape(partial(jax.random.key, 0)), jax.ShapeDtypeStruct((), "uint32")
        state = self.shapes()
        update_keys = partial(_update_keys, config=config, devices=self.devices)
        all_keys = jax.eval_shape(partial(_all_keys, config=config, devices=count), base, index)
        batch = abstract_batch(self.learner, self.spec, config.replay.batch, config.replay.length)
        batch = with_played(batch, self.learner)
        zeros = partial(jax.tree.map, lambda x: jnp.zeros(x.shape, x.dtype), batch)
        shards = jax.eval_shape(lambda: split(zeros(), count))
        carry, observation, step = abstract_acting(self.learner, self.spec, self._envs)
        rows, length, context = picture_shape(config)
        picture = partial(_picture, learner=self.learner, context=context)
        drawn = abstract_batch(self.learner, self.spec, rows, length)
        train = compile_train_step(self.learner, self.devices)
        acting = compile_acting(self.learner)
        return {
            "train": partial(train.lower, state, shards, all_keys),
            "init": partial(jax.jit(partial(init_state, self.learner)).lower, base),
            "update_keys": partial(jax.jit(update_keys).lower, base, index),
            "act": partial(acting.lower, state.params, carry, observation, base, step),
            "picture": partial(jax.jit(picture).lower, state.params, drawn, base, index),
        }

    def compile(self, name: str, lowered: Any) -> None:
        """Start to compile a traced program of :meth:`programs`, while the next one is traced.

        Tracing holds Python's lock; compiling releases it.
        """
        self._compiling[name] = self._pool.submit(compile_program, lowered, often=name in OFTEN)

    def start(self, params: dict[str, Params] | None = None) -> None:
        """Wait for all programs and create the state, from ``params`` or from random ones."""
        self._programs = {name: future.result() for name, future in self._compiling.items()}
        self._pool.shutdown()
        self.temporaries, self.memory = memory_needed(self._programs["train"])
        config = self.learner.config
        state = self._programs["init"](self._init_key)
        if params is not None:
            state = fresh_state(self.learner, params)
        self._place(state, init_carry(self.learner, self._batch))
        self.player = self._player(self._act_key)
        # Made here: inside the hot loop even zeros would be an implicit transfer.
        self._picture_carry = init_carry(self.learner, picture_shape(config)[0])
        self.seconds = time.monotonic() - self._began

    def shapes(self) -> TrainState:
        """Shapes and types of the state, without computing anything."""
        return jax.eval_shape(partial(init_state, self.learner), self._init_key)

    @property
    def params(self) -> dict[str, Params]:
        """Current parameters on the first device, for programs that run there alone; no copy."""
        if len(self.devices) == 1:
            return self.state.params
        return jax.tree.map(lambda x: x.addressable_data(0), self.state.params)

    def digest(self) -> str:
        """SHA-256 of the current parameters, in hex."""
        leaves = jax.tree.leaves(jax.device_get(self.params))
        return sha256(b"".join(leaf.tobytes() for leaf in leaves)).hexdigest()

    def put(self, batch: Batch) -> Batch:
        """Start copying this host's part of a batch to the devices; returns at once."""
        return put_batch(batch, self.devices)

    def blank_batch(self) -> Batch:
        """A host batch of zeros without carry, of the shape that :meth:`put` takes."""
        length = self.learner.config.replay.length
        batch = abstract_batch(self.learner, self.spec, self._batch, length)
        return blank(batch._replace(carry=None))

    @property
    def _batch(self) -> int:
        """Sequences in this host's part of a batch."""
        return self.learner.config.replay.batch * len(mine(self.devices)) // len(self.devices)

    def update(self, batch: Batch, number: int) -> dict[str, Array]:
        """Start update ``number`` on a batch of :meth:`put`; returns its metrics on the device."""
        keys = self._programs["update_keys"](self._update_key, put_index(number))
        keys, batch = place_shares(keys, self.devices), batch._replace(carry=self._carry)
        if self._recent:
            batch = batch._replace(played=put_batch(self._recent.take(), self.devices))
        self.state, self._carry, metrics = self._programs["train"](self.state, batch, keys)
        return metrics

    def act(self, record: VectorStep, number: int) -> np.ndarray:
        """Actions of vector step ``number`` with the current parameters; see :class:`Player`."""
        self.player.params, self.player.number = self.params, number
        return self.player(record)

    def remember(self, record: VectorStep, action: np.ndarray, own: np.ndarray) -> None:
        """After :meth:`act`: these actions were taken, where ``own`` `[E]` the policy's."""
        if self._recent:
            self._recent.add(record, self.player, action, own)

    def evaluator(self, updates: int) -> Player:
        """A player of other episodes in the same environments, with the current parameters."""
        return self._player(jax.random.fold_in(self._act_key, 2**31 + updates))

    def picture(self, batch: Batch, number: int) -> OpenLoop:
        """Open-loop prediction of a few host sequences, as host arrays; see `picture_shape`."""
        batch = jax.device_put(batch)._replace(carry=self._picture_carry)
        arguments = (self.params, batch, self._picture_key, put_index(number))
        return jax.device_get(self._programs["picture"](*arguments))

    def tree(self) -> dict[str, Any]:
        """Every array of the agent that decides the future, independent of the device count.

        On several hosts they are host arrays, and carries are those of this host.
        """
        state, acting = self.state, self.player.carry
        played = {"played": self._recent.played} if self._recent else {}
        if jax.process_count() == 1:
            carry = join(self._carry, len(self.devices))
            return {"state": state, "carry": carry, "acting": acting, **played}
        carry = jax.tree.map(_own_shares, self._carry)
        state, acting = jax.device_get((state, acting))
        return {"state": state, "carry": carry, "acting": acting, **played}

    def restore(self, tree: dict[str, Any]) -> None:
        """Continue from the arrays of :meth:`tree`."""
        self._place(tree["state"], tree["carry"])
        self.player.carry = jax.device_put(tree["acting"])
        if self._recent:
            self._recent.played = tree["played"]

    def _player(self, key: Key) -> Player:
        carry = init_carry(self.learner, self._envs)
        return Player(self._programs["act"], self.params, carry, key)

    def _place(self, state: TrainState, carry: Any) -> None:
        """Send state and carry to the devices."""
        self.state = place_state(state, self.devices)
        self._carry = place_shares(shares(carry, self.devices), self.devices)


def training_devices(config: Config) -> list[jax.Device]:
    """The devices of all hosts that ``devices`` of a run selects; ConfigError if there are fewer.

    0 means all accelerators. On a CPU the operations of a small model are too short to be divided
    over cores, so two virtual devices share its batch; a model whose batch is computed in parts
    (:func:`batch_parts`) uses all cores within each operation.
    """
    count, batch = config.devices, config.replay.batch // jax.process_count()
    if count == 0 and target().platform == "cpu":
        whole = batch_parts(config, batch) == 1 and batch % CPU_DEVICES == 0
        count = min(CPU_DEVICES if whole else 1, len(jax.local_devices()))
    count = len(local_devices(count))
    if jax.process_count() == 1:
        return local_devices(count)
    hosts = [jax.local_devices(i) for i in range(jax.process_count())]
    return [device for devices in hosts for device in devices[:count]]


def mine(devices: list[jax.Device]) -> list[jax.Device]:
    """Those of ``devices`` that belong to this host; all where there is one host."""
    if jax.process_count() == 1:
        return devices
    return [device for device in devices if device.process_index == jax.process_index()]


def local_devices(count: int) -> list[jax.Device]:
    """The first ``count`` local devices; 0 means all. ConfigError if there are fewer."""
    devices = jax.local_devices()
    if count > len(devices):
        raise ConfigError(f"--devices {count}: this machine has {len(devices)} JAX device(s)")
    return devices[: count or len(devices)]


def compile_train_step(learner: Learner, devices: list[jax.Device]) -> Callable:
    """The update as one program over ``devices``, its state donated.

    ``step(state, batch, keys) -> (state, carry, metrics)``; batch, keys and carry have the leading
    axes of :func:`split`.
    """
    if len(devices) == 1:
        return jax.jit(partial(train_step, learner=learner), donate_argnums=0)
    step = partial(train_step, learner=learner, axis_name=AXIS)
    if jax.process_count() > 1:  # pmap's arrays of several hosts do not outlive a transfer guard
        return _over_hosts(step, devices)
    return jax.pmap(
        step,
        axis_name=AXIS,
        in_axes=(None, 0, 0),
        out_axes=(None, 0, None),
        devices=devices,
        donate_argnums=0,
    )


def _over_hosts(step: Callable, devices: list[jax.Device]) -> Callable:
    """What pmap makes of ``step`` on one host, over the devices of all hosts."""

    def shard(state: TrainState, batch: Batch, keys: Key) -> tuple:
        own = jax.tree.map(lambda x: x[0], (batch, keys))
        state, carry, metrics = step(state, *own)
        return state, jax.tree.map(lambda x: x[None], carry), metrics

    same, data = jax.sharding.PartitionSpec(), jax.sharding.PartitionSpec(AXIS)
    specs = {"in_specs": (same, data, data), "out_specs": (same, data, same)}
    mesh = sharding(devices).mesh
    where = {
        name: tuple(jax.sharding.NamedSharding(mesh, p) for p in x) for name, x in specs.items()
    }
    return jax.jit(
        jax.shard_map(shard, mesh=mesh, **specs, check_vma=False),
        in_shardings=where["in_specs"],
        out_shardings=where["out_specs"],
        donate_argnums=0,
    )


def compile_imagination(learner: Learner, devices: list[jax.Device]) -> Callable:
    """Imagination alone as one program over ``devices``; ``behavior`` sets H and S.

    ``imagine(params, starts, keys) -> Trajectory`` `[B, H + 1, n]` from the starts of B sequences
    and one key for each, with the leading axes of :func:`split`. Rollouts are independent, so no
    collectives are needed.
    """

    def dream(params: dict[str, Params], starts: Starts, keys: Key) -> Trajectory:
        return rollout(params, starts, keys, learner=learner)

    if len(devices) == 1:
        return jax.jit(dream)
    return jax.pmap(dream, axis_name=AXIS, in_axes=(None, 0, 0), devices=devices)


def on_each(
    devices: list[jax.Device], function: Callable, donate: int | tuple[int, ...]
) -> Callable:
    """``function`` on every device, with its own part `[devices, ...]` of all arguments."""
    return jax.pmap(function, axis_name=AXIS, devices=devices, donate_argnums=donate)


def split(tree: Any, num_devices: int) -> Any:
    """`[B, ...]` -> `[devices, B / devices, ...]`; unchanged for one device.

    Raises ConfigError where the devices do not divide B.
    """
    if num_devices == 1:
        return tree

    def one(x: Any) -> Any:
        if x.shape[0] % num_devices:
            raise ConfigError(
                f"a batch of {x.shape[0]} does not divide over {num_devices} devices: "
                f"choose a multiple of {num_devices}, or set --devices"
            )
        return x.reshape(num_devices, x.shape[0] // num_devices, *x.shape[1:])

    return jax.tree.map(one, tree)


def shares(tree: Any, devices: list[jax.Device]) -> Any:
    """This host's part `[b, ...]` of a batch as `[own devices, b / own devices, ...]`.

    Unchanged where one device is all there is.
    """
    own = len(mine(devices))
    if own == 1 < len(devices):
        return jax.tree.map(lambda x: x[None], tree)
    return split(tree, own)


def join(tree: Any, num_devices: int) -> Any:
    """The inverse of :func:`split`, so that checkpoints do not depend on the device count."""
    if num_devices == 1:
        return tree
    return jax.tree.map(lambda x: x.reshape(x.shape[0] * x.shape[1], *x.shape[2:]), tree)


def put_batch(batch: Any, devices: list[jax.Device]) -> Any:
    """Start copying host arrays `[B, ...]` to the devices of the next update; returns at once."""
    if len(devices) == 1:
        return jax.device_put(batch, devices[0])
    return place_shares(shares(batch, devices), devices)


def place_shares(tree: Any, devices: list[jax.Device]) -> Any:
    """Send the arrays of :func:`shares` to this host's devices; unchanged for one device."""
    if len(devices) == 1:
        return tree
    return _as_global(jax.device_put(tree, sharding(mine(devices), AXIS)), devices, AXIS)


def place_state(state: Any, devices: list[jax.Device]) -> Any:
    """Replicate a state on all devices before the first update; unchanged for one device.

    pmap would do so too, but by an implicit transfer, which the hot loop's guard refuses.
    """
    if len(devices) == 1:
        return state
    return _as_global(jax.device_put(state, sharding(mine(devices))), devices)


def _as_global(tree: Any, devices: list[jax.Device], *axes: str) -> Any:
    """Arrays on this host's devices as its part of arrays on the devices of all hosts."""
    if jax.process_count() == 1:
        return tree
    hosts = len(devices) // len(mine(devices)) if axes else 1

    def one(x: Array) -> Array:
        shape = (x.shape[0] * hosts, *x.shape[1:]) if axes else x.shape
        parts = [shard.data for shard in x.addressable_shards]
        where = sharding(devices, *axes)
        return jax.make_array_from_single_device_arrays(shape, where, parts)

    return jax.tree.map(one, tree)


def _own_shares(x: Array) -> np.ndarray:
    """This host's sequences `[b, ...]` of an array `[devices, B / devices, ...]`."""
    shards = sorted(x.addressable_shards, key=lambda shard: shard.index[0].start)
    return np.concatenate([jax.device_get(shard.data)[0] for shard in shards])


def gather(tree: Any) -> Any:
    """Arrays `[n, ...]` of every host -> `[hosts * n, ...]` on all of them, bit for bit.

    All hosts call it together. Host arrays of any type, also of one that JAX does not compute with.
    """
    leaves, structure = jax.tree.flatten(jax.tree.map(np.asarray, jax.device_get(tree)))
    own = [np.ascontiguousarray(x).reshape(-1).view(np.uint8) for x in leaves]
    found = multihost_utils.process_allgather(np.concatenate(own))
    ends = np.cumsum([x.size for x in own])
    parts = np.split(found, ends[:-1], axis=1)
    joined = [
        np.ascontiguousarray(part).view(x.dtype).reshape(-1, *x.shape[1:])
        for part, x in zip(parts, leaves, strict=True)
    ]
    return jax.tree.unflatten(structure, joined)


def memory_needed(program: Any) -> tuple[int, int]:
    """Bytes per device of a compiled program: temporaries, and everything together.

    Donated arguments count once. Zeros where the compiler reports nothing.
    """
    report = program.memory_analysis()
    arguments, outputs, shared, temporaries = (
        int(getattr(report, f"{name}_size_in_bytes", 0) or 0)
        for name in ("argument", "output", "alias", "temp")
    )
    return temporaries, arguments + outputs - shared + temporaries


def picture_shape(config: Config) -> tuple[int, int, int]:
    """Sequences of a run's picture, frames of each, and frames read before the dream starts."""
    length = min(config.replay.length, PICTURE_FRAMES)
    return min(PICTURE_SEQUENCES, config.replay.batch), length, max(1, length // 4)


def abstract_batch(learner: Learner, spec: EnvSpec, batch: int, length: int) -> Batch:
    """Shapes of a batch with its carry."""

    def of(kind: Any, *more: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((batch, length, *more), kind)

    flags = dict.fromkeys(("is_first", "is_last", "is_terminal", "reset"), of(jnp.bool_))
    carry = jax.eval_shape(partial(init_carry, learner, batch))
    image, reward = of(jnp.uint8, *spec.image_shape), of(jnp.float32)
    action = of(spec.actions.dtype, *spec.actions.shape)
    return Batch(image, action, reward, **flags, carry=carry)


def blank(tree: Any) -> Any:
    """Host arrays of zeros with the shapes of ``tree``."""
    return jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), tree)


def put_index(number: int) -> Array:
    """A counter on the device, by an explicit transfer."""
    return jax.device_put(np.uint32(number))


def _update_keys(base: Key, index: Array, *, config: Config, devices: list[jax.Device]) -> Key:
    """This host's part of :func:`_all_keys`."""
    keys = _all_keys(base, index, config=config, devices=len(devices))
    if jax.process_count() == 1:
        return keys
    own = mine(devices)
    first = devices.index(own[0])
    return keys[first : first + len(own)]


def _all_keys(base: Key, index: Array, *, config: Config, devices: int) -> Key:
    """One key per sequence of an update, as the train step expects them."""
    return split(jax.random.split(jax.random.fold_in(base, index), config.replay.batch), devices)


def _picture(params: Any, batch: Batch, base: Key, index: Array, **options: Any) -> OpenLoop:
    """:func:`open_loop` with keys made from the update number."""
    keys = jax.random.split(jax.random.fold_in(base, index), batch.action.shape[0])
    return open_loop(params, batch, keys, **options)


def sharding(devices: list[jax.Device], *axes: str) -> jax.sharding.NamedSharding:
    """Arrays divided over ``devices`` along their first axis; without ``axes``, copied to all."""
    mesh = jax.sharding.Mesh(np.array(devices), (AXIS,))
    return jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*axes))
