"""Several seeds: their mean, and a band that contains them all."""

from __future__ import annotations

import numpy as np

from experiments.evidence import seeds_figure


def test_mean_and_band_cover_the_steps_of_all_seeds():
    seeds = {
        "a": (np.array([0.0, 100.0]), np.array([0.0, 10.0])),
        "b": (np.array([20.0, 60.0]), np.array([4.0, 8.0])),
    }
    (axis,) = seeds_figure(seeds, title="return", goal=0.9).axes
    (mean,) = (line for line in axis.lines if line.get_label() == "mean of 2 seeds")
    steps, values = mean.get_data()
    assert (steps[0], steps[-1]) == (20, 60)
    # a is steps / 10, b is 2 + steps / 10.
    np.testing.assert_allclose(values, 1 + steps / 10)
    (band,) = axis.collections
    x, y = band.get_paths()[0].vertices.T
    np.testing.assert_allclose((y - x / 10).min(), 0, atol=1e-9)
    np.testing.assert_allclose((y - x / 10).max(), 2, atol=1e-9)
