"""A film holds the first episode of environment 0, frame by frame."""

import numpy as np

from emerald_jax.envs import VectorStep
from emerald_jax.look.film import EpisodeFilm
from tests.films import read_mp4


def record(value, last):
    image = np.zeros((2, 16, 16, 3), np.uint8)
    image[0] = value
    no = np.zeros(2, bool)
    return VectorStep(image, no, no, no, np.array([last, True]), no)


def test_a_film_ends_with_the_first_episode(tmp_path):
    path = tmp_path / "episode.mp4"
    with EpisodeFilm(path) as film:
        for value, last in [(10, False), (120, False), (230, True), (60, False), (60, True)]:
            film(record(value, last))
    frames = read_mp4(path, (256, 256, 3)).astype(int)
    assert len(frames) == 3
    # Video compression keeps a plain colour to a few levels.
    assert [abs(f.mean() - v) < 8 for f, v in zip(frames, (10, 120, 230), strict=True)] == [
        True
    ] * 3


def test_nothing_is_written_without_frames(tmp_path):
    with EpisodeFilm(tmp_path / "episode.mp4"):
        pass
    assert not list(tmp_path.iterdir())
