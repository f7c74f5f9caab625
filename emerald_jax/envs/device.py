"""Environments written in JAX: one program on the device steps all of them."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from emerald_jax.envs.base import EnvError, EnvSpec, Outcome, VectorEnv, VectorStep
from emerald_jax.types import key_of

#: Prefixes of names in a saved state.
_RECORD, _DEVICE = "record.", "device."


class Carry(NamedTuple):
    """What the device keeps between two vector steps.

    Attributes:
        env: the game's state, every leaf with a leading `[E]`.
        key: `[E]` random keys.
        steps: `[E]` int32, agent steps of the running episode.
        done: `[E]` bool, the newest record ended its episode.
    """

    env: Any
    key: jax.Array
    steps: jax.Array
    done: jax.Array


class DeviceVectorEnv(VectorEnv):
    """E environments of one game on the device; see :class:`VectorEnv`.

    A game is a subclass that implements the start (:meth:`_new`) and the step (:meth:`_next`) of
    one environment. Seeds: environment i draws from ``fold_in(key(seed), i)``, independent of E.

    Where a new world is cheap, every environment makes one at every step and keeps it if its
    episode is over: one program, no decision on the host. With ``costly_worlds``, worlds are made
    only for the environments whose episodes are over, up to :attr:`_chunk` at a time.
    """

    costly_worlds = False

    def __init__(self, spec: EnvSpec, count: int, seed: int, generation: int = 0):
        """Programs compile on the first reset and the first step.

        ``generation`` counts the resumes of the run; without effect on a restored state.
        """
        super().__init__(spec, count)
        key = key_of(seed)
        if generation:
            key = jax.random.fold_in(key, generation)
        self._keys = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(count))
        self._dtypes = jax.eval_shape(self._settled_state, self._keys[0])
        self._chunk = max(count // 16, 1)
        self._begin_all = jax.jit(jax.vmap(self._begin_one))
        fused = self._step_one if self.costly_worlds else self._step_or_begin_one
        self._advance = jax.jit(jax.vmap(fused))
        self._begin_some = jax.jit(lambda keys, some: jax.vmap(self._begin_one)(keys[some]))
        self._place = jax.jit(_place)
        self._carry: Carry | None = None
        self._outcome: Outcome | None = None

    def _new(self, key: jax.Array) -> tuple[jax.Array, Any]:
        """Image and state of a new episode."""
        raise NotImplementedError

    def _next(
        self, key: jax.Array, state: Any, action: jax.Array, steps: jax.Array
    ) -> tuple[Any, Outcome]:
        """State and outcome of one action; ``steps`` is the episode's step number, from 1."""
        raise NotImplementedError

    def _extra(self, values: np.ndarray) -> dict[str, Any]:
        """:attr:`Episode.extra` from ``Outcome.extra`` of an episode's last step."""
        raise NotImplementedError

    def _begin(self) -> np.ndarray:
        keys = self._keys if self._carry is None else self._carry.key
        if not self.costly_worlds:
            self._carry, image = self._begin_all(keys)
        else:  # in chunks: making worlds takes long to compile, so compile a single shape
            chunks = self._chunks(np.arange(self.num_envs))
            parts = [self._begin_some(keys, some) for some in chunks]
            self._carry, image = jax.tree.map(
                lambda *part: jnp.concatenate(part)[: self.num_envs], *parts
            )
        return jax.device_get(image)

    def _send(self, actions: np.ndarray) -> None:
        """Start a vector step; returns while the device is still computing."""
        carry, outcome = self._advance(self._carry, jax.device_put(actions))
        if self.costly_worlds:
            for some in self._chunks(np.flatnonzero(self.newest.is_last)):
                begun, image = self._begin_some(carry.key, some)
                carry, outcome = self._place(carry, outcome, begun, image, some)
        self._carry, self._outcome = carry, outcome

    def _receive(self) -> Outcome:
        outcome, self._outcome = jax.device_get(self._outcome), None
        if outcome.extra is None:
            return outcome
        ended = np.flatnonzero(outcome.terminated | outcome.truncated).tolist()
        return outcome._replace(extra={env: self._extra(outcome.extra[env]) for env in ended})

    def close(self) -> None:
        """See :class:`VectorEnv`."""
        self._carry = self._outcome = self._pending = None

    def get_state(self) -> dict[str, np.ndarray]:
        """The complete state as plain arrays; continuing from it is exact to the bit.

        EnvError: before the first reset, or while a step is pending.
        """
        if self.newest is None:
            raise EnvError("nothing to save before reset(): call reset() first")
        if self._pending is not None:
            raise EnvError("get_state while a step is pending: call step_wait first")
        sums = {"score": self.score, "length": self.length}
        values = {name: getattr(self.newest, name) for name in VectorStep._fields[:-1]} | sums
        state = {_RECORD + name: value.copy() for name, value in values.items()}
        for name, leaf in _named_leaves(self._carry):
            state[name] = np.array(jax.device_get(_plain(leaf)))
        return state

    def set_state(self, state: Mapping[str, np.ndarray]) -> VectorStep:
        """Continue from :meth:`get_state`; returns the newest record again.

        EnvError: the state is of another game or another number of environments.
        """
        template, _ = jax.eval_shape(jax.vmap(self._begin_one), self._keys)
        leaves = []
        for name, leaf in _named_leaves(template):
            plain = jax.eval_shape(_plain, leaf)
            value = state.get(name)
            if value is None or value.shape != plain.shape or value.dtype != plain.dtype:
                raise EnvError(f"this state is not of {self.spec.name}: {name} does not match")
            value = jax.device_put(np.asarray(value))
            leaves.append(jax.random.wrap_key_data(value) if _is_key(leaf) else value)
        values = {}
        for name in (*VectorStep._fields[:-1], "score", "length"):
            value = state.get(_RECORD + name)
            if value is None or len(value) != self.num_envs:
                what = f"{_RECORD}{name} does not match {self.num_envs} environments"
                raise EnvError(f"this state is not of {self.spec.name}: {what}")
            values[name] = np.array(value)
        self.score, self.length = values.pop("score"), values.pop("length")
        self.newest = VectorStep(**values)
        self._carry = jax.tree.unflatten(jax.tree.structure(template), leaves)
        self._pending = self._outcome = None
        return self.newest

    def _chunks(self, envs: np.ndarray) -> Iterator[jax.Array]:
        """Indices in chunks of one size; the last chunk is filled up with its last index."""
        for start in range(0, len(envs), self._chunk):
            some = np.minimum(np.arange(start, start + self._chunk), len(envs) - 1)
            yield jax.device_put(envs[some])

    def _settled_state(self, key: jax.Array) -> Any:
        """A game's state in types that serve a new and a later one.

        A new state may hold Python numbers where a later one holds arrays; different types would
        retrace the program, or ``select`` would refuse them.
        """

        def common(reset: Any, stepped: Any) -> jax.Array:
            if _is_key(reset):
                return reset
            both = jnp.promote_types(jnp.result_type(reset), stepped.dtype)
            return jnp.asarray(reset).astype(both)  # not weakly typed

        _, state = self._new(key)
        stepped, _ = self._next(key, state, jnp.int32(0), jnp.int32(1))
        return jax.tree.map(common, state, stepped)

    def _settle(self, state: Any) -> Any:
        """``state`` in the types of :meth:`_settled_state`."""
        return jax.tree.map(
            lambda leaf, like: leaf if _is_key(like) else jnp.asarray(leaf).astype(like.dtype),
            state,
            self._dtypes,
        )

    def _begin_one(self, key: jax.Array) -> tuple[Carry, jax.Array]:
        """First state and image of one environment's next episode."""
        next_key, reset_key = jax.random.split(key)
        image, state = self._new(reset_key)
        return Carry(self._settle(state), next_key, jnp.int32(0), jnp.bool_(False)), image

    def _step_one(
        self, carry: Carry, action: jax.Array, keys: Iterable[jax.Array] | None = None
    ) -> tuple[Carry, Outcome]:
        """One step of one environment in the middle of its episode; keys for later and for now."""
        key, step_key = jax.random.split(carry.key) if keys is None else keys
        steps = carry.steps + 1
        state, outcome = self._next(step_key, carry.env, action, steps)
        done = outcome.terminated | outcome.truncated
        return Carry(self._settle(state), key, steps, done), outcome

    def _step_or_begin_one(self, carry: Carry, action: jax.Array) -> tuple[Carry, Outcome]:
        """One record of one environment: a step, or the first frame after a last one."""
        key, step_key, begin_key = jax.random.split(carry.key, 3)
        begun, image = self._begin_one(begin_key)
        stepped, outcome = self._step_one(carry, action, (key, step_key))
        false = jnp.bool_(False)
        first = Outcome(image, jnp.float32(0), false, false, outcome.extra)
        return jax.tree.map(
            lambda new, other: jax.lax.select(carry.done, new, other),
            (begun, first),
            (stepped, outcome),
        )


def _place(
    carry: Carry, outcome: Outcome, begun: Carry, image: jax.Array, some: jax.Array
) -> tuple[Carry, Outcome]:
    """Write begun episodes at the indices ``some`` (which may repeat) where others are over."""
    carry = jax.tree.map(lambda old, new: old.at[some].set(new), carry, begun)
    return carry, outcome._replace(
        image=outcome.image.at[some].set(image),
        terminated=outcome.terminated.at[some].set(False),
        truncated=outcome.truncated.at[some].set(False),
    )


def _is_key(leaf: Any) -> bool:
    return hasattr(leaf, "dtype") and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _plain(leaf: jax.Array) -> jax.Array:
    """``leaf`` without the key type, which numpy does not know."""
    return jax.random.key_data(leaf) if _is_key(leaf) else leaf


def _named_leaves(carry: Carry) -> list[tuple[str, Any]]:
    """Leaves of a carry, and their names in a saved state."""
    name = functools.partial(jax.tree_util.keystr, simple=True, separator=".")
    paths = jax.tree_util.tree_leaves_with_path(carry)
    return [(_DEVICE + name(path), leaf) for path, leaf in paths]
