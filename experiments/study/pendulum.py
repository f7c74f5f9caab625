"""Gymnasium's Pendulum as images: ``--env experiments.study.pendulum:make_env``.

The picture that Gymnasium draws is 500 pixels wide, mostly white. Only its middle is used, which
the pendulum fills: in the whole picture, reduced to 16 pixels, the pendulum is so faint that the
world model represented nothing but the background for the first 700 updates.
"""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
from gymnasium.spaces import Box

#: The part of the picture that the pendulum can reach, in pixels.
_MIDDLE = slice(122, 378)


class Middle(gymnasium.ObservationWrapper):
    """Observes the middle of the rendered picture, `[256, 256, 3]` uint8."""

    def __init__(self, env: gymnasium.Env) -> None:
        super().__init__(env)
        self.observation_space = Box(0, 255, (256, 256, 3), np.uint8)

    def observation(self, observation: Any) -> np.ndarray:
        """The picture instead of the angle and the speed."""
        del observation
        return self.env.render()[_MIDDLE, _MIDDLE]


def make_env() -> gymnasium.Env:
    """Pendulum-v1 with images."""
    return Middle(gymnasium.make("Pendulum-v1", render_mode="rgb_array"))
