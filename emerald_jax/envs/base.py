"""The interface of every environment: a spec, vector steps, episode records.

Each vector step returns one *record* per environment. After a record with ``is_last``, the
environment ignores the next action and returns the first frame of its next episode (``is_first``,
no action, reward 0; not an environment step). So no frame is lost, and all environments stay in
step. Action, reward, ``is_last`` and ``is_terminal`` are those that *led to* the record's image.
``is_terminal`` means that the world ended; a time limit sets ``is_last`` alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from emerald_jax.actions import ActionSpace
from emerald_jax.config import EnvsConfig

MAX_REWARD = float(np.finfo(np.float32).max)
FINITE = "rewards must be finite float32 numbers"
#: The warning about episodes that end terminated and truncated at once, which breaks no rule.
BOTH_ENDS = "both_ends"


class EnvError(RuntimeError):
    """An environment is unknown, missing, unsuitable or broken; the message names the way out."""


@dataclass(frozen=True, kw_only=True)
class EnvSpec:
    """Spaces and limits of an environment.

    Attributes:
        name: as the user wrote it, such as ``gymnax:Catch-bsuite``.
        image_shape: ``(height, width, 3)`` of the uint8 image.
        num_actions: size of the discrete action space; 0 if an action is a vector.
        action_names: one name per action, or per entry of the vector; or empty.
        time_limit: agent steps after which an episode is cut; 0 when there is no limit.
        action_sizes: :attr:`ActionSpace.sizes` of the vector; empty for discrete actions.
    """

    name: str
    image_shape: tuple[int, int, int]
    num_actions: int
    action_names: tuple[str, ...] = ()
    time_limit: int = 0
    action_sizes: tuple[int, ...] = ()

    @property
    def actions(self) -> ActionSpace:
        """What an agent chooses at each step."""
        return ActionSpace(tuple(self.action_sizes) or (self.num_actions,))


def square_spec(
    name: str,
    envs: EnvsConfig,
    actions: ActionSpace | int,
    limit: int,
    action_names: Iterable[str] = (),
) -> EnvSpec:
    """Spec with the image size of ``envs``, and its time limit or else the environment's own."""
    space = ActionSpace.of(actions)
    return EnvSpec(
        name=name,
        image_shape=(envs.image_size, envs.image_size, 3),
        num_actions=space.sizes[0] if space.discrete else 0,
        action_sizes=() if space.discrete else space.sizes,
        action_names=tuple(action_names),
        time_limit=envs.time_limit or int(limit),
    )


@dataclass(frozen=True, kw_only=True)
class Episode:
    """Record of one finished episode.

    Attributes:
        env: index of the environment in the vector.
        score: undiscounted sum of rewards (the return).
        length: agent steps, the first frame not counted.
        terminal: the world ended; False when a limit or a fault cut the episode.
        extra: plain JSON values under four keys, each of them optional: ``fault`` (why the episode
            was cut), ``achievements`` (name -> times unlocked), ``capped`` (the evaluation stopped
            after this many steps), and ``info``, the rest of the final ``info["extra"]``.
    """

    env: int
    score: float
    length: int
    terminal: bool
    extra: dict[str, Any] = field(default_factory=dict)

    @property
    def fault(self) -> str:
        """Why the episode was cut; empty for an episode that counts."""
        return self.extra.get("fault", "")

    @property
    def achievements(self) -> dict[str, int]:
        """Name -> times unlocked; empty where the environment reports none."""
        return self.extra.get("achievements", {})


class VectorStep(NamedTuple):
    """One record of each of E environments.

    Attributes:
        image: `[E, height, width, 3]` uint8.
        action: `[E]` int32 or `[E, A]` float32, the action that led to the image; -1, or NaN, on
            first frames (see ``emerald_jax/actions.py``).
        reward: `[E]` float32; 0 on first frames.
        is_first: `[E]` bool.
        is_last: `[E]` bool.
        is_terminal: `[E]` bool; implies ``is_last``.
        episodes: records of the episodes that ended with this step.
    """

    image: np.ndarray
    action: np.ndarray
    reward: np.ndarray
    is_first: np.ndarray
    is_last: np.ndarray
    is_terminal: np.ndarray
    episodes: tuple[Episode, ...] = ()

    @property
    def env_steps(self) -> int:
        """Environment steps in this vector step: its records minus the first frames."""
        return int(len(self.is_first) - self.is_first.sum())


def achievement_names(episodes: Iterable[Episode]) -> list[str]:
    """Names of all achievements, sorted; empty if an episode reports none."""
    found = [set(episode.achievements) for episode in episodes]
    return sorted(set().union(*found)) if all(found) else []


def is_crafter_like(env: str, names: Iterable[str]) -> bool:
    """Whether the Crafter score is defined: for both Crafter families, and for its 22 ``names``."""
    if env.partition(":")[0] in ("crafter", "craftax"):
        return True
    from emerald_jax.scores import crafter  # loading an agent does not need it

    return set(names) >= set(crafter()["human_experts"]["rates"])


def check_same_spec(before: EnvSpec, now: EnvSpec) -> None:
    """Refuse to continue a run in an environment with other actions or images (EnvError)."""
    images = ("x".join(map(str, spec.image_shape)) for spec in (before, now))
    if before.actions != now.actions and not (before.actions.discrete and now.actions.discrete):
        raise EnvError(
            f"{now.name} takes {now.actions}, this run was trained with {before.actions}: continue "
            "it with the same environment, or start a new run"
        )
    names = [", ".join(spec.action_names) for spec in (before, now)]
    if not now.actions.discrete and names[0] != names[1]:  # a Dict may have another order
        raise EnvError(f"{now.name} takes {names[1]}, this run was trained with {names[0]}")
    for things, old, new in (("actions", before.num_actions, now.num_actions), ("images", *images)):
        if old != new:
            raise EnvError(
                f"{now.name} has {new} {things}, this run was trained with {old}: continue it "
                "with the same environment, or start a new run"
            )


class Outcome(NamedTuple):
    """Results of one vector step, before they become records; all have a leading `[E]`.

    ``terminated``: the world ended; ``truncated``: a limit cut the episode. ``extra``:
    ``{env: extra}`` for episodes that ended. On the device: an array `[E, …]` from which
    :meth:`DeviceVectorEnv._extra` makes it, or None.
    """

    image: Any
    reward: Any
    terminated: Any
    truncated: Any
    extra: Any = None


class VectorEnv:
    """E environments behind one batched numpy interface; the module docstring has the rules.

    A subclass implements :meth:`_begin`, :meth:`_send`, :meth:`_receive` and :meth:`close`.

    Attributes:
        newest: the last :class:`VectorStep` returned, or None before the first reset.
        score: `[E]` float64, sum of rewards of each running episode.
        length: `[E]` int64, agent steps of each running episode.
        faults: environments that failed and were replaced so far; their episodes ended with
            ``is_last`` alone and a ``fault`` in :attr:`Episode.extra`. Only on the host.
        warnings: kind -> a line about something wrong that does not end an episode.
    """

    faults = 0

    def __init__(self, spec: EnvSpec, num_envs: int):
        self.spec, self.num_envs = spec, num_envs
        self.newest: VectorStep | None = None
        self.score, self.length = np.zeros(num_envs), np.zeros(num_envs, np.int64)
        self.warnings: dict[str, str] = {}
        self._pending: np.ndarray | None = None

    def _begin(self) -> np.ndarray:
        """Begin an episode in every environment; returns the images `[E, height, width, 3]`."""
        raise NotImplementedError

    def _send(self, actions: np.ndarray) -> None:
        """Start a vector step with checked actions `[E]` or `[E, A]`; return at once."""
        raise NotImplementedError

    def _receive(self) -> Outcome:
        """Results of the last :meth:`_send`, as numpy arrays."""
        raise NotImplementedError

    def close(self) -> None:
        """Release processes and memory; safe to call twice."""
        raise NotImplementedError

    def reset(self) -> VectorStep:
        """Begin a new episode everywhere; the first call seeds the environments."""
        if self._pending is not None:
            self.step_wait()
        image = np.array(self._begin(), np.uint8)
        self.score, self.length = np.zeros(self.num_envs), np.zeros(self.num_envs, np.int64)
        self.newest = VectorStep(
            image=image,
            action=self.spec.actions.none(self.num_envs),
            reward=np.zeros(self.num_envs, np.float32),
            is_first=np.ones(self.num_envs, bool),
            is_last=np.zeros(self.num_envs, bool),
            is_terminal=np.zeros(self.num_envs, bool),
        )
        return self.newest

    def step_async(self, actions: np.ndarray) -> None:
        """Send actions and return at once; any value is allowed after ``is_last``.

        They are `[E]` integers, or `[E, A]` numbers (see ``emerald_jax/actions.py``).

        EnvError: out of order, on another shape, or on an action out of range.
        """
        if self._pending is not None:
            raise EnvError("step_async twice in a row: call step_wait in between")
        if self.newest is None:
            raise EnvError("step before reset: call reset() or set_state() first")
        space, over = self.spec.actions, self.newest.is_last
        try:
            actions = space.checked(actions, self.num_envs)
        except ValueError as error:
            raise EnvError(f"actions {error}") from None
        wrong = space.wrong(actions) & ~over
        if wrong.any():
            env = int(np.argmax(wrong))
            raise EnvError(f"action {actions[env]} of environment {env} is not in {space.valid}")
        checked = space.replaced(actions, over, space.idle()).astype(space.dtype)
        self._send(checked)
        self._pending = checked

    def step_wait(self) -> VectorStep:
        """Return the records that the last :meth:`step_async` led to.

        EnvError: out of order, after too many faults, or on a reward that is not finite.
        """
        if self._pending is None:
            raise EnvError("step_wait without step_async: no step is pending")
        actions, self._pending = self._pending, None
        outcome, first = self._receive(), self.newest.is_last
        wrong = ~(np.abs(outcome.reward) <= MAX_REWARD) & ~first
        if wrong.any():
            env = int(np.argmax(wrong))
            gave = f"environment {env} gave the reward {outcome.reward[env]}"
            raise EnvError(f"{self.spec.name}: {gave}: {FINITE}")
        # After ``is_last`` the action was ignored: a first frame, which ends nothing.
        terminal = np.asarray(outcome.terminated, bool) & ~first
        last = (terminal | np.asarray(outcome.truncated, bool)) & ~first
        reward = np.where(first, 0, outcome.reward)
        self.score = np.where(first, 0, self.score + reward)
        self.length = np.where(first, 0, self.length + 1)
        extra = outcome.extra or {}
        self.newest = VectorStep(
            image=np.array(outcome.image, np.uint8),
            action=self.spec.actions.replaced(actions, first, self.spec.actions.none()),
            reward=reward.astype(np.float32),
            is_first=first.copy(),
            is_last=last,
            is_terminal=terminal,
            episodes=tuple(
                Episode(
                    env=env,
                    score=float(self.score[env]),
                    length=int(self.length[env]),
                    terminal=bool(terminal[env]),
                    extra=extra.get(env, {}),
                )
                for env in np.flatnonzero(last).tolist()
            ),
        )
        return self.newest

    def step(self, actions: np.ndarray) -> VectorStep:
        """Call :meth:`step_async`, then :meth:`step_wait`."""
        self.step_async(actions)
        return self.step_wait()

    def get_state(self) -> dict[str, np.ndarray] | None:
        """Return the complete state as plain arrays; None when it cannot be saved."""
        return None

    def set_state(self, state: Mapping[str, np.ndarray]) -> VectorStep:
        """Continue from :meth:`get_state`; returns the newest record again.

        EnvError: the state is of other environments, or cannot be restored at all.
        """
        del state
        raise EnvError(f"{self.spec.name} cannot be restored: call reset() instead")
