"""What an environment is to the rest of the package: a spec, vector steps, episode records.

Every vector environment hands out exactly one *record* per environment and vector step:

* an environment whose last record was ``is_last`` ignores the next action and answers with the
  first frame of its next episode (``is_first``, action -1, reward 0), so neither the final nor the
  first frame of an episode is ever lost and all environments stay in step;
* action, reward, ``is_last`` and ``is_terminal`` are those that *led into* the record's image;
* ``is_terminal`` says that the world ended; a time limit is ``is_last`` alone.

First frames are records but not environment steps: ``VectorStep.env_steps`` counts without them.
"""

from __future__ import annotations

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
