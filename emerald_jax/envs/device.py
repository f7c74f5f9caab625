"""Environments written in JAX: all of them in one program on the device, per vector step."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from emerald_jax.envs.base import EnvError, EnvSpec, EpisodeTracker, VectorStep

_PREFIX = "device."


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


class Outcome(NamedTuple):
    """What the host needs of a vector step; shapes as in :class:`VectorStep`.

    Attributes:
        image: picture of the state.
        reward: of the step.
        terminated: the world ended.
        truncated: a limit cut the episode.
        facts: `[E, …]` what an episode's record tells besides, or None.
    """

    image: jax.Array
    reward: jax.Array
    terminated: jax.Array
    truncated: jax.Array
    facts: jax.Array | None = None


class DeviceVectorEnv:
    """E environments of one game on the device; see :class:`VectorEnv`.

    A game is a subclass that says how one environment begins (:meth:`_new`) and goes on
    (:meth:`_next`). Seeds: environment i draws from ``fold_in(key(seed), i)``, so it does not
    depend on E.

    Where a new world costs little, every environment makes one at every step and keeps it where
    its episode is over: one program, no decision on the host. Where it is ``costly_worlds``, worlds
    are made only for the environments whose episodes are over, up to :attr:`_chunk` at a time.
    """

    #: Nothing is supervised: the device computes all environments in one program.
    faults = 0
    costly_worlds = False

    def __init__(self, spec: EnvSpec, count: int, seed: int):
        """Programs compile on the first reset and the first step.

        Args:
            spec: of each environment.
            count: environments E.
            seed: of all that is random in them.
        """
        self.spec = spec
        self.num_envs = count
        self._tracker = EpisodeTracker(count, spec.num_actions)
        self._keys = jax.vmap(jax.random.fold_in, (None, 0))(
            jax.random.key(seed), jnp.arange(count)
        )
        self._dtypes = jax.eval_shape(self._settled_state, self._keys[0])
        self._chunk = max(count // 16, 1)
        self._begin = jax.jit(jax.vmap(self._begin_one))
        fused = self._step_one if self.costly_worlds else self._step_or_begin_one
        self._advance = jax.jit(jax.vmap(fused))
        self._begin_some = jax.jit(lambda keys, some: jax.vmap(self._begin_one)(keys[some]))
        self._place = jax.jit(_place)
        self._carry: Carry | None = None
        self._pending: tuple[np.ndarray, Outcome] | None = None

    def _new(self, key: jax.Array) -> tuple[jax.Array, Any]:
        """Image and state of a new episode."""
        raise NotImplementedError

    def _next(
        self, key: jax.Array, state: Any, action: jax.Array, steps: jax.Array
    ) -> tuple[Any, Outcome]:
        """State and outcome of one action, the episode's step number ``steps`` from 1."""
        raise NotImplementedError

    def _extra(self, facts: np.ndarray) -> dict[str, Any]:
        """What the record of an episode with these last facts carries besides."""
        raise NotImplementedError

    def reset(self) -> VectorStep:
        """See :class:`VectorEnv`."""
        self._pending = None
        keys = self._keys if self._carry is None else self._carry.key
        self._carry, image = self._begin_all(keys)
        return self._tracker.first(jax.device_get(image))

    def step_async(self, actions: np.ndarray) -> None:
        """See :class:`VectorEnv`; returns while the device is still computing."""
        if self._pending is not None:
            raise EnvError("step_async twice in a row: call step_wait in between")
        actions = self._tracker.check(actions)
        self._carry, outcome = self._launch(self._carry, jax.device_put(actions))
        self._pending = (actions, outcome)

    def step_wait(self) -> VectorStep:
        """See :class:`VectorEnv`."""
        if self._pending is None:
            raise EnvError("step_wait without step_async: nothing is under way")
        (actions, outcome), self._pending = self._pending, None
        image, reward, terminated, truncated, facts = jax.device_get(outcome)
        ended = np.flatnonzero(terminated | truncated).tolist()
        extras = {env: self._extra(facts[env]) for env in ended} if facts is not None else {}
        return self._tracker.step(image, actions, reward, terminated, truncated, extras)

    def step(self, actions: np.ndarray) -> VectorStep:
        """See :class:`VectorEnv`."""
        self.step_async(actions)
        return self.step_wait()

    def close(self) -> None:
        """See :class:`VectorEnv`."""
        self._carry = self._pending = None

    def get_state(self) -> dict[str, np.ndarray]:
        """See :class:`VectorEnv`; continuing from it is exact to the bit.

        Raises:
            EnvError: before the first reset, or while a step is under way.
        """
        if self._pending is not None:
            raise EnvError("get_state while a step is under way: call step_wait first")
        state = self._tracker.get_state()
        for name, leaf in _named_leaves(self._carry):
            state[name] = np.array(jax.device_get(_plain(leaf)))
        return state

    def set_state(self, state: Mapping[str, np.ndarray]) -> VectorStep:
        """See :class:`VectorEnv`.

        Raises:
            EnvError: when the state is of another game or another number of environments.
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
        record = self._tracker.set_state(state)
        self._carry = jax.tree.unflatten(jax.tree.structure(template), leaves)
        self._pending = None
        return record

    def _launch(self, carry: Carry, actions: jax.Array) -> tuple[Carry, Outcome]:
        """Start a vector step: every environment goes on, or begins where its episode is over."""
        carry, outcome = self._advance(carry, actions)
        if self.costly_worlds:
            for some in self._chunks(np.flatnonzero(self._tracker.newest.is_last)):
                begun, image = self._begin_some(carry.key, some)
                carry, outcome = self._place(carry, outcome, begun, image, some)
        return carry, outcome

    def _begin_all(self, keys: jax.Array) -> tuple[Carry, jax.Array]:
        """First states and images of all environments."""
        if not self.costly_worlds:
            return self._begin(keys)
        # In chunks, because making worlds takes long to compile: one shape serves for ever.
        everyone = self._chunks(np.arange(self.num_envs))
        parts = [self._begin_some(keys, some) for some in everyone]
        return jax.tree.map(lambda *part: jnp.concatenate(part)[: self.num_envs], *parts)

    def _chunks(self, envs: np.ndarray) -> Iterator[jax.Array]:
        """Indices in chunks of one size; the last one is filled up with its last index."""
        for start in range(0, len(envs), self._chunk):
            some = np.minimum(np.arange(start, start + self._chunk), len(envs) - 1)
            yield jax.device_put(envs[some])

    def _settled_state(self, key: jax.Array) -> Any:
        """A game's state with the types that a new one and a later one agree on.

        A new one may hold Python numbers where a later one holds arrays; letting them differ would
        retrace the program, or be refused by ``select``.
        """
        _, state = self._new(key)
        stepped, _ = self._next(key, state, jnp.int32(0), jnp.int32(1))
        return jax.tree.map(_common_type, state, stepped)

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

    def _step_one(self, carry: Carry, action: jax.Array) -> tuple[Carry, Outcome]:
        """One record of one environment whose episode goes on."""
        key, step_key = jax.random.split(carry.key)
        return self._stepped(carry, action, key, step_key)

    def _step_or_begin_one(self, carry: Carry, action: jax.Array) -> tuple[Carry, Outcome]:
        """One record of one environment: a step, or the first frame after a last one."""
        key, step_key, begin_key = jax.random.split(carry.key, 3)
        begun, image = self._begin_one(begin_key)
        stepped, outcome = self._stepped(carry, action, key, step_key)
        none = jnp.bool_(False)
        first = Outcome(image, jnp.float32(0), none, none, outcome.facts)
        return jax.tree.map(
            lambda new, other: jax.lax.select(carry.done, new, other),
            (begun, first),
            (stepped, outcome),
        )

    def _stepped(
        self, carry: Carry, action: jax.Array, key: jax.Array, step_key: jax.Array
    ) -> tuple[Carry, Outcome]:
        """One record of one environment whose episode goes on, with keys from outside."""
        steps = carry.steps + 1
        state, outcome = self._next(step_key, carry.env, action, steps)
        done = outcome.terminated | outcome.truncated
        return Carry(self._settle(state), key, steps, done), outcome


def _place(
    carry: Carry, outcome: Outcome, begun: Carry, image: jax.Array, some: jax.Array
) -> tuple[Carry, Outcome]:
    """Put episodes that have begun where others are over; indices ``some`` may repeat."""
    carry = jax.tree.map(lambda old, new: old.at[some].set(new), carry, begun)
    return carry, outcome._replace(
        image=outcome.image.at[some].set(image),
        terminated=outcome.terminated.at[some].set(False),
        truncated=outcome.truncated.at[some].set(False),
    )


def _is_key(leaf: Any) -> bool:
    return hasattr(leaf, "dtype") and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _common_type(reset: Any, stepped: Any) -> jax.Array:
    """``reset`` in the type that holds both, no longer weakly typed."""
    if _is_key(reset):
        return reset
    return jnp.asarray(reset).astype(jnp.promote_types(jnp.result_type(reset), stepped.dtype))


def _plain(leaf: jax.Array) -> jax.Array:
    """``leaf`` without the key type, which numpy does not know."""
    return jax.random.key_data(leaf) if _is_key(leaf) else leaf


def _named_leaves(carry: Carry) -> list[tuple[str, Any]]:
    """Leaves of a carry and the names that a saved state gives them."""
    paths = jax.tree_util.tree_leaves_with_path(carry)
    return [
        (_PREFIX + jax.tree_util.keystr(path, simple=True, separator="."), leaf)
        for path, leaf in paths
    ]
