"""A trained agent to hold in the hand: ``load`` a run, ``act`` in an environment, ``imagine``.

The agent keeps no memory of its own: what it remembers of its environments is the state that
:meth:`Agent.initial` makes and :meth:`Agent.act` hands back, so one agent may play
several games at once, and a step can be taken again.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Int, Int32, UInt8

from emerald_jax.agent.acting import Observation, act
from emerald_jax.agent.dream import Rollout, Shown, dream, show
from emerald_jax.agent.state import Learner, count_parameters, init_carry
from emerald_jax.config import Config
from emerald_jax.envs.base import EnvSpec
from emerald_jax.types import AnyArray, Array, Carry, Key, Params, PolicyFn


class AgentState(NamedTuple):
    """What the agent remembers of B environments.

    Attributes:
        carry: :class:`Carry` `[B]`, the transformer's memory and the newest latent.
        action: `[B]` int32, the action it took last; -1 before the first.
    """

    carry: Carry
    action: Array


class Dream(NamedTuple):
    """A dream as NumPy arrays. All have a leading `[B]` if the observations had one.

    Attributes:
        frames: `[H, height, width, 3]` uint8, imagined frames.
        rewards: `[H]` float32, the predicted reward that came with each frame.
        continues: `[H]` float32, the predicted probability that the episode goes on after it.
        tokens: `[H, h, w, G]` int32, the latent's class indices.
        confidence: `[H, h, w, G]` float32, the probability each token was drawn with.
        actions: `[H]` int32; ``actions[k]`` led into ``frames[k]``.
        seen: `[T, height, width, 3]` uint8, the observations as the model reconstructs them.
    """

    frames: np.ndarray
    rewards: np.ndarray
    continues: np.ndarray
    tokens: np.ndarray
    confidence: np.ndarray
    actions: np.ndarray
    seen: np.ndarray


class Agent:
    """Trained networks with their weights; see the module docstring.

    Attributes:
        config: the run's settings.
        spec: the environment's spaces and names.
        learner: the networks, for the functions of this package.
        params: ``world_model``, ``actor`` and ``critic``, plain trees of arrays.
        updates: gradient updates behind the weights.
        env_steps: environment steps behind the weights; None when unknown.
    """

    def __init__(
        self,
        learner: Learner,
        params: dict[str, Params],
        spec: EnvSpec,
        updates: int = 0,
        env_steps: int | None = None,
    ) -> None:
        """Wrap networks and weights; :func:`load` makes one from a run.

        Args:
            learner: from :func:`emerald_jax.build_learner`.
            params: their parameters.
            spec: of the environment they were trained in.
            updates: gradient updates behind the weights.
            env_steps: environment steps behind the weights; None when unknown.
        """
        self.learner, self.params, self.spec = learner, params, spec
        self.updates, self.env_steps = updates, env_steps
        self._act = jax.jit(partial(_act, learner=learner), static_argnames="mode")
        # An own policy is part of the program: keep the function, and it is compiled once.
        names = ("horizon", "steps", "policy")
        self._dream = jax.jit(partial(_dream, learner=learner), static_argnames=names)

    @property
    def config(self) -> Config:
        """The run's settings."""
        return self.learner.config

    def __repr__(self) -> str:
        return (
            f"<agent of {self.spec.name}: {self.spec.num_actions} actions, "
            f"{count_parameters(self.params)['total']:,} parameters, {self.updates:,} updates>"
        )

    def initial(self, batch: int = 1) -> AgentState:
        """The state before the first frame of ``batch`` environments."""
        action = jnp.full((batch,), -1, jnp.int32)
        state = AgentState(init_carry(self.learner, batch), action)
        return jax.device_put(state, jax.tree.leaves(self.params)[0].sharding)

    def act(
        self,
        obs: UInt8[AnyArray, "B height width 3"],
        state: AgentState,
        key: Key,
        *,
        is_first: Bool[AnyArray, " B"] | None = None,
        mode: bool = False,
    ) -> tuple[Int32[np.ndarray, " B"], AgentState]:
        """Choose one action for every environment; compiled once per batch size.

        Args:
            obs: `[B, height, width, 3]` uint8.
            state: from :meth:`initial`, or the last call.
            key: consumed.
            is_first: `[B]` bool, the environments whose frame begins a new episode; None says that
                all go on. The very first call needs none.
            mode: take the likeliest action instead of a sample.

        Returns:
            The actions `[B]` int32, and the state for the next call.

        Raises:
            ValueError: when ``obs`` or ``is_first`` has another shape or type.
        """
        count = state.action.shape[0]
        _check_images(obs, (count, *self.spec.image_shape), "obs")
        first = np.zeros(count, bool) if is_first is None else np.asarray(is_first, bool)
        if first.shape != (count,):
            raise ValueError(f"is_first has shape {first.shape}: it must be ({count},)")
        action, state = self._act(self.params, state, obs, first, key, mode=bool(mode))
        return np.asarray(action), state

    def imagine(
        self,
        obs: UInt8[AnyArray, "*B T height width 3"],
        actions: Int[AnyArray, "*B T"] | None = None,
        *,
        key: Key,
        horizon: int = 50,
        future: Int[AnyArray, "*B H"] | None = None,
        policy: PolicyFn | None = None,
        steps: int | None = None,
        temperature: float = 1.0,
    ) -> Dream:
        """Look at real frames, then dream on; compiled once per shape, horizon and ``steps``.

        Args:
            obs: `[T, height, width, 3]` uint8, or `[B, T, …]`: what the agent sees, oldest first.
            actions: `[T]` or `[B, T]` int, the action that led into each observation, -1 where an
                episode begins. None will do for a single frame.
            key: consumed.
            horizon: imagined steps H.
            future: `[H]` or `[B, H]` int, the actions to take in the dream; None lets the policy
                choose.
            policy: any policy, see :data:`emerald_jax.types.PolicyFn`; None takes the agent's own.
            steps: MaskGIT decoding steps S; None takes the run's, 0 the linear head.
            temperature: of the tokens; below 1 the likely ones become likelier.

        Returns:
            :class:`Dream`.

        Raises:
            ValueError: when shapes, types or values do not fit.
        """
        obs = np.asarray(obs)
        single = obs.ndim == 4
        if single:
            obs, actions, future = obs[None], _lead(actions), _lead(future)
        shape = (*obs.shape[:2], *self.spec.image_shape)
        _check_images(obs, shape, "obs")
        if horizon < 1 or not temperature > 0:
            raise ValueError(f"horizon {horizon} must be 1 or more, temperature {temperature} > 0")
        steps = self.config.behavior.decode_steps if steps is None else int(steps)
        if not 0 <= steps <= self.config.tokens:
            raise ValueError(f"steps is {steps}: it must lie in 0 … {self.config.tokens}")
        if actions is None and obs.shape[1] == 1:
            actions = np.full(obs.shape[:2], -1)
        past = self._check_actions(actions, obs.shape[:2], "actions", least=-1)
        if future is not None:
            future = self._check_actions(future, (obs.shape[0], horizon), "future", least=0)
        arguments = (past, future, key, np.float32(temperature))
        options = dict(horizon=horizon, steps=steps, policy=policy)
        made, shown, seen = jax.device_get(self._dream(self.params, obs, *arguments, **options))
        whole = _as_dream(made, shown, seen)
        return Dream(*(x[0] for x in whole)) if single else whole

    def _check_actions(
        self, actions: Any, shape: tuple[int, int], name: str, least: int
    ) -> np.ndarray:
        if actions is None:
            raise ValueError(f"{name} is missing: several frames need the actions between them")
        actions = np.asarray(actions)
        if actions.shape != shape or not np.issubdtype(actions.dtype, np.integer):
            raise ValueError(
                f"{name} is {actions.shape} {actions.dtype}: it must be {shape} integers"
            )
        if actions.size and not (least <= actions.min() and actions.max() < self.spec.num_actions):
            raise ValueError(f"{name} must lie in {least} … {self.spec.num_actions - 1}")
        return actions.astype(np.int32)


def _act(
    params: dict[str, Params],
    state: AgentState,
    obs: Array,
    is_first: Array,
    key: Key,
    *,
    learner: Learner,
    mode: bool,
) -> tuple[Array, AgentState]:
    """:func:`acting.act` with the last action kept in the state."""
    action = jnp.where(is_first, -1, state.action)
    seen = Observation(obs, action, action < 0)
    acted = act(params, state.carry, seen, key, learner=learner, mode=mode)
    return acted.action, AgentState(acted.carry, acted.action)


def _dream(
    params: dict[str, Params],
    obs: Array,
    actions: Array,
    future: Array | None,
    key: Key,
    temperature: Array,
    *,
    learner: Learner,
    horizon: int,
    steps: int,
    policy: PolicyFn | None,
) -> tuple[Rollout, Shown, Array]:
    """:func:`dreaming.dream` from batch-major arrays, and what its states look like."""
    made = dream(
        params,
        jnp.swapaxes(obs, 0, 1),
        actions.T,
        None if future is None else future.T,
        key,
        learner=learner,
        horizon=horizon,
        steps=steps,
        temperature=temperature,
        policy=policy,
    )
    shown = show(params, made.state, learner=learner)
    return made, shown, show(params, made.seen, learner=learner).frame


def _as_dream(made: Rollout, shown: Shown, seen: np.ndarray) -> Dream:
    """Batch-major NumPy arrays, positions laid out as the grid they are."""
    side = round(made.state.z.shape[-2] ** 0.5)

    def grid(x: np.ndarray) -> np.ndarray:
        return x.reshape(*x.shape[:-2], side, side, x.shape[-1])

    parts = (
        shown.frame,
        shown.reward,
        shown.cont,
        grid(made.state.z),
        grid(made.state.confidence),
        made.action,
        seen,
    )
    return Dream(*(np.swapaxes(x, 0, 1) for x in parts))


def _lead(array: Any) -> np.ndarray | None:
    return None if array is None else np.asarray(array)[None]


def _check_images(images: Any, shape: tuple[int, ...], name: str) -> None:
    if tuple(images.shape) != shape or images.dtype != np.uint8:
        raise ValueError(
            f"{name} is {tuple(images.shape)} {images.dtype}: it must be {shape} uint8"
        )
