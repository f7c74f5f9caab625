"""Small environments with actions of every kind: 16 pixels, eight steps, a known best return."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
from gymnasium.spaces import Box, Dict, Discrete, MultiDiscrete

SIDE, STEPS = 16, 8


class Steer(gymnasium.Env):
    """A red bar moves sideways by as many pixels as the action, below a green one, its goal.

    Reward: 1 at the goal, less by a quarter per pixel of distance. The bars begin up to 12 pixels
    apart, and a step is 3 pixels at most.
    """

    observation_space = Box(0, 255, (SIDE, SIDE, 3), np.uint8)
    action_space = Box(-3, 3, (1,), np.float32)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        self.bar, self.goal = self.np_random.uniform(1, 13, 2)
        self.t = 0
        return self._image(), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict]:
        assert self.action_space.contains(action), action
        self.bar = np.clip(self.bar + action[0], 0, 14)
        self.t += 1
        reward = 1 - abs(self.bar - self.goal) / 4
        return self._image(), reward, False, self.t == STEPS, {}

    def best(self) -> float:
        """The return of the best play from here."""
        distance, total = abs(self.bar - self.goal), 0.0
        for _ in range(STEPS - self.t):
            distance = max(distance - 3, 0)
            total += 1 - distance / 4
        return total

    def _image(self) -> np.ndarray:
        image = np.zeros((SIDE, SIDE, 3), np.uint8)
        for place, rows, channel in ((self.bar, slice(8, 16), 0), (self.goal, slice(8), 1)):
            # Two columns share the brightness of a bar between them.
            left, part = int(place), place - int(place)
            image[rows, left, channel] = 255 * (1 - part)
            image[rows, left + 1, channel] = 255 * part
        return image


class Match(gymnasium.Env):
    """Shows a wish for every entry of the action, as the height of a bar; new ones at each step.

    Reward: the mean over the entries of 1 for the wished class, or 1 less the distance to the
    wished number in units of half the range. The best return is :data:`STEPS`.
    """

    observation_space = Box(0, 255, (SIDE, SIDE, 3), np.uint8)

    def __init__(self, space: gymnasium.Space) -> None:
        self.action_space = space

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        self.t = 0
        return self._show(), {}

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict]:
        assert self.action_space.contains(action), action
        given, wished = entries(self.action_space, action), self.wish
        near = [
            1 - abs(a - b) if size == 0 else float(a == b)
            for (size, a), (_, b) in zip(given, wished, strict=True)
        ]
        self.t += 1
        return self._show(), float(np.mean(near)), False, self.t == STEPS, {}

    def _show(self) -> np.ndarray:
        self.action_space.seed(int(self.np_random.integers(2**31)))
        self.wish = entries(self.action_space, self.action_space.sample())
        image, wide = np.zeros((SIDE, SIDE, 3), np.uint8), SIDE // len(self.wish)
        for i, (size, value) in enumerate(self.wish):
            share = (value + 1) / 2 if size == 0 else value / (size - 1)
            column = np.clip(1 + share * (SIDE - 1) - np.arange(SIDE), 0, 1)
            image[:, i * wide : (i + 1) * wide, i % 3] = (255 * column).astype(np.uint8)[:, None]
        return image


def entries(space: gymnasium.Space, action: Any) -> list[tuple[int, float]]:
    """Classes (0: a number, scaled to [-1, 1]) and value of every entry; by hand, for the tests."""
    if isinstance(space, Dict):
        return [e for key, part in space.items() for e in entries(part, action[key])]
    if isinstance(space, Discrete):
        return [(int(space.n), float(action - space.start))]
    if isinstance(space, MultiDiscrete):
        return [(int(n), float(a)) for n, a in zip(space.nvec, action, strict=True)]
    scaled = 2 * (action - space.low) / (space.high - space.low) - 1
    return [(0, float(a)) for a in scaled.ravel()]


def multi() -> gymnasium.Env:
    """Two categories, of three and four classes."""
    return Match(MultiDiscrete([3, 4]))


def mixed() -> gymnasium.Env:
    """A number between -2 and 6, and a category of three classes counted from 1."""
    return Match(Dict(move=Box(-2, 6, (1,), np.float32), press=Discrete(3, start=1)))
