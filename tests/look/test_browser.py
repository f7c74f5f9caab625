"""The page in a real browser: keys move the picture, S its speed, reset works."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.look.browser import CHROMIUM, Page, browsing
from tests.look.fake import FakeSession, serving

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")

#: Column of the fake's bright square, read from the canvas.
SQUARE = (
    "(() => { const c = document.getElementById('dream'); if (!c.width) return -1;"
    "const d = c.getContext('2d').getImageData(0, 5, c.width, 1).data;"
    "for (let x = 0; x < c.width; x++) if (d[4 * x] > 200) return x; return -1; })()"
)


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    with browsing(tmp_path_factory.mktemp("chromium")) as page:
        yield page


def test_a_person_plays(page: Page, tmp_path: Path) -> None:
    session = FakeSession()
    with serving(session, fps=20.0) as (server, said):
        page.open(f"http://127.0.0.1:{server.port}/")
        page.wait("Number(document.body.dataset.frames) > 2")
        assert page.value("document.querySelectorAll('#actions button').length") == 5
        assert page.value("document.getElementById('title').textContent") == "runs/fake"

        # A held key moves the picture until it is released.
        start = page.value(SQUARE)
        page.key("ArrowRight", "keyDown")
        page.wait(f"{SQUARE} !== {start}")
        page.wait("document.getElementById('dreamWords').textContent.includes('move right')")
        page.key("ArrowRight", "keyUp")
        page.wait("document.getElementById('dreamWords').textContent.includes('noop')")
        place = page.value(SQUARE)
        frames = page.value("Number(document.body.dataset.frames)")
        page.wait(f"Number(document.body.dataset.frames) > {frames + 5}")
        assert page.value(SQUARE) == place

        # With S = 3 the fake needs 120 ms per frame: page and terminal report the lower rate.
        page.value(
            "(() => { const s = document.getElementById('steps'); s.value = '3';"
            "s.dispatchEvent(new Event('change')); })()"
        )
        page.wait("document.getElementById('state').textContent.includes('cannot keep up')")
        assert session.steps == 3
        assert any("at S = 3" in line for line in said)

        # Reset from a recorded frame, then with the real environment next to the dream.
        page.value(
            "(() => { const s = document.getElementById('steps'); s.value = '0';"
            "s.dispatchEvent(new Event('change'));"
            "document.getElementById('row').value = 8;"
            "document.getElementById('from').click(); })()"
        )
        page.wait(f"{SQUARE} === 8")
        assert page.value("document.getElementById('realView').hidden") is True
        page.value("document.getElementById('beside').click()")
        page.wait("!document.getElementById('realView').hidden")
        page.wait(f"{SQUARE} === 0")

        # The page sent requests only to this server, and had no errors.
        page.picture(tmp_path / "page.png")
        assert (tmp_path / "page.png").stat().st_size > 10_000
        port = server.port
        assert all(
            url.startswith((f"http://127.0.0.1:{port}/", f"ws://127.0.0.1:{port}/", "data:"))
            for url in page.requests
        ), page.requests
        assert page.problems == []
    page.wait("document.getElementById('state').textContent.startsWith('stopped')")


def test_a_person_steers_with_sliders_and_arrows(page: Page) -> None:
    session = FakeSession(sizes=(0, 0, 3))
    with serving(session, fps=20.0) as (server, _):
        page.open(f"http://127.0.0.1:{server.port}/")
        page.wait("Number(document.body.dataset.frames) > 2")
        assert page.value("document.querySelectorAll('#actions input[type=range]').length") == 2
        assert page.value("document.querySelectorAll('#actions select option').length") == 3
        start = page.value(SQUARE)
        page.key("ArrowRight", "keyDown")
        page.wait(f"{SQUARE} !== {start}")
        page.wait("document.getElementById('entry0').value === '1'")
        page.wait(
            "document.getElementById('dreamWords').textContent.includes('action 1.00, 0.00, 0')"
        )
        page.key("ArrowRight", "keyUp")
        page.wait("document.getElementById('dreamWords').textContent.includes('action 0.00')")
        page.value(
            "(() => { for (const [id, value] of [['entry1', '-0.5'], ['entry2', '2']]) {"
            "const e = document.getElementById(id); e.value = value;"
            "e.dispatchEvent(new Event('input')); } })()"
        )
        page.wait(
            "document.getElementById('dreamWords').textContent.includes('action 0.00, -0.50, 2')"
        )
        assert session.actions[-1] == [0, -0.5, 2]
        assert page.problems == []
