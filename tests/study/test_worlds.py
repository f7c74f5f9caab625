"""World models that are trained without an agent."""

from __future__ import annotations

import numpy as np

from experiments.study.probe import NUM_ACTIONS, probe_replay
from experiments.study.worlds import train_world
from tests.model_cases import IMAGE, small_config


def test_the_mean_of_the_images_is_learned():
    config = small_config(model={"center": True})
    replay = probe_replay(3, 400, IMAGE, seed=0)
    center = train_world(config, replay, NUM_ACTIONS, updates=3, seed=0).params["center"]
    assert center["batches"] == 3
    expected = replay.columns["image"].mean((0, 1)) / 255 - 0.5
    np.testing.assert_allclose(center["mean"], expected, atol=0.1)
    assert np.abs(expected).max() > 0.3
