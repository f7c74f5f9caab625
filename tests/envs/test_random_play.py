"""The table of random play says what was measured, and judges it as it says it does."""

import importlib.util
import json
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("random_play", ROOT / "benchmarks/random_play.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def rows():
    return json.loads((ROOT / "benchmarks/results/random_play.json").read_text())["rows"]


def test_agreement_by_hand(script):
    # Pong is published as -20.7. A standard error of 0.1 over 120 episodes is 0.2 over their 30:
    # together sqrt(0.01 + 0.04) = 0.2236, times 1.96 is 0.438, and 0.05 for rounding.
    row = {"standard_error": 0.1, "episodes": 120}
    for off, agrees in ((0.48, True), (0.49, False)):
        found = script.against_atari("atari:Pong", {**row, "return": -20.7 + off})
        assert found == {"published": -20.7, "agrees": agrees}
    assert script.against_atari("atari:Adventure", row) == {}
    assert script.against_atari("gymnax:Pong", row) == {}


def test_the_documentation_shows_what_was_measured(script, rows):
    text = (ROOT / "docs/results.md").read_text()
    for row in rows:
        if row["env"].startswith("atari:"):
            judged = script.against_atari(row["env"], row)
            assert judged == {name: row[name] for name in judged}
            verdict = "yes" if row["agrees"] else "**no**"
        line = f"| {row['return']:.2f} | {row['standard_error']:.2f} |"
        slow = "frame_skip" in row["settings"]
        lines = [x for x in text.splitlines() if x.startswith(f"| {row['env']}") and line in x]
        lines = [x for x in lines if ("6th frame" in x) == slow]
        assert len(lines) == 1, row["env"]
        if row["env"].startswith("atari:"):
            assert lines[0].endswith(f"| {row['published']} | {verdict} |")
    games = {row["env"] for row in rows}
    assert games == set(script.NAMES)
