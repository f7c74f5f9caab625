"""Several seeds of one configuration, computed together.

Every seed is a run of its own: its :class:`~emerald_jax.training.loop.Loop` has environments, a
replay, a log and checkpoints, as if it were trained alone, and works in a thread. Only what the
devices compute is shared. Seeds are spread over the devices by pmap and, on an accelerator, over
one device by vmap, so that one program updates all of them and one acts for all of them. On a CPU a
program has one seed for each device, and the seeds form rows: with vmap, an update of four seeds of
the quickstart takes 1.24 times the CPU time of four updates, since convolutions with several
kernels are slow there (1.77 times with convolutions as matrix products; own measurement).

A loop that needs actions or an update waits until the others of its row wait too; then a program
computes what they asked for. They need not be at the same step: the state of a seed that asked for
nothing, or has ended, does not change.

States of a row are arrays `[devices, seeds of a device, ...]`. What belongs to one seed, a batch or
the memory of its environments, is an array `[1, ...]` on the seed's device, and is stacked inside
the program. A seed's place among those of its device is called its seat.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from emerald_jax.agent import Acted, Observation, Player, abstract_acting, act_numbered
from emerald_jax.agent.dream import OpenLoop
from emerald_jax.agent.state import (
    Learner,
    TrainState,
    build_learner,
    fresh_state,
    init_carry,
    init_state,
)
from emerald_jax.config import Config
from emerald_jax.envs.base import EnvSpec, VectorStep
from emerald_jax.process import StopSignals
from emerald_jax.run.machine import compile_program
from emerald_jax.target import target
from emerald_jax.training.devices import (
    AXIS,
    OFTEN,
    TrainingAgent,
    abstract_batch,
    blank,
    memory_needed,
    on_each,
    picture_shape,
    put_index,
    sharding,
)
from emerald_jax.training.played import Recent, with_played
from emerald_jax.training.update import train_step
from emerald_jax.types import Array, Batch, Carry, Key, Params, key_of

#: What a loop may ask for, in the order in which it is served. Evaluations come last: other seeds
#: would wait for whole episodes.
Wish = Literal["act", "train", "evaluate"]
_ORDER = ("act", "train", "evaluate")


#: JAX lists the shards of an array when one is first asked for; while a thread makes this list,
#: another would see half of it.
_SHARDS = threading.Lock()


class Entry:
    """One seed's entry of an array of a row; copied to the host when it is read."""

    def __init__(self, array: Array, device: int, seat: int) -> None:
        self._array, self._device, self._seat = array, device, seat

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        with _SHARDS:
            shard = self._array.addressable_data(self._device)
        return np.asarray(jax.device_get(shard)[0, self._seat], dtype)


class Group:
    """What the agents of several seeds share: networks, programs, and the states on the devices.

    Attributes:
        learner: networks, optimisers and settings.
        spec: the environment's spec.
        devices: devices that the seeds are spread over: as many as divide their number.
        agents: a :class:`SeedAgent` for every seed, for the loop of its run.
        programs: compiled programs by name; empty before :meth:`compile`.
        seconds: wall time of tracing and compiling.
        temporaries: bytes that an update of a row needs in addition to inputs and outputs.
        memory: bytes that it needs in all, per device.
        first: state and carry of every seed until those of its row are on the devices.
        states: state and carry of every row `[devices, seeds of a device]`; None until then.
    """

    def __init__(
        self,
        configs: list[Config],
        spec: EnvSpec,
        devices: list[jax.Device],
        at_once: int | None = None,
    ) -> None:
        """Build the networks once; ``configs`` differ in seed and run directory only.

        ``at_once``: seeds of a device in one program, a divisor of their number; None means one on
        a CPU, and all on an accelerator.
        """
        count = len(configs)
        used = max(n for n in range(1, len(devices) + 1) if count % n == 0)
        self.devices = devices[:used]
        self._each = at_once or (1 if target().platform == "cpu" else count // used)
        self.learner, self.spec = build_learner(configs[0], spec.actions), spec
        self.programs: dict[str, Any] = {}
        self.seconds, self.temporaries, self.memory = 0.0, 0, 0
        self.first: list[tuple[TrainState, Carry] | None] = [None] * count
        size = used * self._each
        self._rows = [range(low, low + size) for low in range(0, count, size)]
        self.states: list[tuple[TrainState, Carry] | None] = [None] * len(self._rows)
        self._turn = threading.Condition()
        self._running = set(range(count))
        #: What waiting loops have asked for, and answers that they have not fetched yet, by seed.
        self._asked: dict[int, tuple[Wish, Any]] = {}
        self._answers: dict[int, Any] = {}
        #: What fills the place of a seed that asks for nothing, by seed.
        self._blank: dict[Wish, list[Any]] = {}
        self.agents = [SeedAgent(self, i, config.seed) for i, config in enumerate(configs)]

    def compile(self, signals: StopSignals) -> None:
        """Compile all programs, several at once; stops where a signal has arrived."""
        began, found = time.monotonic(), {}
        with ThreadPoolExecutor() as pool:
            for name, trace in self._traces().items():
                if signals.name:
                    return
                found[name] = pool.submit(compile_program, trace(), often=name in OFTEN)
        self.programs = {name: future.result() for name, future in found.items()}
        self.temporaries, self.memory = memory_needed(self.programs["train"])
        keys = jnp.stack([agent.update_key for agent in self.agents])
        self._update_keys = [self._spread(keys[row.start : row.stop]) for row in self._rows]
        self._blank["train"] = [
            (0, agent.put(with_played(agent.blank_batch(), self.learner))) for agent in self.agents
        ]
        self._blank["act"] = [agent.blank_acting() for agent in self.agents]
        self.seconds = time.monotonic() - began

    def seat(self, seed: int) -> tuple[int, int, int]:
        """A seed's row, its device as an index, and its place among the row's seeds there."""
        row, rest = divmod(seed, len(self.devices) * self._each)
        return row, *divmod(rest, self._each)

    def ask(self, seed: int, wish: Wish, what: Any) -> Any:
        """What :meth:`_act` or :meth:`_train` answers, once the other loops of the row wait too."""
        row = self.seat(seed)[0]
        with self._turn:
            self._asked[seed] = wish, what
            self._serve(row)
            self._turn.wait_for(lambda: seed in self._answers)
            answer = self._answers.pop(seed)
        if isinstance(answer, BaseException):
            raise answer
        return answer

    def leave(self, seed: int) -> None:
        """The loop of this seed has ended: nobody waits for it any more."""
        with self._turn:
            self._running.discard(seed)
            self._serve(self.seat(seed)[0])

    def _serve(self, row: int) -> None:
        """Once all loops of a row wait, serve those with the first wish of :data:`_ORDER`."""
        waiting = [seed for seed in self._rows[row] if seed in self._running]
        if not waiting or any(seed not in self._asked for seed in waiting):
            return
        wish = min((self._asked[seed][0] for seed in waiting), key=_ORDER.index)
        asked = [seed for seed in waiting if self._asked[seed][0] == wish]
        wanted = {seed: self._asked.pop(seed)[1] for seed in asked}
        try:
            if self.states[row] is None:
                self._place(row)
            answers = (self._train if wish == "train" else self._act)(row, wanted)
        except Exception as error:  # raised in the threads of the loops
            answers = dict.fromkeys(asked, error)
        self._answers |= answers
        self._turn.notify_all()

    def _place(self, row: int) -> None:
        """Send the first states of a row's seeds to the devices."""
        seeds = self._rows[row]
        known = next(self.first[seed] for seed in seeds if self.first[seed])
        # A seed that failed before it had a state keeps its place.
        first = jax.device_get([self.first[seed] or known for seed in seeds])
        self.states[row] = jax.tree.map(lambda *x: self._spread(np.stack(x)), *first)
        for seed in seeds:
            self.first[seed] = None

    def _train(self, row: int, asked: dict[int, Any]) -> dict[int, dict[str, Entry]]:
        """Start the updates ``asked`` for, each a number and a batch; their metrics."""
        (state, carry), seeds = self.states[row], self._rows[row]
        wanted = [asked.get(seed, self._blank["train"][seed]) for seed in seeds]
        numbers, batches = zip(*wanted, strict=True)
        active = self._spread(np.array([seed in asked for seed in seeds]))
        counts = self._update_keys[row], self._spread(np.array(numbers, np.uint32)), active
        *after, metrics = self.programs["train"](state, carry, *counts, self._seats(batches))
        self.states[row] = tuple(after)
        return {
            seed: {name: Entry(x, *self.seat(seed)[1:]) for name, x in metrics.items()}
            for seed in asked
        }

    def _act(self, row: int, asked: dict[int, Any]) -> dict[int, Acted]:
        """Act in the environments of the seeds that asked; each gets arrays `[1, ...]`."""
        (state, _), fill = self.states[row], self._blank["act"]
        wanted = [asked.get(seed, fill[seed]) for seed in self._rows[row]]
        memories, seen = zip(*wanted, strict=True)
        parts = self._seats(memories), self._seats(seen)
        acted, answers = self.programs["act"](state.params, *parts), {}
        for seed in self._rows[row]:
            _, device, seat = self.seat(seed)
            own = jax.tree.map(lambda x, device=device: x.addressable_data(device), acted[seat])
            if seed in asked:
                answers[seed] = own
            else:  # its memory was donated
                fill[seed] = own.carry, fill[seed][1]
        return answers

    def _spread(self, x: np.ndarray | Array) -> Array:
        """`[seeds of a row, ...]` -> `[devices, seeds of a device, ...]`, on the devices."""
        x = x.reshape(len(self.devices), self._each, *x.shape[1:])
        return jax.device_put(x, sharding(self.devices, AXIS))

    def _seats(self, own: Sequence[Any]) -> list[Any]:
        """Trees of arrays `[1, ...]`, one for each seed of a row -> by place, `[devices, ...]`."""

        def together(*x: Array) -> Array:
            shape = (len(self.devices), *x[0].shape[1:])
            where = sharding(self.devices, AXIS)
            return jax.make_array_from_single_device_arrays(shape, where, list(x))

        return [jax.tree.map(together, *own[seat :: self._each]) for seat in range(self._each)]

    def _traces(self) -> dict[str, Callable[[], Any]]:
        """Functions that trace the programs, by name; those of one seed are a single run's."""
        learner, spec, each, devices = self.learner, self.spec, self._each, len(self.devices)
        replay = learner.config.replay
        alone = TrainingAgent(learner.config, spec, self.devices[:1])
        key, state = jax.eval_shape(partial(jax.random.key, 0)), alone.shapes()
        carry = jax.eval_shape(partial(init_carry, learner, replay.batch))
        batch = abstract_batch(learner, spec, replay.batch, replay.length)._replace(carry=None)
        batch = with_played(batch, learner)
        number, active = (jax.ShapeDtypeStruct((), kind) for kind in ("uint32", "bool"))
        shared = _leading((state, carry, key, number, active), (devices, each))
        memory, image, step = abstract_acting(learner, spec, learner.config.envs.count)
        own = partial(_leading, sizes=(devices,))
        batches, memories, seen = ([own(x)] * each for x in (batch, memory, (image, key, step)))
        train = on_each(self.devices, partial(_train_all, learner=learner), donate=(0, 1))
        act = on_each(self.devices, partial(_act_all, learner=learner), donate=1)
        programs = alone.programs()
        return {
            "train": partial(train.lower, *shared, batches),
            "act": partial(act.lower, shared[0].params, memories, seen),
            "init": programs["init"],
            "picture": programs["picture"],
        }


class SeedAgent:
    """The agent of one seed of a group: all that a loop uses of :class:`TrainingAgent`.

    Attributes:
        learner: networks, optimisers and settings. It is shared: seed and run directory of its
            ``config`` are those of the first run.
        spec: the environment's spec.
        devices: the devices of the group.
        player: :class:`Player` of the training environments.
        update_key: base key of the updates.
    """

    def __init__(self, group: Group, index: int, seed: int) -> None:
        """The agent of ``seed``, the ``index``-th of a group."""
        self._group, self._index = group, index
        self.learner, self.spec, self.devices = group.learner, group.spec, group.devices
        self._device = group.devices[group.seat(index)[1]]
        keys = jax.random.split(key_of(seed), 4)
        self._init_key, self.update_key, self._act_key, self._picture_key = keys
        config = self.learner.config
        real = config.behavior.real_weight
        self._recent = Recent(self.learner, config.envs.count) if real else None

    @property
    def memory(self) -> int:
        """Bytes that an update of all seeds needs in all, per device."""
        return self._group.memory

    @property
    def state(self) -> TrainState:
        """The seed's state, as entries of the group's; valid until its next update."""
        return self._mine()[0]

    def shapes(self) -> TrainState:
        """Shapes and types of the state, without computing anything."""
        return jax.eval_shape(partial(init_state, self.learner), self._init_key)

    def programs(self) -> dict[str, Callable[[], Any]]:
        """Nothing is left to compile: see :meth:`Group.compile`."""
        return {}

    def start(self, params: dict[str, Params] | None = None) -> None:
        """Create the seed's state, from ``params`` or from random ones."""
        config = self.learner.config
        state = self._group.programs["init"](self._init_key)
        if params is not None:
            state = fresh_state(self.learner, params)
        self._group.first[self._index] = state, init_carry(self.learner, config.replay.batch)
        self.player = self._player(self._act_key)
        # Made here: inside the hot loop even zeros would be an implicit transfer.
        self._picture_carry = init_carry(self.learner, picture_shape(config)[0])

    def put(self, tree: Any) -> Any:
        """Start copying host arrays `[...]` to the seed's device, as `[1, ...]`."""
        return jax.device_put(jax.tree.map(lambda x: x[None], tree), self._device)

    def blank_batch(self) -> Batch:
        """A host batch of zeros without carry, of the shape that :meth:`put` takes."""
        config = self.learner.config.replay
        batch = abstract_batch(self.learner, self.spec, config.batch, config.length)
        return blank(batch._replace(carry=None))

    def blank_acting(self) -> tuple[Carry, tuple[Observation, Key, Array]]:
        """Memory, and the other arguments of an acting step, of environments that show nothing."""
        memory, image, step = abstract_acting(
            self.learner, self.spec, self.learner.config.envs.count
        )
        memory, image, step = (self.put(blank(x)) for x in (memory, image, step))
        return memory, (image, self.put(self._act_key), step)

    def update(self, batch: Batch, number: int) -> dict[str, Entry]:
        """Start update ``number`` on a batch of :meth:`put` together with the other seeds'."""
        if self._recent:
            batch = batch._replace(played=self.put(self._recent.take()))
        return self._group.ask(self._index, "train", (number, batch))

    def act(self, record: VectorStep, number: int) -> np.ndarray:
        """Actions of vector step ``number`` with the current parameters; see :class:`Player`."""
        self.player.number = number
        return self.player(record)

    def remember(self, record: VectorStep, action: np.ndarray, own: np.ndarray) -> None:
        """After :meth:`act`: these actions were taken, where ``own`` `[E]` the policy's."""
        if self._recent:
            self._recent.add(record, self.player, action, own)

    def evaluator(self, updates: int) -> Player:
        """A player of other episodes in the same environments, with the current parameters."""
        key = jax.random.fold_in(self._act_key, 2**31 + updates)
        return self._player(key, wish="evaluate")

    def picture(self, batch: Batch, number: int) -> OpenLoop:
        """Open-loop prediction of a few host sequences, as host arrays; see `picture_shape`."""
        params = jax.device_put(jax.device_get(self.state.params))
        batch = jax.device_put(batch)._replace(carry=self._picture_carry)
        arguments = (params, batch, self._picture_key, put_index(number))
        return jax.device_get(self._group.programs["picture"](*arguments))

    def tree(self) -> dict[str, Any]:
        """Every array of the seed that decides the future, as a run of its own has them."""
        state, carry = jax.device_get(self._mine())
        acting = jax.tree.map(lambda x: x[0], self.player.carry)
        played = {"played": self._recent.played} if self._recent else {}
        return {"state": state, "carry": carry, "acting": acting, **played}

    def restore(self, tree: dict[str, Any]) -> None:
        """Continue from the arrays of :meth:`tree`; only before the first update."""
        self._group.first[self._index] = tree["state"], tree["carry"]
        self.player.carry = self.put(tree["acting"])
        if self._recent:
            self._recent.played = tree["played"]

    def leave(self) -> None:
        """The seed's loop has ended: the others no longer wait for it."""
        self._group.leave(self._index)

    def _mine(self) -> tuple[TrainState, Carry]:
        """State and carry of the seed."""
        row, *place = self._group.seat(self._index)
        states = self._group.states[row]
        if states is None:
            return self._group.first[self._index]
        return jax.tree.map(lambda x: Entry(x, *place), states)

    def _player(self, key: Key, wish: Wish = "act") -> Player:
        memory = self.put(init_carry(self.learner, self.learner.config.envs.count))

        def act(params: None, memory: Carry, seen: Observation, key: Key, step: Array) -> Acted:
            del params  # the group has them
            acted = self._group.ask(self._index, wish, (memory, (seen, key, step)))
            action, finite = jax.device_get((acted.action, acted.finite))
            return acted._replace(action=action[0], finite=finite[0])

        return Player(act, {}, memory, self.put(key), place=self.put)


def _train_all(
    state: TrainState,
    carry: Carry,
    keys: Key,
    numbers: Array,
    active: Array,
    batches: list[Batch],
    *,
    learner: Learner,
) -> tuple[TrainState, Carry, dict[str, Array]]:
    """The updates ``numbers`` `[n]` of a device's n seeds; only those of ``active`` `[n]` count.

    ``state``, ``carry`` and base ``keys`` are `[n, ...]`; ``batches`` n batches `[B, L]`. See
    :func:`train_step`.
    """

    def one(
        state: TrainState, carry: Carry, base: Key, number: Array, active: Array, batch: Batch
    ) -> tuple[TrainState, Carry, dict[str, Array]]:
        keys = jax.random.split(jax.random.fold_in(base, number), batch.action.shape[0])
        *after, metrics = train_step(state, batch._replace(carry=carry), keys, learner=learner)
        kept = jax.tree.map(lambda x, old: jnp.where(active, x, old), tuple(after), (state, carry))
        return *kept, metrics

    return _mapped(one)(state, carry, keys, numbers, active, _stacked(batches))


def _act_all(
    params: Params, memories: list[Carry], seen: list[tuple], *, learner: Learner
) -> list[Acted]:
    """One acting step in the environments of a device's n seeds.

    ``params`` are `[n, ...]`; ``memories`` and ``seen`` are lists of n: see :func:`act_numbered`.
    """
    names = ("world_model", "actor")
    params = {name: params[name] for name in names}
    act = partial(act_numbered, learner=learner)
    acted = _mapped(lambda params, memory, seen: act(params, memory, *seen))(
        params, _stacked(memories), _stacked(seen)
    )
    return [jax.tree.map(lambda x, i=i: x[i], acted) for i in range(len(memories))]


def _mapped(one: Callable) -> Callable:
    """``vmap``, but one seed is computed as it is alone, so that its results are the same."""

    def mapped(*arguments: Any) -> Any:
        if jax.tree.leaves(arguments)[0].shape[0] > 1:
            return jax.vmap(one)(*arguments)
        return jax.tree.map(lambda x: x[None], one(*jax.tree.map(lambda x: x[0], arguments)))

    return mapped


def _stacked(trees: list[Any]) -> Any:
    return jax.tree.map(lambda *x: jnp.stack(x), *trees)


def _leading(tree: Any, sizes: tuple[int, ...]) -> Any:
    """Shapes with more leading axes."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct((*sizes, *x.shape), x.dtype), tree)
