"""``emerald-jax bench``: what it refuses before measuring, and how results are read back."""

from __future__ import annotations

from unittest import mock

import pytest

from benchmarks.suite import command
from benchmarks.suite.report import read_report, write_report
from emerald_jax import cli
from tests.benchmarks.report_cases import make_report, make_row


@pytest.fixture(autouse=True)
def _no_measuring():
    with mock.patch.object(command, "run_benchmarks", side_effect=AssertionError("measured")):
        yield


def refusal(capsys, *words):
    assert cli.main(["bench", *words]) == 2
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.count("\n") == 1
    return output.err


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ("imagniation", "unknown benchmark 'imagniation'; choose from imagination, decode"),
        ("--out nowhere/x.json", "there is no folder nowhere"),
        ("--compare nowhere.json", "nowhere.json cannot be read"),
        ("--compare setup.cfg", "setup.cfg is no JSON"),
        ("--show nowhere.json", "nowhere.json cannot be read"),
        ("--figures nowhere", "there is no such folder"),
        ("--preset crfter", "unknown preset 'crfter'; nearest: crafter"),
        ("--quick --full", "exclude each other"),
        ("--starts 0", "--starts 0: it must be at least 1"),
        ("--seconds -1", "must not be negative"),
        ("--dtype float16", "invalid choice: 'float16'"),
        ("--out x.json --show setup.cfg", "--show measures nothing"),
        ("train --show setup.cfg", "--show measures nothing"),
        ("--compare a.json --show a.json b.json", "--show one file"),
    ],
)
def test_refused_before_measuring(words, line, capsys, monkeypatch, request):
    monkeypatch.chdir(request.config.rootpath)
    assert line in refusal(capsys, *words.split())


def test_an_unwritable_result_is_refused_before_measuring(capsys, tmp_path):
    assert "is a folder" in refusal(capsys, "--out", str(tmp_path))


def test_a_result_names_no_folder():
    words = ["train", "--out", "/home/me/x.json", "--quick", "--compare=/home/me/y.json"]
    assert command._without_files(words) == ["train", "--quick"]


def test_show_and_compare(capsys, tmp_path):
    old, new = tmp_path / "old.json", tmp_path / "new.json"
    write_report(old, make_report(make_row([10, 10, 10])))
    write_report(new, make_report(make_row([5, 5, 5])))
    assert cli.main(["bench", "--show", str(new), "--compare", str(old)]) == 1
    assert "SLOWER" in capsys.readouterr().out
    assert cli.main(["bench", "--show", str(old), "--compare", str(new)]) == 0
    assert "faster" in capsys.readouterr().out
    words = ["bench", "--show", str(old), str(new), "--figures", str(tmp_path), "--markdown"]
    assert cli.main(words) == 0
    assert "| preset |" in capsys.readouterr().out
    assert read_report(old).rows != read_report(new).rows
