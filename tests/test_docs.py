"""The Python of README and documentation runs as written, page by page, in a folder with a run."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import numpy as np
import pytest

import emerald_jax as ej
from tests.model_cases import little_optimisation

ROOT = Path(__file__).resolve().parents[1]
README = "README.md"
DOCS = tuple(f"docs/{path.name}" for path in sorted((ROOT / "docs").glob("*.md")))
#: Pages with Python. The README shows the lines of the first page.
PAGES = (
    "docs/index.md",
    "docs/settings.md",
    "docs/environments.md",
    "docs/library.md",
    "docs/train.md",
)


def blocks_of(page: str) -> list[str]:
    """The Python blocks of a page."""
    text = (ROOT / page).read_text(encoding="utf-8")
    return re.findall(r"^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


@pytest.fixture
def page(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, run: Path, request: pytest.FixtureRequest
) -> dict:
    """The names that a page's blocks define, run one after another."""
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "quickstart-0").symlink_to(run)
    monkeypatch.chdir(tmp_path)
    # The loop has its own tests; here the settings must be valid.
    monkeypatch.setitem(vars(ej), "train", lambda config: config.validate())
    blocks = blocks_of(request.param)
    assert blocks
    (tmp_path / "page.py").write_text("\n".join(blocks), encoding="utf-8")
    with little_optimisation():
        return runpy.run_path("page.py")


@pytest.mark.parametrize("page", ["docs/index.md"], indirect=True)
def test_five_lines_act_and_imagine(page: dict) -> None:
    assert page["action"].shape == (1,)
    assert len(page["clip"]) == 4
    assert page["dream"].frames.shape == (50, 16, 16, 3)
    assert page["config"].logdir == "runs/mine"


def test_the_readme_shows_lines_of_the_first_page() -> None:
    (lines,) = blocks_of(README)
    first_page = "\n".join(blocks_of("docs/index.md")).splitlines()
    assert set(lines.splitlines()) <= set(first_page)


@pytest.mark.parametrize("page", ["docs/settings.md"], indirect=True)
def test_settings_in_python(page: dict) -> None:
    assert page["config"].model.width == 256


@pytest.mark.parametrize("page", ["docs/environments.md"], indirect=True)
def test_an_environment(page: dict) -> None:
    corridor = page["Corridor"]()
    corridor.reset(seed=0)
    for _ in range(15):
        image, reward, done, cut, info = corridor.step(1)
    assert (reward, done, cut, info) == (1, True, False, {"extra": {"reached": 15}})
    assert image.shape == (16, 64, 3)


@pytest.mark.parametrize("page", ["docs/library.md"], indirect=True)
def test_the_library(page: dict) -> None:
    assert page["forced"].actions.tolist() == 8 * [0]
    c = page["config"].model
    assert page["decoded"].z.shape == (2, c.positions, c.groups)
    trajectory = page["trajectory"]
    assert trajectory.state.shape == (16, 5, 2)
    last = 0.9 * trajectory.state[-2] + trajectory.action[-1][:, None]
    np.testing.assert_allclose(trajectory.state[-1], last, rtol=1e-6)


@pytest.mark.parametrize("page", ["docs/train.md"], indirect=True)
def test_a_checkpoint_without_the_package(page: dict, run: Path) -> None:
    """``tests/run/test_weights.py`` does so in a process that never imports the package."""
    assert page["metadata"]["run"]["env_steps"] > 0
    assert page["actor"]
    spec = ej.load(run).spec
    assert page["rows"]["image"].shape[2:] == spec.image_shape


def test_no_page_is_forgotten() -> None:
    assert {page for page in DOCS if blocks_of(page)} == set(PAGES)


def test_the_readme_is_short() -> None:
    text = (ROOT / README).read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 120
    assert len(text.split()) <= 1100
    for line in text.splitlines():
        assert len(re.sub(r"https?://\S+", "", line)) <= 100, line


# The cells of differences.md are sentences.
@pytest.mark.parametrize("page", [README, *(p for p in DOCS if p != "docs/differences.md")])
def test_tables_have_short_cells(page: str) -> None:
    for line in _readable(page):
        if line.startswith("|"):
            for cell in re.split(r"(?<!\\)\|", line.strip())[1:-1]:
                assert len(cell.strip()) <= 60, cell


@pytest.mark.parametrize("page", [README, "CHANGELOG.md", *DOCS])
def test_links_lead_to_files_and_headings(page: str) -> None:
    text = "\n".join(_readable(page))
    for target in map("".join, re.findall(r"\]\(([^)\s]+)\)|src=\"([^\"]+)\"", text)):
        if re.match(r"https?:", target):
            continue
        name, _, anchor = target.partition("#")
        path = ((ROOT / page).parent / name).resolve() if name else ROOT / page
        assert path.exists(), target
        assert not anchor or anchor in _anchors(path.relative_to(ROOT).as_posix()), target


def _readable(page: str) -> list[str]:
    """The lines of a page outside its code blocks."""
    text = (ROOT / page).read_text(encoding="utf-8")
    return re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE).splitlines()


def _anchors(page: str) -> set[str]:
    """The anchors of a page's headings, as MkDocs makes them."""
    headings = [x.lstrip("#").strip() for x in _readable(page) if re.match(r"#+ ", x)]
    plain = (re.sub(r"[^\w\s-]", "", heading).strip().lower() for heading in headings)
    return {re.sub(r"[-\s]+", "-", heading) for heading in plain}
