"""Detours of the training environments from the policy (``behavior.detours``).

A policy that has become sure tries nothing else, and single random actions cancel out. Now and then
an environment repeats one random action for some steps (temporally extended exploration: Dabney et
al., arXiv 2006.01782; there with lengths of a power law). Environments differ in how often, so that
some of them reach what lies behind many right actions, and try something else only there.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from emerald_jax.actions import ActionSpace


class Detours:
    """Detours of E environments.

    Attributes:
        left: `[E]` int, steps left of each environment's detour; 0: its policy acts.
        action: `[E]` or `[E, A]`, the action that it repeats.
    """

    def __init__(self, rate: float, longest: int, actions: ActionSpace, count: int) -> None:
        """No environment is on a detour.

        Each step, environment i of ``count`` begins one with probability ``rate (2 i + 1) / count``
        (on average ``rate``), for 1 to ``longest`` steps.
        """
        self._rates = rate * (2 * np.arange(count) + 1) / count
        self._longest, self._actions = longest, actions
        self.left, self.action = np.zeros(count, int), actions.idle(count)

    def __call__(
        self, action: np.ndarray, is_first: np.ndarray, random: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray]:
        """The actions to take instead of the policy's, and where they are its own `[E]` bool.

        A detour ends with its episode.
        """
        count = len(action)
        left = np.where(is_first, 0, self.left)
        begins = (left == 0) & (random.random(count) < self._rates)
        left = np.where(begins, random.integers(1, self._longest + 1, count), left)
        self.action = _where(begins, self._actions.sample(random, count), self.action)
        away = left > 0
        self.left = left - away
        return _where(away, self.action, action), ~away

    def state_dict(self) -> dict[str, Any]:
        """JSON-compatible state."""
        return {"left": self.left.tolist(), "action": self.action.tolist()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where :meth:`state_dict` was called, if with as many environments."""
        if len(state["left"]) == len(self.left):
            self.left = np.array(state["left"], int)
            self.action = np.array(state["action"], self.action.dtype)


def _where(chosen: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """``x`` in the ``chosen`` environments `[E]`, ``y`` in the others."""
    return np.where(chosen.reshape(-1, *(1,) * (x.ndim - 1)), x, y)
