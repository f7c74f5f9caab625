"""The Python of README and documentation runs as written, page by page, in a folder with a run."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

import emerald_jax as ej
from emerald_jax.run.checkpoint import Store
from tests.model_cases import little_optimisation
from tests.run_cases import catch_config, record

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
    assert page["dream"].actions.tolist() == 5 * [0]
    assert page["observation"].shape == page["agent"].spec.image_shape
    c = page["config"].model
    assert page["decoded"].z.shape == (2, c.positions, c.groups)
    trajectory = page["trajectory"]
    assert trajectory.state.shape == (16, 5, 2)
    last = 0.9 * trajectory.state[-2] + trajectory.action[-1][:, None]
    np.testing.assert_allclose(trajectory.state[-1], last, rtol=1e-6)


def test_a_checkpoint_without_the_package(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """``tests/run/test_weights.py`` reads one in a process that never imports the package."""
    replay = record(tmp_path / "recorded", rows=8)
    metadata = {"env_steps": 16, "config": catch_config().to_dict()}
    with Store(tmp_path / "runs" / "quickstart-0") as store:
        tree = {"state": {"params": {"actor": {"bias": jnp.arange(3.0)}}}}
        assert store.save(4, tree, metadata, replay)
        assert store.wait()
    monkeypatch.chdir(tmp_path)
    Path("page.py").write_text("\n".join(blocks_of("docs/train.md")), encoding="utf-8")
    page = runpy.run_path("page.py")
    assert capsys.readouterr().out == "16 gymnax:Catch-bsuite\n"
    assert page["actor"]["bias"].tolist() == [0, 1, 2]
    assert page["rows"]["image"].shape == (8, 2, 16, 16, 3)


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
