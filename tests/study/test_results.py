"""Intervals, tables and figures from the numbers of cells."""

from __future__ import annotations

import shutil
import subprocess
from functools import partial

import numpy as np
import pytest
from PIL import Image

from benchmarks.suite import machine
from experiments.study.results import (
    bootstrap,
    difference_table,
    draw_figure,
    means,
    points,
    steps,
    sweep,
    table,
)


def test_bootstrap_by_theory():
    # One seed: the interval of a mean of 400 values of standard deviation 1 is ± 1.96 / 20.
    x = np.random.default_rng(0).normal(size=400)
    found = bootstrap([x])
    assert found.value == pytest.approx(x.mean())
    assert found.low == pytest.approx(x.mean() - 1.96 * x.std() / 20, abs=0.02)
    assert found.high == pytest.approx(x.mean() + 1.96 * x.std() / 20, abs=0.02)


def test_seeds_that_differ_widen_the_interval():
    # Windows agree, seeds do not: the interval spans the seeds however many windows there are.
    found = bootstrap([np.full(1000, v) for v in (0.0, 1.0, 2.0)])
    assert (found.value, found.low, found.high) == (1.0, 0.0, 2.0)
    constant = bootstrap([np.full(10, 3.0)] * 4)
    assert (constant.value, constant.low, constant.high) == (3.0, 3.0, 3.0)


RESULTS = {
    "one": {"error": [np.full((4, 3), 0.25), np.full((4, 3), 0.25)], "speed": [np.full(2, 1234.5)]},
    "two": {"error": [np.arange(12.0).reshape(4, 3)] * 2},
}


def test_table_by_hand():
    made = table(RESULTS, {"error": "the error", "nothing": "absent everywhere", "speed": "us"})
    assert made.columns == ("", "the error", "us")
    assert made.rows[0] == ("one", "0.2500 [0.2500, 0.2500]", "1234 [1234, 1234]")
    assert made.rows[1][1].startswith("5.500 [")
    assert made.rows[1][2] == "–"
    assert "1 to 2 seeds" in made.notes[0]
    alone = table({"one": {"speed": [np.ones(3)]}}, {"speed": "us"})
    assert "over held-out windows alone" in alone.notes[0]


def test_what_all_windows_share_is_no_difference():
    # Windows differ by far more than rows; paired, only the difference of the rows is left.
    rng = np.random.default_rng(0)
    windows = [rng.normal(0, 10, (50, 3)) for _ in range(2)]
    results = {"one": {"error": windows}, "two": {"error": [x + 0.5 for x in windows]}}
    made = difference_table(results, {"error": "the error", "nothing": "absent"}, "one")
    assert made.columns == ("", "the error")
    ((label, text),) = made.rows
    assert label == "two"
    assert np.allclose([float(x) for x in text.replace("[", "").strip("]").split(" ")[:1]], 0.5)
    low, high = text.split("[")[1].strip("]").split(", ")
    assert low == high == text.split(" ")[0]


def test_means_by_hand():
    found = means(RESULTS)
    assert found["two"]["error"]["mean"] == [4.5, 5.5, 6.5]
    assert found["two"]["error"]["seeds"] == [5.5, 5.5]
    assert found["one"]["error"]["low"] == [0.25] * 3
    assert found["two"]["error"]["whole"]["mean"] == 5.5
    assert found["one"]["error"]["whole"]["high"] == 0.25
    assert found["one"]["speed"]["mean"] == 1234.5


def test_figures_are_drawn(tmp_path):
    error, found = {"error": "error"}, means(RESULTS)
    drawn = draw_figure(steps, found, error, tmp_path / "a" / "curves.png")
    dots = draw_figure(points, found, error | {"speed": "us"}, tmp_path / "points.png")
    swept = {f"{name}, k = {k}": found["two"] for name in ("x", "y, z") for k in (4, 16)}
    lines = draw_figure(partial(sweep, swept="k"), swept, error, tmp_path / "sweep.png")
    for path in (drawn, dots, lines):
        with Image.open(path) as image:
            assert np.asarray(image.convert("L")).std() > 5


def git(folder, *arguments):
    """Git, with an identity of its own."""
    who = ["-c", "user.name=n", "-c", "user.email=n@localhost"]
    subprocess.run(["git", "-C", str(folder), *who, *arguments], check=True, capture_output=True)


@pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")
def test_commit_only_where_the_package_is_tracked(tmp_path):
    package = tmp_path / "package"
    package.mkdir()
    assert machine.commit(package) == "", "no repository"
    (package / "__init__.py").touch()
    (tmp_path / "README").touch()
    git(tmp_path, "init", "-q")
    git(tmp_path, "add", "README")
    git(tmp_path, "commit", "-qm", "something else")
    assert machine.commit(package) == "", "an installed copy below it"
    git(tmp_path, "add", "package")
    git(tmp_path, "commit", "-qm", "the package")
    clean = machine.commit(package)
    head = subprocess.check_output(["git", "-C", str(tmp_path), "rev-parse", "HEAD"], text=True)
    assert clean.startswith(" at ")
    assert head.startswith(clean.removeprefix(" at "))
    (tmp_path / "README").write_text("changed")
    assert machine.commit(package) == clean, "not the package's own"
    (package / "new.py").touch()
    assert machine.commit(package) == f"{clean}-dirty"
    deep = tmp_path / "lib" / "package"
    deep.mkdir(parents=True)
    (deep / "__init__.py").touch()
    git(tmp_path, "add", "lib")
    assert machine.commit(deep) == "", "a copy in another repository"
