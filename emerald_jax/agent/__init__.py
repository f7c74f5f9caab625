"""The agent: networks and their parameters in one object that acts, dreams and computes losses.

:func:`act` is one pure step: it encodes images, updates each environment's memory and acts. The
memory is the transformer's last C keys and values, so that the agent remembers C x blocks steps, or
the state of the GRU. At an episode's first frame a learned start replaces the past, exactly as in
training. :class:`Agent` keeps no memory: :meth:`Agent.initial` creates a state and
:meth:`Agent.act` returns the next one, so one agent can play several games at once and a step can
be repeated. :class:`Player` keeps the memory for callers that only want actions.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Num, UInt8

from emerald_jax.actions import absent
from emerald_jax.agent.state import Learner, RunError, count_parameters, init_carry
from emerald_jax.config import Config
from emerald_jax.envs.base import EnvSpec, VectorStep
from emerald_jax.ops.random import split
from emerald_jax.types import AnyArray, Array, Batch, Carry, Key, Params, PolicyFn, State

if TYPE_CHECKING:
    from emerald_jax.agent.dream import Rollout, Shown

Mode = Literal["sample", "mode"]


class Observation(NamedTuple):
    """The fields of a vector step that acting reads.

    Attributes:
        image: `[E, height, width, 3]` uint8.
        action: `[E]` or `[E, A]`, the action that led into the image; none on first frames.
        is_first: `[E]` bool.
    """

    image: Array
    action: Array
    is_first: Array


class Acted(NamedTuple):
    """Result of one acting step.

    Attributes:
        action: `[E]` int32, or `[E, A]` float32.
        carry: :class:`Carry` `[E]` for the next step.
        finite: `[]` bool, False when a policy output was NaN or infinite.
        state: :class:`State` `[E]`, s_t of every environment.
        log_prob: `[E]` float32, of the action.
    """

    action: Array
    carry: Carry
    finite: Array
    state: State
    log_prob: Array


def act(
    params: dict[str, Params],
    carry: Carry,
    observation: Observation,
    key: Key,
    *,
    learner: Learner,
    mode: bool = False,
) -> Acted:
    """Choose one action for every environment; ``learner`` and ``mode`` are static.

    ``params`` are ``world_model`` and ``actor``. ``mode`` takes the most probable action instead of
    a sample (the paper samples).
    """
    latent_key, action_key = split(jax.random.split(key, observation.action.shape[0]), 2)
    net = learner.model.bind({"params": params["world_model"]})
    image, led, first = (x[:, None] for x in observation)  # chunks of length one, as in training
    passed = net.observe(image, led, first, carry, latent_key)
    state = jax.tree.map(lambda x: x[:, 0], passed.state)
    policy = learner.actor_critic.policy(params["actor"], state)
    action = policy.act(None if mode else action_key)
    return Acted(action, passed.carry, policy.finite(), state, policy.log_prob(action))


def compile_acting(learner: Learner, *, mode: bool = False) -> Callable:
    """:func:`act` jitted: ``(params, carry, observation, base key, number) -> Acted``."""
    return jax.jit(partial(act_numbered, learner=learner, mode=mode), donate_argnums=1)


def act_numbered(
    params: dict[str, Params],
    carry: Carry,
    observation: Observation,
    base: Key,
    number: Array,
    *,
    learner: Learner,
    mode: bool = False,
) -> Acted:
    """:func:`act` with a key made from a base key and the ``number`` `[]` of a vector step."""
    key = jax.random.fold_in(base, number)
    return act(params, carry, observation, key, learner=learner, mode=mode)


def abstract_acting(learner: Learner, spec: EnvSpec, count: int) -> tuple[Any, Observation, Array]:
    """Shapes of carry, observation and vector step's number of ``count`` environments."""
    carry = jax.eval_shape(partial(init_carry, learner, count))
    observation = Observation(
        image=jax.ShapeDtypeStruct((count, *spec.image_shape), jnp.uint8),
        action=jax.ShapeDtypeStruct((count, *spec.actions.shape), spec.actions.dtype),
        is_first=jax.ShapeDtypeStruct((count,), jnp.bool_),
    )
    return carry, observation, jax.ShapeDtypeStruct((), jnp.uint32)


class Player:
    """Plays E environments with an agent and remembers their past between vector steps.

    Attributes:
        params: ``world_model`` and ``actor``; may be replaced between steps, as training does.
        carry: :class:`Carry` `[E]`.
        state: :class:`State` `[E]` of the newest frames; None before the first step.
        log_prob: `[E]` of the newest actions; None before the first step.
        number: vector steps so far; decides the random numbers of the next one.
    """

    def __init__(
        self,
        act: Callable,
        params: dict[str, Params],
        carry: Carry,
        key: Key,
        place: Callable[[Any], Any] = jax.device_put,
    ) -> None:
        """Play with ``act`` of :func:`compile_acting`; ``key`` is the base key of all actions.

        ``place`` sends what ``act`` reads from the host to its device.
        """
        self.params, self.carry, self.number = params, carry, 0
        self.state: State | None = None
        self.log_prob: Array | None = None
        self._act, self._key, self._place = act, key, place

    def __call__(self, record: VectorStep) -> np.ndarray:
        """Actions `[E]` or `[E, A]`; RunError if a policy output is not finite."""
        seen = self._place(Observation(record.image, record.action, record.is_first))
        number = self._place(np.array(self.number, np.uint32))
        acted = self._act(self.params, self.carry, seen, self._key, number)
        self.carry, self.state, self.log_prob = acted.carry, acted.state, acted.log_prob
        self.number += 1
        action, finite = jax.device_get((acted.action, acted.finite))
        if not finite:
            raise RunError("the policy is not finite: use an earlier checkpoint")
        return action


class AgentState(NamedTuple):
    """The agent's memory of B environments.

    Attributes:
        carry: :class:`Carry` `[B]`, memory of the sequence model and newest latent.
        action: `[B]` int32 or `[B, A]` float32, the agent's last action; none before the first.
    """

    carry: Carry
    action: Array


class Dream(NamedTuple):
    """A dream as NumPy arrays; all have a leading `[B]` if the observations had one.

    Attributes:
        frames: `[H, height, width, 3]` uint8, imagined frames.
        rewards: `[H]` float32, predicted reward that came with each frame.
        continues: `[H]` float32, predicted probability that the episode continues after it.
        tokens: `[H, h, w, G]` int32, class indices of the latent.
        confidence: `[H, h, w, G]` float32, the probability each token was drawn with.
        actions: `[H]` int32 or `[H, A]` float32; ``actions[k]`` led into ``frames[k]``.
        seen: `[T, height, width, 3]` uint8, reconstructions of the observations.
    """

    frames: np.ndarray
    rewards: np.ndarray
    continues: np.ndarray
    tokens: np.ndarray
    confidence: np.ndarray
    actions: np.ndarray
    seen: np.ndarray


class Agent:
    """Networks with their parameters; see the module docstring.

    Attributes:
        learner: networks and settings, for the pure functions of this package.
        params: ``world_model``, ``actor`` and ``critic``, plain trees of arrays.
        spec: the environment's spaces and names.
        updates: gradient updates that produced the parameters.
        env_steps: environment steps that produced them; None if unknown.
    """

    def __init__(
        self,
        learner: Learner,
        params: dict[str, Params],
        spec: EnvSpec,
        updates: int = 0,
        env_steps: int | None = None,
    ) -> None:
        """Combine networks and parameters; :func:`emerald_jax.load` reads them from a run."""
        self.learner, self.params, self.spec = learner, params, spec
        self.updates, self.env_steps = updates, env_steps
        self._act = jax.jit(partial(act_once, learner=learner), static_argnames="mode")
        # A caller's own policy is part of the program: pass the same function to compile once.
        names = ("horizon", "steps", "policy")
        self._dream = jax.jit(partial(_dream, learner=learner), static_argnames=names)
        self._losses = jax.jit(partial(_losses, learner=learner))

    @property
    def config(self) -> Config:
        """All settings."""
        return self.learner.config

    def __repr__(self) -> str:
        return (
            f"<agent of {self.spec.name}: {self.spec.actions}, "
            f"{count_parameters(self.params)['total']:,} parameters, {self.updates:,} updates>"
        )

    def initial(self, batch: int = 1) -> AgentState:
        """The state before the first frame of ``batch`` environments."""
        action = jnp.asarray(self.spec.actions.none(batch))
        return self._place(AgentState(init_carry(self.learner, batch), action))

    def player(self, count: int, key: Key, *, mode: Mode = "sample") -> Player:
        """A :class:`Player` of ``count`` environments, ``player(record) -> actions [count]``.

        Args:
            count: number of environments.
            key: base key of the sampled latents and actions.
            mode: ``sample`` from the policy, or ``mode`` for its most probable action.
        """
        program = compile_acting(self.learner, mode=mode == "mode")
        return Player(program, self.params, self._place(init_carry(self.learner, count)), key)

    def act(
        self,
        obs: UInt8[AnyArray, "B height width 3"],
        state: AgentState,
        key: Key,
        *,
        is_first: Bool[AnyArray, " B"] | None = None,
        mode: bool = False,
    ) -> tuple[np.ndarray, AgentState]:
        """Choose one action for every environment; compiled once per batch size.

        Args:
            obs: `[B, height, width, 3]` uint8.
            state: from :meth:`initial` or the previous call.
            key: consumed.
            is_first: `[B]` bool, environments whose frame starts a new episode; None means that all
                episodes continue. The very first call needs none.
            mode: take the most probable action instead of a sample.

        Returns:
            The actions `[B]` int32, or `[B, A]` float32 (see ``emerald_jax/actions.py``), and the
            state for the next call.

        Raises:
            ValueError: ``obs`` or ``is_first`` has the wrong shape or type.
        """
        count = state.action.shape[0]
        _check_images(obs, (count, *self.spec.image_shape))
        first = np.zeros(count, bool) if is_first is None else np.asarray(is_first, bool)
        if first.shape != (count,):
            raise ValueError(f"is_first has shape {first.shape}: it must be ({count},)")
        action, state = self._act(self.params, state, obs, first, key, mode=bool(mode))
        return np.asarray(action), state

    def imagine(
        self,
        obs: UInt8[AnyArray, "*B T height width 3"],
        actions: Num[AnyArray, "*B T *A"] | None = None,
        *,
        key: Key,
        horizon: int = 50,
        future: Num[AnyArray, "*B H *A"] | None = None,
        policy: PolicyFn | None = None,
        steps: int | None = None,
        temperature: float = 1.0,
    ) -> Dream:
        """Read real frames, then dream; compiled once per shape, horizon and ``steps``.

        Args:
            obs: `[T, height, width, 3]` uint8, or `[B, T, …]`: observations, oldest first.
            actions: `[T]` or `[B, T]` int, the action that led into each observation, -1 where an
                episode begins; with one more axis A, and NaN, where actions are vectors. May be
                None for a single frame.
            key: consumed.
            horizon: imagined steps H.
            future: `[H]` or `[B, H]` int, or with one more axis A, actions of the dream (an open
                loop); None lets the policy choose.
            policy: any policy, see :data:`emerald_jax.types.PolicyFn`; None uses the agent's own.
            steps: MaskGIT decoding steps S; None uses the run's, 0 the linear head.
            temperature: of the tokens; below 1 makes likely tokens more likely.

        Returns:
            :class:`Dream`.

        Raises:
            ValueError: shapes, types or values do not fit.
        """
        obs = np.asarray(obs)
        single = obs.ndim == 4
        if single:
            obs, actions, future = obs[None], _lead(actions), _lead(future)
        _check_images(obs, (*obs.shape[:2], *self.spec.image_shape))
        if horizon < 1 or not temperature > 0:
            raise ValueError(f"horizon {horizon} must be 1 or more, temperature {temperature} > 0")
        steps = self.config.behavior.decode_steps if steps is None else int(steps)
        if not 0 <= steps <= self.config.tokens:
            raise ValueError(f"steps is {steps}: it must lie in 0 … {self.config.tokens}")
        if actions is None and obs.shape[1] == 1:
            actions = self.spec.actions.none(*obs.shape[:2])
        past = self._check_actions(actions, obs.shape[:2], "actions", first=True)
        if future is not None:
            future = self._check_actions(future, (obs.shape[0], horizon), "future")
        arguments = (past, future, key, np.float32(temperature))
        options = dict(horizon=horizon, steps=steps, policy=policy)
        dreamt = _as_dream(*jax.device_get(self._dream(self.params, obs, *arguments, **options)))
        return Dream(*(x[0] for x in dreamt)) if single else dreamt

    def losses(self, batch: Batch, key: Key) -> dict[str, float]:
        """World-model losses of real sequences, unweighted means over `[B, L]`, without dropout.

        Args:
            batch: :class:`Batch` `[B, L]`; a ``carry`` of None means that no past is known.
            key: consumed.

        Returns:
            One number per term of :class:`emerald_jax.config.LossConfig`.
        """
        if batch.carry is None:
            batch = batch._replace(carry=self.initial(batch.action.shape[0]).carry)
        found = jax.device_get(self._losses(self.params["world_model"], batch, key))
        return {name: float(value) for name, value in found.items()}

    def _place(self, tree: Any) -> Any:
        """Put arrays on the device of the parameters."""
        return jax.device_put(tree, jax.tree.leaves(self.params)[0].sharding)

    def _check_actions(
        self, actions: Any, shape: tuple[int, int], name: str, first: bool = False
    ) -> np.ndarray:
        """``actions`` in our type; ``first`` allows none of them, where an episode begins."""
        if actions is None:
            raise ValueError(f"{name} is missing: several frames need the actions between them")
        space = self.spec.actions
        try:
            actions = space.checked(actions, *shape)
        except ValueError as error:
            raise ValueError(f"{name} {error}") from None
        if (space.wrong(actions) & ~(absent(actions) & first)).any():
            none = "-1 or " if space.discrete else "NaN or "
            raise ValueError(f"{name} must lie in {none if first else ''}{space.valid}")
        return actions.astype(space.dtype)


def act_once(
    params: dict[str, Params],
    state: AgentState,
    obs: Array,
    is_first: Array,
    key: Key,
    *,
    learner: Learner,
    mode: bool,
) -> tuple[Array, AgentState]:
    """:func:`act` with the last action kept in the state."""
    space = learner.model.actions
    first = is_first.reshape(-1, *(1 for _ in space.shape))
    action = jnp.where(first, -1 if space.discrete else jnp.nan, state.action)
    seen = Observation(obs, action, absent(action))
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
    **options: Any,
) -> tuple[Rollout, Shown, Array]:
    """:func:`dream.dream` of batch-major arrays, with its states decoded."""
    from emerald_jax.agent.dream import dream, show  # loading an agent needs neither

    obs, actions, future = jax.tree.map(lambda x: jnp.swapaxes(x, 0, 1), (obs, actions, future))
    options |= {"learner": learner, "temperature": temperature}
    dreamt = dream(params, obs, actions, future, key, **options)
    shown = show(params, dreamt.state, learner=learner)
    return dreamt, shown, show(params, dreamt.seen, learner=learner).frame


def _losses(params: Params, batch: Batch, key: Key, *, learner: Learner) -> dict[str, Array]:
    from emerald_jax.losses import world_model_losses

    keys = jax.random.split(key, batch.action.shape[0])
    options = {"model": learner.model, "config": learner.config.loss, "deterministic": True}
    return jax.tree.map(jnp.mean, world_model_losses(params, batch, keys, **options)[0])


def _as_dream(dreamt: Rollout, shown: Shown, seen: np.ndarray) -> Dream:
    """Batch-major NumPy arrays, latent positions laid out as their grid."""
    side = round(dreamt.state.z.shape[-2] ** 0.5)

    def grid(x: np.ndarray) -> np.ndarray:
        return x.reshape(*x.shape[:-2], side, side, x.shape[-1])

    tokens, confidence = grid(dreamt.state.z), grid(dreamt.state.confidence)
    parts = Dream(*shown, tokens, confidence, dreamt.action, seen)
    return Dream(*(np.swapaxes(x, 0, 1) for x in parts))


def _lead(array: Any) -> np.ndarray | None:
    return None if array is None else np.asarray(array)[None]


def _check_images(obs: Any, shape: tuple[int, ...]) -> None:
    found = tuple(obs.shape)
    if found != shape or obs.dtype != np.uint8:
        raise ValueError(f"obs is {found} {obs.dtype}: it must be {shape} uint8")
