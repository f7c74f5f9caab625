"""Which differences are regressions, and which are noise."""

from __future__ import annotations

import pytest

from benchmarks.suite.report import compare_reports, compare_rows, comparison_table
from tests.benchmarks.report_cases import make_report, make_row


@pytest.mark.parametrize(
    ("new", "old", "verdict"),
    [
        ([10, 10.1, 9.9], [10, 10.1, 9.9], "same"),
        ([8, 8.1, 7.9], [10, 10.1, 9.9], "slower"),
        ([12, 12.1, 11.9], [10, 10.1, 9.9], "faster"),
        ([8, 9.95, 7.9], [10, 10.1, 9.9], "same"),  # the intervals touch
        ([9.8, 9.81, 9.79], [10, 10.01, 9.99], "same"),  # tight repeats, below the floor of 3 %
        ([8], [10], "slower"),
    ],
)
def test_beyond_the_noise(new, old, verdict):
    change = compare_rows(make_row(new), make_row(old))
    assert change.verdict == verdict
    assert change.ratio == pytest.approx(sorted(new)[len(new) // 2] / 10, rel=0.01)


def test_many_repeats_are_judged_by_quartiles():
    # One outlier in eight does not hide a change.
    old, new = [10.0] * 7 + [5.0], [8.0] * 7 + [12.0]
    assert compare_rows(make_row(new), make_row(old)).verdict == "slower"
    assert compare_rows(make_row([*new[:7], 12.0]), make_row([10.0, 5.0, 10.0])).verdict == "same"


def test_rows_are_paired_by_benchmark_and_case():
    old = make_report(make_row([10], S=3), make_row([20], S=8), make_row([5], "train"))
    new = make_report(make_row([5], S=3), make_row([21], S=8), make_row([7], "train", S=9))
    found = compare_reports(new, old)
    assert [change.ratio for change in found.changes] == [0.5, 1.05]
    assert [change.verdict for change in found.changes] == ["slower", "faster"]
    assert len(found.regressions) == len(found.only_new) == len(found.only_old) == 1
    text = comparison_table(found)
    assert "SLOWER" in text
    assert "2 compared, 1 slower beyond the noise" in text
    assert "only old: train" in text


def test_another_machine_is_named():
    found = compare_reports(make_report(make_row([1]), cores=64), make_report(make_row([1])))
    assert found.warnings == ["another machine: cores is 64, was 2"]
