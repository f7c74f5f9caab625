"""Tables and figures from any set of reports."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg

from benchmarks.suite.figures import (
    bars_figure,
    decode_figure,
    draw_figures,
    growth_lines,
    split_figure,
)
from benchmarks.suite.report import PARTS, compare_reports, read_report, report_tables
from emerald_jax.config import ConfigError
from tests.benchmarks.report_cases import make_report, make_row

ROOT = Path(__file__).parents[2]


def trained():
    row = make_row([0.5], "train", dtype="float32")
    row.facts.update({f"{part}_seconds": 0.4 for part in PARTS})
    return row


def test_a_table_per_benchmark():
    report = make_report(make_row([1234.5, 1300, 1200], S=8), trained())
    report.left_out.append("imagination S=9: no")
    text = report_tables([report])
    assert "1,234" in text
    assert "1,200 - 1,300 (3)" in text
    assert "50.0 %" in text
    assert "2 cores of abacus, jax 0.10.2" in text
    assert "left out: imagination S=9: no" in text
    assert "machine" not in text


def test_several_machines_have_a_column():
    text = report_tables([make_report(make_row([1])), make_report(make_row([2]), cores=64)])
    assert text.count("64 cores of abacus") == 2  # the heading and the row
    assert "machine" in text


def test_markdown():
    text = report_tables([make_report(make_row([1]))], markdown=True)
    lines = text.split("### imagination\n\n")[1].splitlines()[:3]
    assert len({line.count("|") for line in lines}) == 1
    assert set(lines[1]) == {"|", " ", "-"}


def test_growth_is_drawn_over_one_axis_at_a_time():
    # tiny's own point is S = 3, H = 3, 8 starts; the last row is off every line through it.
    points = ((4, 1, 8), (2, 3, 8), (2.5, 3, 8), (1, 3, 16), (1, 8, 16))
    rows = [make_row([v], S=s, H=3, starts=n) for v, s, n in points]
    pairs = [(make_report(*rows), row) for row in rows]
    assert list(growth_lines(pairs, "S").values()) == [[(1, 0.25), (3, 0.45)]]
    assert list(growth_lines(pairs, "starts").values()) == [[(8, 0.45), (16, 1.0)]]
    assert growth_lines(pairs, "H") == {}


def test_figures_are_written(tmp_path):
    report = make_report(make_row([1], S=1, H=3), make_row([2], S=3, H=3), trained())
    paths = draw_figures([report], tmp_path)
    assert [path.name for path in paths] == ["imagination.png", "train.png"]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in paths)
    assert draw_figures([make_report()], tmp_path) == []
    complete = make_row([1], "train", dtype="float32")  # not measured in parts
    assert draw_figures([make_report(complete)], tmp_path) == []
    with pytest.raises(ConfigError, match="cannot be written"):
        draw_figures([report], tmp_path / "none")


def decoded(values, prior, **case):
    row = make_row(values, "decode", prior=prior, dtype="float32", **case)
    return dataclasses.replace(row, unit="latents/s")


def test_decoding_is_drawn_over_latents_at_once():
    rows = [decoded([9], "maskgit", batch=16), decoded([4, 5, 8], "maskgit", batch=4)]
    rows += [decoded([6], "linear", batch=4), make_row([2], "decode", prior="both", batch=4)]
    figure = decode_figure([(make_report(), row) for row in rows])
    drawn = {bars.get_label(): bars for bars in figure.axes[0].containers}
    assert sorted(drawn) == ["linear, tiny, float32", "maskgit S = 3, tiny, float32"]
    line, _, (whiskers,) = drawn["maskgit S = 3, tiny, float32"]
    assert line.get_xydata().tolist() == [[4, 5], [16, 9]]
    assert whiskers.get_segments()[0].tolist() == [[4, 4], [4, 8]]


def test_other_benchmarks_are_bars():
    rows = [make_row([3], "envs", env=name, count=4) for name in ("noise", "crafter")]
    axes = bars_figure([(make_report(), row) for row in rows]).axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["noise", "crafter"]
    assert [bar.get_width() for bar in axes.patches] == [3, 3]
    assert "count 4" in axes.get_title(loc="left")
    assert axes.get_xlabel() == "things/s"


def test_long_names_leave_room_for_the_axes():
    """A long machine name or setting is wrapped; the axes keep at least a third of the figure."""
    long = make_report(make_row([1]), processor="a processor with a very long name " * 4)
    rows = [make_row([3], "envs", env=f"{name}{'-setting=value' * 8}") for name in "ab"]
    pairs = [(make_report(), rows[0]), (long, rows[1])]
    split = [(report, trained()) for report, _ in pairs]
    decode = [(report, decoded([9], "linear", batch=4)) for report, _ in pairs]
    for figure in (bars_figure(pairs), split_figure(split), decode_figure(decode)):
        FigureCanvasAgg(figure).draw()
        axes = figure.axes[0]
        assert axes.get_position().width > 1 / 3, figure
        assert axes.get_position().height > 1 / 3, figure


def test_committed_results_are_readable():
    """Results of earlier versions stay readable, comparable and drawable."""
    paths = sorted((ROOT / "benchmarks/results").glob("*_cpu.json"))
    reports = [read_report(path) for path in paths]
    assert len(reports) >= 9
    tables = report_tables(reports)
    assert "imagined states/s" in tables
    assert "of ceiling" in tables
    assert not compare_reports(reports[0], reports[0]).regressions
