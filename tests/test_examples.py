"""Every example runs, at the smallest sizes; those that train are marked slow: they compile."""

from __future__ import annotations

import runpy
import sys
from collections.abc import Iterator
from pathlib import Path

import imageio.v3 as iio
import numpy as np
import pytest
from PIL import Image

from emerald_jax.envs import registry
from emerald_jax.run.directory import read_rows
from tests.model_cases import little_optimisation

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"


@pytest.fixture(scope="module", autouse=True)
def _quickly() -> Iterator[None]:
    """Programs of this file are compiled with little optimisation."""
    with little_optimisation():
        yield


@pytest.fixture
def example(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """Run an example as ``python examples/NAME.py ARGUMENTS``; returns its output."""

    def call(name: str, *arguments: object) -> str:
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
        runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")
        return capsys.readouterr().out

    return call


def test_none_is_forgotten() -> None:
    source = Path(__file__).read_text()
    for path in EXAMPLES.glob("*.py"):
        assert f'example("{path.stem}"' in source, f"no test runs {path.name}"


def test_act(example, run: Path) -> None:
    # Catch lasts nine steps, and its first frame is marked: three episodes end in thirty steps.
    out = example("act", run, "--steps", 30)
    assert out.count("an episode of 9 steps returned") == 3


def test_dream_video(example, run: Path, tmp_path: Path) -> None:
    out = example("dream_video", run, "--horizon", 5)
    assert "frames (5, 16, 16, 3), tokens (5, 4, 4, 3)" in out
    assert len(iio.imread(tmp_path / "dream.gif")) == 9


def test_evaluate(example, run: Path) -> None:
    lines = example("evaluate", run, "--episodes", 2).splitlines()
    assert [line.split()[0] for line in lines] == ["4", "9"]
    assert all(-1 <= float(line.split()[-1]) <= 1 for line in lines)


@pytest.mark.slow
def test_own_environment(example, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_OWN", {})
    out = example("own_environment", "--preset", "tiny", "--steps", 150)
    assert "updates, mean return" in out
    rows = read_rows(tmp_path / "runs" / "reach" / "metrics.jsonl")
    losses = [row["loss/image"] for row in rows if "loss/image" in row]
    assert losses
    assert np.isfinite(losses).all()


@pytest.mark.slow
def test_video_model(example, tmp_path: Path) -> None:
    options = ("--preset", "tiny", "--updates", 3)
    out = example("video_model", *options)
    assert "pixel error after 3 updates" in out
    assert np.asarray(Image.open(tmp_path / "next.png")).std() > 10
    frames = np.random.default_rng(0).integers(0, 256, (20, 16, 16, 3), dtype=np.uint8)
    np.savez(tmp_path / "film.npz", allow_pickle=False, image=frames)
    assert "error of the imagined" in example("video_model", *options, "--video", "film.npz")


@pytest.mark.slow
def test_imagine(example, tmp_path: Path) -> None:
    out = example("imagine", "--preset", "tiny", "--updates", 2)
    assert "pixel error after 2 updates" in out
    assert np.asarray(Image.open(tmp_path / "dream.png")).std() > 10
