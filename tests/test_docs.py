"""The Python of the documentation runs as it is written, page by page, in a folder with a run."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import numpy as np
import pytest

import emerald_jax as ej
from tests.model_cases import little_optimisation

ROOT = Path(__file__).resolve().parents[1]
#: ``checkpoints.md`` is left out: test_weights.py runs such a script in a process of its own.
PAGES = ("docs/index.md", "docs/settings.md", "docs/environments.md", "docs/extend.md")


def blocks_of(page: str) -> list[str]:
    """The Python blocks of a page."""
    text = (ROOT / page).read_text(encoding="utf-8")
    return re.findall(r"^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


@pytest.fixture
def page(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, run: Path, request: pytest.FixtureRequest
) -> dict:
    """The names that a page's blocks leave behind, run one after another."""
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "quickstart-0").symlink_to(run)
    monkeypatch.chdir(tmp_path)
    # Training is what the loop's tests are for; here its settings must be good ones.
    monkeypatch.setitem(vars(ej), "train", lambda config: config.validate())
    blocks = blocks_of(request.param)
    assert blocks
    (tmp_path / "page.py").write_text("\n".join(blocks), encoding="utf-8")
    with little_optimisation():
        return runpy.run_path("page.py")


@pytest.mark.parametrize("page", PAGES[:1], indirect=True)
def test_five_lines_act_and_imagine(page: dict) -> None:
    assert page["action"].shape == (1,)
    assert len(page["clip"]) == 4
    assert page["dream"].frames.shape == (50, 16, 16, 3)
    assert page["config"].logdir == "runs/mine"


@pytest.mark.parametrize("page", PAGES[1:2], indirect=True)
def test_settings_in_python(page: dict) -> None:
    assert page["config"].model.width == 256


@pytest.mark.parametrize("page", PAGES[2:3], indirect=True)
def test_an_environment(page: dict) -> None:
    corridor = page["Corridor"]()
    corridor.reset(seed=0)
    for _ in range(15):
        image, reward, done, cut, info = corridor.step(1)
    assert (reward, done, cut, info) == (1, True, False, {"extra": {"reached": 15}})
    assert image.shape == (16, 64, 3)


@pytest.mark.parametrize("page", PAGES[3:], indirect=True)
def test_an_own_model_and_policy(page: dict) -> None:
    trajectory = page["trajectory"]
    assert trajectory.state.shape == (16, 5, 2)
    last = 0.9 * trajectory.state[-2] + trajectory.action[-1][:, None]
    np.testing.assert_allclose(trajectory.state[-1], last, rtol=1e-6)


def test_the_readme(tmp_path: Path) -> None:
    loaded, functions = blocks_of("README.md")
    # Five lines as on the first page, which runs above.
    first_page = "\n".join(blocks_of(PAGES[0]))
    for part in loaded.strip().split("\n\n"):
        assert part in first_page
    (tmp_path / "page.py").write_text(f"{loaded.splitlines()[0]}\n{functions}", encoding="utf-8")
    with little_optimisation():
        page = runpy.run_path(str(tmp_path / "page.py"))
    c = page["config"].model
    assert page["decoded"].z.shape == (2, c.positions, c.groups)


def test_no_page_is_forgotten() -> None:
    with_code = {
        f"docs/{path.name}"
        for path in (ROOT / "docs").glob("*.md")
        if "```python" in path.read_text(encoding="utf-8")
    }
    assert with_code == {*PAGES, "docs/checkpoints.md"}
