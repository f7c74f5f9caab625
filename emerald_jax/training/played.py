"""The steps just played, from which actor and critic may learn too (``behavior.real_weight``).

Each step waits in a window until H later ones have followed it, H = ``behavior.horizon``; then one
update learns from it, with the lambda-return of the real rewards. So every step counts once, a few
updates after the policy took it.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import jax
import numpy as np

from emerald_jax.agent import Player
from emerald_jax.agent.state import Learner
from emerald_jax.config import Config
from emerald_jax.envs.base import VectorStep
from emerald_jax.types import Batch, Played, State


def due_steps(config: Config) -> int:
    """Oldest steps of the window, those that an update learns from: all played since the last one.

    One more than on average, since first frames take a vector step but owe no updates.
    """
    return math.ceil(1 / config.updates_per_vector_step) + 1


def nothing_played(learner: Learner, count: int) -> Played:
    """The window of ``count`` environments before the first step, host arrays `[count, W]`."""
    config, actions = learner.config, learner.model.actions
    model, shape = config.model, (count, due_steps(config) + config.behavior.horizon)
    no = np.zeros(shape, bool)
    return Played(
        state=State(
            np.zeros((*shape, model.positions, model.groups), np.int32),
            np.zeros((*shape, model.width), learner.model.dtype),
        ),
        action=np.zeros((*shape, *actions.shape), actions.dtype),
        log_prob=np.zeros(shape, np.float32),
        reward=np.zeros(shape, np.float32),
        is_first=no,
        is_terminal=no,
        due=no,
    )


def with_played(batch: Batch, learner: Learner) -> Batch:
    """``batch`` with :func:`nothing_played` if its updates learn from played steps."""
    if not learner.config.behavior.real_weight:
        return batch
    return batch._replace(played=nothing_played(learner, learner.config.envs.count))


def with_step(played: Played, step: Played, concatenate: Callable = np.concatenate) -> Played:
    """The window `[E, W]` with a new ``step`` `[E]`, without its oldest one.

    ``concatenate`` is that of NumPy, or of JAX within a program.
    """
    return jax.tree.map(lambda x, new: concatenate([x[:, 1:], new[:, None]], 1), played, step)


class Recent:
    """The window of one process' training environments, as host arrays.

    Attributes:
        played: :class:`Played` `[E, W]`.
    """

    def __init__(self, learner: Learner, count: int) -> None:
        """Nothing has been played in ``count`` environments."""
        self.played, self._due = nothing_played(learner, count), due_steps(learner.config)

    def add(self, record: VectorStep, player: Player, action: np.ndarray, own: np.ndarray) -> None:
        """Actions `[E]` were taken where ``player`` had seen ``record``.

        ``own`` `[E]` bool: the player's actions, which alone are learned from.
        """
        state, log_prob = jax.device_get((player.state, player.log_prob))
        if log_prob.ndim > 1:  # of one of several seeds
            state, log_prob = jax.tree.map(lambda x: x[0], (state, log_prob))
        told = record.reward, record.is_first, record.is_terminal
        step = Played(state, action, log_prob, *told, own)
        self.played = with_step(self.played, step)

    def take(self) -> Played:
        """The window for an update, which will learn from its steps that are due."""
        played, due = self.played, self.played.due.copy()
        due[:, : self._due] = False
        self.played = played._replace(due=due)
        return played
