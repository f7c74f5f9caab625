"""Pictures: pixels stay exact, the border stands where imagination starts."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from emerald_jax.look.figures import curve_figure, loss_series, rolling_mean, save
from emerald_jax.run.pictures import ACCENT, enlarge, enlargement, report_strip


def frames(batch: int, length: int, size: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (batch, length, size, size, 3), dtype=np.uint8)


def count_of(strip: np.ndarray, frame: np.ndarray) -> int:
    """How often ``frame`` stands in ``strip``, pixel for pixel."""
    windows = np.lib.stride_tricks.sliding_window_view(strip[..., 0], frame.shape[:2])
    places = np.argwhere((windows[:, :, ::9, ::9] == frame[::9, ::9, 0]).all((-2, -1)))
    height, width = frame.shape[:2]
    return sum((strip[y : y + height, x : x + width] == frame).all() for y, x in places)


@pytest.mark.parametrize("size", [16, 64])
def test_every_frame_stands_in_the_strip_unsmoothed(size: int) -> None:
    length, context = 4, 2
    real, recon, dream = (frames(1, length, size, seed) for seed in range(3))
    strip = report_strip(real, recon, dream, context)
    assert strip.dtype == np.uint8
    big = [enlarge(x[0], enlargement(size, size)) for x in (real, recon, dream)]
    for step in range(length):
        seen = step < context
        assert count_of(strip, big[0][step]) == 1
        # A frame the model had seen stands twice: decoded, and where imagination is yet to start.
        assert count_of(strip, big[1][step]) == (2 if seen else 1)
        assert count_of(strip, big[2][step]) == (0 if seen else 1)


def test_the_error_row_is_the_absolute_difference() -> None:
    real = np.full((1, 3, 64, 64, 3), 10, np.uint8)
    dream = np.full((1, 3, 64, 64, 3), 30, np.uint8)
    strip = report_strip(real, real, dream, 1)
    difference = np.full((64, 64, 3), 20, np.uint8)
    assert count_of(strip, difference) == 2


def test_a_dream_may_hold_only_what_was_imagined() -> None:
    real, recon, dream = (frames(2, 5, 16, seed) for seed in range(3))
    whole = report_strip(real, recon, dream, 2)
    np.testing.assert_array_equal(report_strip(real, recon, dream[:, 2:], 2), whole)


def test_one_sequence_needs_no_batch() -> None:
    real, recon, dream = (frames(1, 5, 16, seed) for seed in range(3))
    whole = report_strip(real, recon, dream, 2)
    np.testing.assert_array_equal(report_strip(real[0], recon[0], dream[0], 2), whole)


def test_the_border_moves_with_the_context() -> None:
    black = np.zeros((1, 6, 16, 16, 3), np.uint8)

    def border(context: int) -> int:
        columns = (report_strip(black, black, black, context) == ACCENT).all(-1).mean(0)
        return int(columns.argmax())

    step = 16 * enlargement(16, 16) + 2
    assert border(3) - border(1) == 2 * step


def test_more_sequences_make_a_taller_picture() -> None:
    one, three = (frames(batch, 4, 16) for batch in (1, 3))
    small, tall = report_strip(one, one, one, 2), report_strip(three, three, three, 2)
    assert tall.shape[1] == small.shape[1]
    assert tall.shape[0] > 2 * small.shape[0]


@pytest.mark.parametrize(("size", "factor"), [(16, 3), (8, 6), (48, 1), (64, 1), (20, 3)])
def test_small_frames_are_enlarged_by_whole_factors(size: int, factor: int) -> None:
    assert enlargement(size, size) == factor


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"context": 0}, "context 0 must lie between 1 and 3"),
        ({"context": 4}, "context 4 must lie between 1 and 3"),
        ({"recon": frames(1, 3, 16)}, "recon is"),
        ({"dream": frames(1, 3, 16)}, "dream is"),
        ({"real": frames(1, 4, 16)[..., :2]}, "real is"),
        ({"dream": frames(1, 4, 16).astype(np.float32)}, "dream is float32"),
    ],
)
def test_what_does_not_fit_is_refused(change: dict, message: str) -> None:
    arguments = {name: frames(1, 4, 16) for name in ("real", "recon", "dream")} | {"context": 2}
    with pytest.raises(ValueError, match=message):
        report_strip(**{**arguments, **change})


def write_rows(path: Path, rows: list[dict]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_learning_curve(tmp_path: Path) -> None:
    write_rows(tmp_path / "episodes.jsonl", [{"step": 9 * i, "score": i % 3} for i in range(200)])
    losses = [{"step": i, "loss/image": 5.0 / (i + 1), "loss/cont": None} for i in range(50)]
    write_rows(tmp_path / "metrics.jsonl", losses)
    path = save(curve_figure(tmp_path), tmp_path / "pictures" / "curve.png")
    image = np.asarray(Image.open(path))
    assert image.shape[1] > image.shape[0] > 300
    assert image[..., :3].std() > 10  # something was drawn


def test_a_run_without_rows_has_no_curve(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="has no curve yet"):
        save(curve_figure(tmp_path), tmp_path / "curve.png")


def test_rolling_mean() -> None:
    # windows: 1; 1 2; 2 3; 3 4
    np.testing.assert_allclose(rolling_mean(np.array([1, 2, 3, 4]), 2), [1, 1.5, 2.5, 3.5])


def test_loss_series_leaves_out_what_is_missing() -> None:
    rows = [{"step": 1, "loss/a": 1.0}, {"step": 2, "loss/a": None}, {"step": 3, "loss/a": 3.0}]
    series = loss_series([*rows, {"step": 4, "rate/b": 1.0}])
    assert list(series) == ["a"]
    np.testing.assert_array_equal(series["a"], [[1, 3], [1, 3]])
