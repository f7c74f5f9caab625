"""Train on an environment of your own: anything that is a Gymnasium environment with images.

Here a dot must be steered onto a square. The same works from the command line, in this folder:
``emerald-jax train quickstart --env own_environment:Reach``.

    python examples/own_environment.py --logdir runs/reach
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from typing import Any

import gymnasium
import numpy as np
from gymnasium.spaces import Box, Discrete

import emerald_jax as ej
from emerald_jax.envs import register

SIDE, MOVES = 8, np.array([(0, 0), (0, 1), (0, -1), (1, 0), (-1, 0)])


class Reach(gymnasium.Env):
    """A dot, a square, five moves; reward 1 for reaching it, and thirty steps of time."""

    observation_space = Box(0, 255, (2 * SIDE, 2 * SIDE, 3), np.uint8)
    action_space = Discrete(len(MOVES))

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple:
        """Put dot and square on different places."""
        super().reset(seed=seed)
        places = self.np_random.permutation(SIDE * SIDE)[:2]
        self.dot, self.square = (np.array(divmod(int(p), SIDE)) for p in places)
        self.left = 30
        return self._image(), {}

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Move the dot."""
        self.dot = np.clip(self.dot + MOVES[action], 0, SIDE - 1)
        self.left -= 1
        there = bool((self.dot == self.square).all())
        return self._image(), float(there), there, self.left == 0, {}

    def _image(self) -> np.ndarray:
        image = np.zeros((SIDE, SIDE, 3), np.uint8)
        image[tuple(self.square)] = (60, 60, 220)
        image[tuple(self.dot)] = (255, 220, 40)
        return image.repeat(2, axis=0).repeat(2, axis=1)


def main() -> None:
    """Run the example."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--logdir", default="runs/reach")
    parser.add_argument("--preset", default="quickstart")
    parser.add_argument("--steps", type=int, default=30_000)
    options = parser.parse_args()

    register("reach", Reach)
    preset = ej.get_preset(options.preset)
    config = replace(
        preset,
        env="reach",
        logdir=options.logdir,
        steps=options.steps,
        devices=1,
        envs=replace(preset.envs, workers="inline"),
    )
    config.validate()
    result = ej.train(config)
    print(f"{result.updates} updates, mean return {result.score:.2f}")


if __name__ == "__main__":
    main()
