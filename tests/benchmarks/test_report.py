"""Reports: their content, writing and reading, and files that are refused."""

from __future__ import annotations

import json

import pytest

from benchmarks.suite.report import Repeats, Report, check_writable, read_report, write_report
from emerald_jax.config import ConfigError
from tests.benchmarks.report_cases import make_report, make_row


def test_repeats_by_hand():
    spread = Repeats.of([5, 1, 2, 4, 3])
    assert (spread.median, spread.q1, spread.q3, spread.lowest, spread.highest) == (3, 2, 4, 1, 5)
    assert (spread.repeats, spread.noise) == (5, (1, 5))
    assert Repeats.of(list(range(1, 10))).noise == (3, 7)
    assert Repeats.of([2.0]).noise == (2, 2)


def test_a_report_is_read_back_as_written(tmp_path):
    report = make_report(make_row([1, 2, 3], dtype="float32"), make_row([4], "train"))
    report.left_out.append("train on 3 devices: no")
    path = tmp_path / "r.json"
    write_report(path, report)
    assert read_report(path) == report
    assert list(tmp_path.iterdir()) == [path], "no temporary file is left"


def test_the_schema_names_machine_versions_and_shapes():
    report = Report.begin("python -m benchmarks train")
    report.rows.append(make_row([1, 2]))
    values = json.loads(report.to_json())
    assert values["format"] == "emerald-jax bench 1"
    assert values["complete"] is False
    assert {"processor", "cores", "memory_gib", "backend", "devices", "device_kind"} <= set(
        values["machine"]
    )
    assert {"python", "jax", "flax", "numpy", "emerald-jax"} <= set(values["versions"])
    (row,) = values["rows"]
    assert set(row) == {"benchmark", "case", "unit", "value", "facts"}
    assert set(row["value"]) == {"median", "q1", "q3", "lowest", "highest", "repeats"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("no json", "is not valid JSON"),
        ("[1]", "is not a result of the benchmarks"),
        ('{"format": "other"}', "is not a result of the benchmarks"),
        ('{"format": "emerald-jax bench 1"}', "is not a complete result"),
        ('{"format": "emerald-jax bench 1", "rows": [{}]}', "is not a complete result"),
        ('{"format": "emerald-jax bench 1", "rows": 3}', "is not a complete result"),
    ],
)
def test_foreign_files_are_refused(tmp_path, text, message):
    path = tmp_path / "x.json"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message):
        read_report(path)


def test_missing_and_unwritable_files_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="cannot be read"):
        read_report(tmp_path / "none.json")
    with pytest.raises(ConfigError, match="there is no folder"):
        check_writable(tmp_path / "none" / "x.json")
    with pytest.raises(ConfigError, match="is a folder"):
        check_writable(tmp_path)
    check_writable(tmp_path / "x.json")
    assert list(tmp_path.iterdir()) == []
