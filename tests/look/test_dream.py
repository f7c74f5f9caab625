"""Films: real frames next to dreamt ones, plots below, and files that open."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

import imageio.v3 as iio
import numpy as np
import pytest
from PIL import Image

from emerald_jax.look.film import Film, film_frames, film_sheet, save_film
from emerald_jax.run.pictures import ACCENT, tint
from tests.films import read_mp4

N, CONTEXT = 8, 3


def film(**changes: object) -> Film:
    rng = np.random.default_rng(0)
    values = dict(
        real=np.full((N, 16, 16, 3), 40, np.uint8),
        dream=np.full((N, 16, 16, 3), 90, np.uint8),
        context=CONTEXT,
        known=6,
        reward=np.where(np.arange(N) < CONTEXT, np.nan, rng.normal(size=N)),
        real_reward=np.zeros(N),
        cont=np.where(np.arange(N) < CONTEXT, np.nan, 0.5),
        confidence=np.ones((N, 4, 4)),
    )
    return Film(**{**values, **changes})


def test_tint_covers_only_uncertain_positions() -> None:
    frame = np.full((16, 16, 3), 100, np.uint8)
    confidence = np.ones((4, 4))
    confidence[0, 1], confidence[2, 3] = 0.0, 0.5
    tinted = tint(frame, confidence)
    orange = np.array(ACCENT)
    np.testing.assert_array_equal(tinted[0, 4], np.round(100 * 0.4 + orange * 0.6))
    np.testing.assert_array_equal(tinted[8, 12], np.round(100 * 0.7 + orange * 0.3))
    changed = (tinted != 100).any(-1)
    assert changed.sum() == 2 * 16
    assert changed[:4, 4:8].all()
    assert changed[8:12, 12:].all()


def test_real_frames_are_left_and_dreamt_ones_right() -> None:
    frames = list(film_frames(film()))
    assert len(frames) == N
    assert {frame.shape for frame in frames} == {frames[0].shape}
    assert all(side % 2 == 0 for side in frames[0].shape[:2])
    middle = [(int(f[120, 100, 0]), int(f[120, 340, 0])) for f in frames]
    assert middle[:6] == [(40, 90)] * 6
    # Frames that do not exist are blank.
    assert [left for left, _ in middle[6:]] == [232, 232]


def test_the_plots_grow_with_the_film() -> None:
    frames = [frame.astype(int) for frame in film_frames(film())]
    top = 224 + 32
    ink = [int((frame[top:] == ACCENT).all(-1).sum()) for frame in frames]
    assert ink[0] == ink[CONTEXT - 1]
    assert ink[CONTEXT + 1 :] == sorted(ink[CONTEXT + 1 :])
    assert ink[-1] > ink[CONTEXT] > ink[0]


def test_uncertain_frames_are_tinted_on_request() -> None:
    unsure = film(confidence=np.zeros((N, 4, 4)))
    plain, tinted = (list(film_frames(unsure, tinted=on))[-1] for on in (False, True))
    assert (plain[120, 340] == 90).all()
    assert tinted[120, 340, 0] > tinted[120, 340, 2] + 50
    # Frames that were read are not tinted: their tokens are known.
    assert (next(film_frames(unsure))[120, 340] == 90).all()


def test_the_sheet_holds_every_step_of_a_short_film() -> None:
    picture = film_sheet(film())
    side = 16 * 4
    # Complete frames by colour: the known real ones, and all dreamt ones.
    for value, count in ((40, 6), (90, N)):
        area = (picture == value).all(-1).sum()
        assert area == count * side * side


@pytest.mark.parametrize("ending", [".mp4", ".gif", ".png"])
def test_files_open_and_hold_every_step(ending: str, tmp_path: Path) -> None:
    path = save_film(film(), tmp_path / "new" / f"dream{ending}", fps=5)
    if ending == ".png":
        assert np.asarray(Image.open(path)).std() > 10
    else:
        shape = next(film_frames(film())).shape
        frames = read_mp4(path, shape) if ending == ".mp4" else iio.imread(path)
        assert len(frames) == N
        assert abs(int(frames[0][120, 100, 0]) - 40) < 12
        assert abs(int(frames[0][120, 340, 0]) - 90) < 12
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_a_failed_film_leaves_the_old_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def two_frames(film: Film, *, tinted: bool) -> Iterator[np.ndarray]:
        yield from itertools.islice(film_frames(film, tinted=tinted), 2)
        raise RuntimeError("the disk is full")

    (tmp_path / "dream.gif").write_bytes(b"old")
    monkeypatch.setattr("emerald_jax.look.film.film_frames", two_frames)
    with pytest.raises(RuntimeError, match="full"):
        save_film(film(), tmp_path / "dream.gif")
    assert (tmp_path / "dream.gif").read_bytes() == b"old"
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"context": 0}, "context 0 must lie between 1 and 7"),
        ({"reward": np.zeros(3)}, "reward has 3 steps, not 8"),
        ({"dream": np.zeros((N, 8, 8, 3), np.uint8)}, "differ"),
    ],
)
def test_inconsistent_films_are_refused(change: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        film(**change)


def test_another_ending_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"must end in \.mp4"):
        save_film(film(), tmp_path / "dream.avi")
