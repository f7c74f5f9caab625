"""Environments of the gymnax package: stepped on the device, one program per vector step.

Written for gymnax 1.0, https://github.com/RobertTLange/gymnax. Its own auto-reset is not used: it
replaces the final observation by the next episode's first one.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from emerald_jax.config import EnvsConfig
from emerald_jax.envs.base import EnvError, EnvSpec, VectorStep
from emerald_jax.envs.episodes import EpisodeTracker
from emerald_jax.envs.grid import check_grid, render_grid

_PREFIX = "device."


class _Carry(NamedTuple):
    """What the device keeps between two vector steps.

    Attributes:
        env: gymnax state, every leaf with a leading `[E]`.
        key: `[E]` random keys.
        steps: `[E]` int32, agent steps of the running episode.
        done: `[E]` bool, the newest record ended its episode.
    """

    env: Any
    key: jax.Array
    steps: jax.Array
    done: jax.Array


class _Outcome(NamedTuple):
    """What the host needs of a vector step; shapes as in :class:`VectorStep`."""

    image: jax.Array
    reward: jax.Array
    terminated: jax.Array
    truncated: jax.Array


class GymnaxVectorEnv:
    """E copies of one gymnax environment with a grid observation and discrete actions.

    Observation: the grid as an RGB image (see ``grid.py``); values are scaled by the bounds of
    the observation space. Reward and termination: the environment's own. Time limit:
    ``EnvsConfig.time_limit``, or else the environment's own; reaching it is never terminal.
    Seeds: environment i draws from ``fold_in(key(seed), i)``, so it does not depend on E.
    """

    #: Nothing is supervised: the device computes all environments in one program.
    faults = 0

    def __init__(self, name: str, game: str, envs: EnvsConfig, *, seed: int):
        """Build the environment; its programs compile on the first reset and the first step.

        Args:
            name: as the user wrote it, such as ``gymnax:Catch-bsuite``.
            game: the gymnax id, such as ``Catch-bsuite``.
            envs: count, image size and time limit.
            seed: of all that is random in the environments.

        Raises:
            EnvError: when gymnax cannot make the game, or it cannot be shown or controlled.
        """
        self._game, self._params = load_game(name, game)
        self.spec = _spec(name, self._game, self._params, envs)
        self.num_envs = envs.count
        self._limit = envs.time_limit
        self._bounds = _bounds(self._game.observation_space(self._params))
        self._tracker = EpisodeTracker(envs.count, self.spec.num_actions)
        self._keys = jax.vmap(jax.random.fold_in, (None, 0))(
            jax.random.key(seed), jnp.arange(envs.count)
        )
        self._dtypes = jax.eval_shape(self._settled_state, self._keys[0])
        self._begin = jax.jit(jax.vmap(self._begin_one))
        self._advance = jax.jit(jax.vmap(self._advance_one))
        self._carry: _Carry | None = None
        self._pending: tuple[np.ndarray, _Outcome] | None = None

    def reset(self) -> VectorStep:
        """See :class:`VectorEnv`."""
        self._pending = None
        keys = self._keys if self._carry is None else self._carry.key
        self._carry, image = self._begin(keys)
        return self._tracker.first(jax.device_get(image))

    def step_async(self, actions: np.ndarray) -> None:
        """See :class:`VectorEnv`; returns while the device is still computing."""
        if self._pending is not None:
            raise EnvError("step_async twice in a row: call step_wait in between")
        actions = self._tracker.check(actions)
        self._carry, outcome = self._advance(self._carry, jax.device_put(actions))
        self._pending = (actions, outcome)

    def step_wait(self) -> VectorStep:
        """See :class:`VectorEnv`."""
        if self._pending is None:
            raise EnvError("step_wait without step_async: nothing is under way")
        (actions, outcome), self._pending = self._pending, None
        image, reward, terminated, truncated = jax.device_get(outcome)
        return self._tracker.step(image, actions, reward, terminated, truncated, {})

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

    def _settled_state(self, key: jax.Array) -> Any:
        """A gymnax state with the types that reset and step agree on.

        A reset may hold Python numbers where a step holds arrays; letting them differ would
        retrace the program, or be refused by ``select``.
        """
        _, state = self._game.reset_env(key, self._params)
        _, stepped, *_ = self._game.step_env(key, state, jnp.int32(0), self._params)
        return jax.tree.map(_common_type, state, stepped)

    def _settle(self, state: Any) -> Any:
        """``state`` in the types of :meth:`_settled_state`."""
        return jax.tree.map(
            lambda leaf, like: leaf if _is_key(like) else jnp.asarray(leaf).astype(like.dtype),
            state,
            self._dtypes,
        )

    def _begin_one(self, key: jax.Array) -> tuple[_Carry, jax.Array]:
        """First state and image of one environment's next episode."""
        next_key, reset_key = jax.random.split(key)
        observation, state = self._game.reset_env(reset_key, self._params)
        carry = _Carry(self._settle(state), next_key, jnp.int32(0), jnp.bool_(False))
        return carry, self._draw(observation)

    def _advance_one(self, carry: _Carry, action: jax.Array) -> tuple[_Carry, _Outcome]:
        """One record of one environment: a step, or the first frame after a last one."""
        key, step_key, begin_key = jax.random.split(carry.key, 3)
        begun, first_image = self._begin_one(begin_key)
        observation, state, reward, terminated, _ = self._game.step_env(
            step_key, carry.env, action, self._params
        )
        steps = carry.steps + 1
        if self._limit:
            truncated = steps >= self._limit
        else:
            truncated = self._game.is_truncated(state, self._params)
        terminated, truncated = jnp.bool_(terminated), jnp.bool_(truncated)
        stepped = _Carry(self._settle(state), key, steps, terminated | truncated)
        outcome = _Outcome(self._draw(observation), jnp.float32(reward), terminated, truncated)
        none = jnp.bool_(False)
        return jax.tree.map(
            lambda first, other: jax.lax.select(carry.done, first, other),
            (begun, _Outcome(first_image, jnp.float32(0), none, none)),
            (stepped, outcome),
        )

    def _draw(self, observation: jax.Array) -> jax.Array:
        """Image `[size, size, 3]` uint8 of one observation."""
        low, high = self._bounds
        grid = (observation.astype(jnp.float32) - low) / (high - low)
        return render_grid(grid, self.spec.image_shape[0])


def load_game(name: str, game: str) -> tuple[Any, Any]:
    """A gymnax environment and its default parameters.

    Args:
        name: as the user wrote it, for the message.
        game: the gymnax id.

    Raises:
        EnvError: when gymnax cannot make it.
    """
    import gymnax

    try:
        return gymnax.make(game)
    except Exception as error:  # Some games download data; whatever fails there ends here.
        raise EnvError(f"gymnax cannot make {name}: {error}") from error


def gymnax_spec(name: str, game: str, envs: EnvsConfig) -> EnvSpec:
    """Spec of a game without compiling anything.

    Args:
        name: as the user wrote it, such as ``gymnax:Catch-bsuite``.
        game: the gymnax id.
        envs: image size and time limit.

    Raises:
        EnvError: when gymnax cannot make the game, or it cannot be shown or controlled.
    """
    return _spec(name, *load_game(name, game), envs)


def _spec(name: str, game: Any, params: Any, envs: EnvsConfig) -> EnvSpec:
    """See :func:`gymnax_spec`."""
    observation, actions = game.observation_space(params), game.action_space(params)
    check_grid(name, tuple(getattr(observation, "shape", ())), envs.image_size)
    if not hasattr(actions, "n"):
        raise EnvError(f"{name} has continuous actions: only discrete actions are supported")
    return EnvSpec(
        name=name,
        image_shape=(envs.image_size, envs.image_size, 3),
        num_actions=int(actions.n),
        time_limit=envs.time_limit or int(params.max_steps_in_episode),
    )


def _bounds(space: Any) -> tuple[np.ndarray, np.ndarray]:
    """Finite bounds that scale an observation to [0, 1]; (0, 1) where the space has none."""
    low, high = np.asarray(space.low, np.float32), np.asarray(space.high, np.float32)
    usable = np.isfinite(low) & np.isfinite(high) & (high > low)
    return np.where(usable, low, 0), np.where(usable, high, 1)


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


def _named_leaves(carry: _Carry) -> list[tuple[str, Any]]:
    """Leaves of a carry and the names that a saved state gives them."""
    paths = jax.tree_util.tree_leaves_with_path(carry)
    return [
        (_PREFIX + jax.tree_util.keystr(path, simple=True, separator="."), leaf)
        for path, leaf in paths
    ]
