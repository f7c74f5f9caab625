"""``python -m benchmarks``: options refused before measuring, results read back, two checkouts."""

from __future__ import annotations

import time
from unittest import mock

import pytest

from benchmarks.suite import against, command
from benchmarks.suite.report import read_report, write_report
from tests.benchmarks.report_cases import make_report, make_row


@pytest.fixture(autouse=True)
def _no_measuring():
    with mock.patch.object(command, "run_benchmarks", side_effect=AssertionError("measured")):
        yield


def refusal(capsys, *arguments):
    assert command.main(arguments) == 2
    output = capsys.readouterr()
    assert output.out == ""
    lines = output.err.splitlines()
    assert all(line.startswith("round ") for line in lines[:-1]), "one line, after any progress"
    return lines[-1]


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ("imagniation", "unknown benchmark 'imagniation'; choose from imagination, decode"),
        ("--out nowhere/x.json", "there is no folder nowhere"),
        ("--compare nowhere.json", "nowhere.json cannot be read"),
        ("--compare setup.cfg", "setup.cfg is not valid JSON"),
        ("--show nowhere.json", "nowhere.json cannot be read"),
        ("--figures nowhere", "there is no such folder"),
        ("--preset crfter", "unknown preset 'crfter'; nearest: crafter"),
        ("--quick --full", "exclude each other"),
        ("--starts 0", "--starts is 0: it must be at least 1"),
        ("--seconds -1", "--seconds is -1.0: it must be at least 0"),
        ("--dtype float16", "invalid choice: 'float16'"),
        ("--out x.json --show setup.cfg", "--show measures nothing"),
        ("train --show setup.cfg", "--show measures nothing"),
        ("--compare a.json --show a.json b.json", "--show one file"),
        ("--against nowhere", "there are no benchmarks in that folder"),
        ("--against nowhere --preset crfter", "unknown preset 'crfter'; nearest: crafter"),
        ("--against . --show setup.cfg", "--against prints ratios only"),
        ("--against . --rounds 0", "--rounds is 0: it must be at least 1"),
    ],
)
def test_refused_before_measuring(arguments, line, capsys, monkeypatch, request):
    monkeypatch.chdir(request.config.rootpath)
    assert line in refusal(capsys, *arguments.split())


def test_an_unwritable_result_is_refused_before_measuring(capsys, tmp_path):
    assert "is a folder" in refusal(capsys, "--out", str(tmp_path))


def test_a_result_names_no_folder():
    arguments = ["train", "--out", "/home/me/x.json", "--quick", "--compare=/home/me/y.json"]
    assert command._without_files(arguments) == ["train", "--quick"]


def test_show_and_compare(capsys, tmp_path):
    old, new = tmp_path / "old.json", tmp_path / "new.json"
    write_report(old, make_report(make_row([10, 10, 10])))
    write_report(new, make_report(make_row([5, 5, 5])))
    assert command.main(["--show", str(new), "--compare", str(old)]) == 1
    assert "SLOWER" in capsys.readouterr().out
    assert command.main(["--show", str(old), "--compare", str(new)]) == 0
    assert "faster" in capsys.readouterr().out
    arguments = ["--show", str(old), str(new), "--figures", str(tmp_path), "--markdown"]
    assert command.main(arguments) == 0
    assert "| preset |" in capsys.readouterr().out
    assert read_report(old).rows != read_report(new).rows


FAKE = """
import json, os, sys
from pathlib import Path
out = Path(sys.argv[sys.argv.index("--out") + 1])
log = Path({log!r})
log.write_text(log.read_text() + {name!r} + " " + " ".join(sys.argv[1:-2]) + "\\n")
if "{name}" == "broken":
    sys.exit("emerald-jax: the cause\\n")
runs = log.read_text().count({name!r})
report = json.loads({report!r})
for row in report["rows"]:
    row["value"]["median"] *= {speed} * runs
out.write_text(json.dumps(report))
"""


def fake_checkout(folder, module, log, speed=1.0):
    """A folder whose benchmarks report a fixed row, ``speed`` times as fast, faster every round."""
    module = folder / module
    module.parent.mkdir(parents=True)
    (folder / "emerald_jax").mkdir(exist_ok=True)
    report = make_report(make_row([10.0]), make_row([5.0], "train")).to_json()
    text = FAKE.format(log=str(log), name=folder.name, report=report, speed=speed)
    module.parent.joinpath("__init__.py").touch()
    if "emerald_jax" in module.parts:
        (folder / "emerald_jax/bench").mkdir()
    module.write_text(text)
    return folder


def test_two_checkouts_in_turn(capsys, tmp_path):
    """One with the new layout, one with the old; each runs its own code by its own command."""
    log = tmp_path / "log.txt"
    log.touch()
    new = fake_checkout(tmp_path / "new", "benchmarks/__main__.py", log, speed=3.0)
    old = fake_checkout(tmp_path / "old", "emerald_jax/__main__.py", log)
    with mock.patch.object(against, "HERE", new):
        arguments = ["train", "--preset", "tiny", "--against", str(old), "--rounds", "3"]
        assert command.main([*arguments, "--markdown"]) == 0
    calls = log.read_text().splitlines()
    assert [call.split()[0] for call in calls] == ["old", "new", "new", "old", "old", "new"]
    assert set(calls) == {"old bench train --preset tiny", "new train --preset tiny"}
    output = capsys.readouterr()
    lines = output.out.splitlines()
    assert [line.split("|")[1].strip() for line in lines[4:]] == ["imagination", "train"]
    assert all("3.000 | 3.000 | 3.000 | 3 |" in line for line in lines[4:])
    progress = [line for line in output.err.splitlines() if ": train " in line]
    assert len(progress) == 3, "both values side by side, round by round"
    assert progress[0].startswith("round 1 of 3: train preset=tiny S=3")
    assert progress[0].endswith("this 15, other 5 things/s, ratio 3.000")


def test_a_checkout_that_fails_is_named_with_its_cause(capsys, tmp_path):
    log = tmp_path / "log.txt"
    log.touch()
    broken = fake_checkout(tmp_path / "broken", "benchmarks/__main__.py", log)
    message = refusal(capsys, "--against", str(broken), "--rounds", "1")
    assert "broken failed: emerald-jax: the cause" in message


def test_complete_rounds_outlive_a_failure(capsys, tmp_path):
    log = tmp_path / "log.txt"
    log.touch()
    new, old = (fake_checkout(tmp_path / k, "benchmarks/__main__.py", log) for k in ("new", "old"))
    module = old / "benchmarks/__main__.py"
    module.write_text(module.read_text() + 'sys.exit("no more" if runs > 1 else 0)\n')
    with mock.patch.object(against, "HERE", new):
        assert command.main(["--against", str(old), "--rounds", "5"]) == 0
    output = capsys.readouterr()
    assert "round 2 of 5: stopped: the benchmarks of" in output.err
    assert "old failed: no more" in output.err
    assert output.out.split()[-4:] == ["1.000", "1.000", "1.000", "1"]


def test_a_checkout_that_hangs_is_stopped_with_its_workers(capsys, tmp_path):
    module = tmp_path / "benchmarks/__main__.py"
    module.parent.mkdir()
    module.parent.joinpath("__init__.py").touch()
    # The worker holds the pipe of standard error too.
    module.write_text("import os, time\nos.fork()\nprint(os.getpid())\ntime.sleep(600)\n")
    began = time.monotonic()
    message = refusal(capsys, "--against", str(tmp_path), "--rounds", "1", "--limit", "0.02")
    assert "failed: not done after 0.02 minutes (--limit)" in message
    assert time.monotonic() - began < 30
