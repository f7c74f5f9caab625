"""Train on your own environment: any Gymnasium environment with images.

python examples/own_environment.py --logdir runs/reach

The command line does the same: ``emerald-jax train quickstart --env own_environment:Reach``.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import gymnasium
import numpy as np
import tyro
from gymnasium.spaces import Box, Discrete

import emerald_jax as ej
from emerald_jax.envs import register

SIDE, MOVES = 8, np.array([(0, 0), (0, 1), (0, -1), (1, 0), (-1, 0)])


class Reach(gymnasium.Env):
    """A dot, a square and five moves; reward 1 at the square, at most thirty steps."""

    observation_space = Box(0, 255, (2 * SIDE, 2 * SIDE, 3), np.uint8)
    action_space = Discrete(len(MOVES))

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple:
        """Put dot and square at different places."""
        super().reset(seed=seed)
        places = self.np_random.permutation(SIDE * SIDE)[:2]
        self.dot, self.square = (np.array(divmod(int(p), SIDE)) for p in places)
        self.left = 30
        return self._image(), {}

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Move the dot."""
        self.dot = np.clip(self.dot + MOVES[action], 0, SIDE - 1)
        self.left -= 1
        reached = bool((self.dot == self.square).all())
        return self._image(), float(reached), reached, self.left == 0, {}

    def _image(self) -> np.ndarray:
        image = np.zeros((SIDE, SIDE, 3), np.uint8)
        image[tuple(self.square)] = (60, 60, 220)
        image[tuple(self.dot)] = (255, 220, 40)
        return image.repeat(2, axis=0).repeat(2, axis=1)


def main(logdir: str = "runs/reach", preset: str = "quickstart", steps: int = 30_000) -> None:
    """Train an agent for ``steps`` steps."""
    register("reach", Reach)
    config = ej.get_preset(preset)
    envs = replace(config.envs, workers="inline")
    config = replace(config, env="reach", logdir=logdir, steps=steps, devices=1, envs=envs)
    config.validate()
    result = ej.train(config)
    print(f"{result.updates} updates, mean return {result.score:.2f}")


if __name__ == "__main__":
    tyro.cli(main)
