"""What an environment is to the rest of the package: a spec, vector steps, episode records.

Every vector environment hands out exactly one *record* per environment and vector step:

* an environment whose last record was ``is_last`` ignores the next action and answers with the
  first frame of its next episode (``is_first``, action -1, reward 0), so neither the final nor the
  first frame of an episode is ever lost and all environments stay in step;
* action, reward, ``is_last`` and ``is_terminal`` are those that *led into* the record's image;
* ``is_terminal`` says that the world ended; a time limit is ``is_last`` alone.

First frames are records but not environment steps: ``VectorStep.env_steps`` counts without them.

Turns raw environment outputs into records, and adds up the episodes they belong to.

Both kinds of vector environment (host and device) share this bookkeeping, so the rules of
``base.py`` are written once.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np


class EnvError(RuntimeError):
    """An environment is unknown, missing, unsuitable or broken; the message says what to do."""


@dataclass(frozen=True, kw_only=True)
class EnvSpec:
    """Spaces and facts of an environment.

    Attributes:
        name: as the user wrote it, such as ``gymnax:Catch-bsuite``.
        image_shape: ``(height, width, 3)`` of the uint8 image.
        num_actions: size of the discrete action space.
        action_names: one name per action, or empty.
        time_limit: agent steps after which an episode is cut; 0 when there is no limit.
    """

    name: str
    image_shape: tuple[int, int, int]
    num_actions: int
    action_names: tuple[str, ...] = ()
    time_limit: int = 0


@dataclass(frozen=True, kw_only=True)
class Episode:
    """Record of one finished episode.

    Attributes:
        env: index of the environment in the vector.
        score: undiscounted sum of rewards (the return).
        length: agent steps, the first frame not counted.
        terminal: the world ended; False when a limit or a fault cut the episode.
        extra: what else the environment reports, such as Crafter's ``achievements``
            (name -> times unlocked). Plain JSON values only.
    """

    env: int
    score: float
    length: int
    terminal: bool
    extra: dict[str, Any] = field(default_factory=dict)


class VectorStep(NamedTuple):
    """One record of each of E environments.

    Attributes:
        image: `[E, height, width, 3]` uint8.
        action: `[E]` int32, the action that led into the image; -1 on first frames.
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
        """Environment steps in this vector step: its records less the first frames."""
        return int(len(self.is_first) - self.is_first.sum())


@runtime_checkable
class VectorEnv(Protocol):
    """E environments behind one batched numpy interface; see the module docstring for the rules.

    Attributes:
        spec: of each environment.
        num_envs: E.
        faults: environments that failed and were replaced so far; their episodes ended with
            ``is_last`` alone and say why under ``fault`` in :attr:`Episode.extra`.
    """

    spec: EnvSpec
    num_envs: int
    faults: int

    def reset(self) -> VectorStep:
        """Begin a new episode in every environment; every record is a first frame."""

    def step_async(self, actions: np.ndarray) -> None:
        """Send one action `[E]` int32 to each environment and return at once."""

    def step_wait(self) -> VectorStep:
        """The records that the last :meth:`step_async` led to."""

    def step(self, actions: np.ndarray) -> VectorStep:
        """:meth:`step_async` and :meth:`step_wait` in one."""

    def close(self) -> None:
        """Release processes and memory; safe to call twice."""

    def get_state(self) -> dict[str, np.ndarray] | None:
        """Everything that decides the future, as plain arrays; None when it cannot be saved."""

    def set_state(self, state: dict[str, np.ndarray]) -> VectorStep:
        """Continue from :meth:`get_state`; returns the newest record again."""


_PREFIX = "record."


class EpisodeTracker:
    """The newest record of E environments, and the running score and length of their episodes.

    Attributes:
        newest: the last :class:`VectorStep` handed out, or None before the first reset.
    """

    def __init__(self, num_envs: int, num_actions: int):
        """Nothing has been recorded yet.

        Args:
            num_envs: environments E.
            num_actions: size of the action space, against which actions are checked.
        """
        self.newest: VectorStep | None = None
        self._num_envs = num_envs
        self._num_actions = num_actions
        self._score = np.zeros(num_envs, np.float64)
        self._length = np.zeros(num_envs, np.int64)

    def check(self, actions: np.ndarray) -> np.ndarray:
        """Actions as `[E]` int32, refused where an environment would misread them.

        Args:
            actions: `[E]` integers; anything goes where the newest record is ``is_last``.

        Raises:
            EnvError: before the first reset, on another shape, or on an action out of range.
        """
        if self.newest is None:
            raise EnvError("step before reset: call reset() or set_state() first")
        actions = np.asarray(actions)
        if actions.shape != (self._num_envs,) or actions.dtype.kind not in "iu":
            raise EnvError(
                f"actions must be [{self._num_envs}] integers, got {actions.dtype} {actions.shape}"
            )
        wrong = ((actions < 0) | (actions >= self._num_actions)) & ~self.newest.is_last
        if wrong.any():
            env = int(np.argmax(wrong))
            raise EnvError(
                f"action {actions[env]} of environment {env} is not in 0..{self._num_actions - 1}"
            )
        return np.where(self.newest.is_last, 0, actions).astype(np.int32)

    def first(self, image: np.ndarray) -> VectorStep:
        """Every environment has begun an episode; those that were running are forgotten.

        Args:
            image: `[E, height, width, 3]` uint8; copied.
        """
        none = np.zeros(self._num_envs, bool)
        self._score[:] = 0
        self._length[:] = 0
        self.newest = VectorStep(
            image=np.array(image, np.uint8),
            action=np.full(self._num_envs, -1, np.int32),
            reward=np.zeros(self._num_envs, np.float32),
            is_first=~none,
            is_last=none,
            is_terminal=none.copy(),
        )
        return self.newest

    def step(
        self,
        image: np.ndarray,
        action: np.ndarray,
        reward: np.ndarray,
        terminated: np.ndarray,
        truncated: np.ndarray,
        extras: Mapping[int, dict[str, Any]],
    ) -> VectorStep:
        """The records that ``action`` led to.

        What an environment reports for an action it ignored (its newest record was ``is_last``)
        is overwritten: a first frame has action -1, reward 0 and ends nothing.

        Args:
            image: `[E, height, width, 3]` uint8; copied.
            action: `[E]` as :meth:`check` returned it.
            reward: `[E]` floats.
            terminated: `[E]` bool, the world ended.
            truncated: `[E]` bool, a limit cut the episode.
            extras: per environment that ended, what its :class:`Episode` carries besides.
        """
        first = self.newest.is_last
        terminal = np.asarray(terminated, bool) & ~first
        last = (terminal | np.asarray(truncated, bool)) & ~first
        reward = np.where(first, 0, reward)
        self._score = np.where(first, 0, self._score + reward)
        self._length = np.where(first, 0, self._length + 1)
        self.newest = VectorStep(
            image=np.array(image, np.uint8),
            action=np.where(first, -1, action).astype(np.int32),
            reward=reward.astype(np.float32),
            is_first=first.copy(),
            is_last=last,
            is_terminal=terminal,
            episodes=tuple(
                Episode(
                    env=int(env),
                    score=float(self._score[env]),
                    length=int(self._length[env]),
                    terminal=bool(terminal[env]),
                    extra=extras.get(int(env), {}),
                )
                for env in np.flatnonzero(last)
            ),
        )
        return self.newest

    def get_state(self) -> dict[str, np.ndarray]:
        """The newest record and the running sums as plain arrays.

        Raises:
            EnvError: before the first reset.
        """
        if self.newest is None:
            raise EnvError("nothing to save before reset(): call reset() first")
        record = {k: v for k, v in self.newest._asdict().items() if k != "episodes"}
        record |= {"score": self._score, "length": self._length}
        return {_PREFIX + name: value.copy() for name, value in record.items()}

    def set_state(self, state: Mapping[str, np.ndarray]) -> VectorStep:
        """The inverse of :meth:`get_state`.

        Returns:
            The newest record; its ``episodes`` is empty because they were handed out before.

        Raises:
            EnvError: when an array is missing or belongs to another number of environments.
        """
        names = [name for name in VectorStep._fields if name != "episodes"]
        values = {}
        for name in [*names, "score", "length"]:
            value = state.get(_PREFIX + name)
            if value is None or len(value) != self._num_envs:
                found = "is missing" if value is None else f"holds {len(value)} environments"
                raise EnvError(
                    f"this state is not of {self._num_envs} environments: {_PREFIX}{name} {found}"
                )
            values[name] = np.array(value)
        self._score, self._length = values.pop("score"), values.pop("length")
        self.newest = VectorStep(**values)
        return self.newest
