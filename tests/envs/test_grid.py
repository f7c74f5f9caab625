import numpy as np
import pytest

from emerald_jax.envs import EnvError
from emerald_jax.envs.gymnax import check_grid, palette, render_grid


def test_colours_are_distinct_and_fixed():
    colours = palette(20)
    assert (palette(4) == colours[:4]).all()
    distance = np.abs(colours[:, None] - colours[None]).sum(-1) + 9 * np.eye(20)
    assert distance.min() > 0.1


def test_each_axis_is_enlarged_by_a_whole_factor_and_centred():
    # 2 x 3 cells in 9 pixels: factors 4 and 3, so 8 x 9 pixels with borders of 0 above, 1 below.
    grid = np.array([[1, 0, 0.5], [0, 1, 0]])
    image = np.asarray(render_grid(grid, 9))
    assert image.shape == (9, 9, 3)
    assert image.dtype == np.uint8
    inner = np.array([[255, 0, 128], [0, 255, 0]], np.uint8).repeat(4, 0).repeat(3, 1)
    assert (image[:8, :, 0] == inner).all()
    assert image.sum() == 3 * int(inner.astype(int).sum())


def test_one_channel_shows_its_colour_and_several_their_mean():
    grid = np.zeros((1, 3, 3), np.float32)
    grid[0, 0, 1] = grid[0, 1, 2] = grid[0, 2, 1] = grid[0, 2, 2] = 1
    image = np.asarray(render_grid(grid, 3))[1]
    colours = palette(3)
    expected = [colours[1], colours[2], (colours[1] + colours[2]) / 2]
    assert np.abs(image - 255 * np.array(expected)).max() <= 0.5


@pytest.mark.parametrize(
    ("shape", "message"), [((4,), "not a grid"), ((), "not a grid"), ((9, 2), "does not fit")]
)
def test_what_cannot_be_drawn_is_refused(shape, message):
    with pytest.raises(EnvError, match=message):
        check_grid("x", shape, 8)
