"""``emerald-jax compile``: figures by hand, one-line errors, and the compilers where installed."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

from emerald_jax import cli
from emerald_jax.commands import compile as command
from emerald_jax.commands.compile import DEVICES, PROGRAMS, describe, refuse_missing
from emerald_jax.config import ConfigError
from emerald_jax.run.hlo import Program
from emerald_jax.target import has_bfloat16

#: Three sums of 8 MB each, one of them in a fusion with a gather; a sort; a collective.
TEXT = """
%fused (x: f32[2000000], at: s32[9,1]) -> f32[2000000] {
  %x = f32[2000000]{0} parameter(0)
  %at = s32[9,1]{1,0} parameter(1)
  %few = f32[9]{0} gather(%x, %at), offset_dims={}
  %zero = f32[] constant(0)
  %wide = f32[2000000]{0} pad(%few, %zero), padding=0_1999991
  ROOT %sum = f32[2000000]{0} add(%x, %wide)
}

%order (a: f32[], b: f32[]) -> pred[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %less = pred[] compare(%a, %b), direction=LT
}

ENTRY %main (x.1: f32[2000000], at.1: s32[9,1]) -> f32[2000000] {
  %x.1 = f32[2000000]{0} parameter(0)
  %at.1 = s32[9,1]{1,0} parameter(1)
  %copy.2 = f32[2000000]{0} copy(%x.1), backend_config={"estimated_cycles":"3000"}
  %y = f32[2000000]{0} fusion(%copy.2, %at.1), calls=%fused, backend_config={CYCLES}
  %few.1 = f32[5]{0} slice(%y), slice={[0:5]}
  %sorted = f32[5]{0} sort(%few.1), dimensions={0}, to_apply=%order
  ROOT %all = f32[2000000]{0} all-reduce(%y), to_apply=%order
}
""".replace("CYCLES", '"estimated_cycles":"12000"')


def test_figures_of_a_gpu_by_hand():
    found = command._figures(Program(TEXT), DEVICES["h100"], lines=3)
    counts = {"operations": 5, "copies": 1, "gathers": 1, "sorts": 1, "collectives": 1}
    assert {name: found[name] for name in counts} == counts
    assert found["collective_bytes"] == 8_000_000
    # Copy, fusion and all-reduce move 16 MB each, which takes longer than a launch.
    assert found["traffic"] == 3 * 16_000_000 + 36 + 2 * 20 + 2 * 20
    long = 2 * 16_000_000 / 3.35e12 + 16_000_036 / 3.35e12
    assert found["launch_bound"] == pytest.approx(long + 2 * 3e-6)
    assert found["sources"] == {"made by the compiler": 5}
    assert "cycles" not in found


def test_figures_of_a_tpu_by_hand():
    found = command._figures(Program(TEXT), DEVICES["v5e-1"], lines=0)
    assert (found["cycles"], found["without_cycles"]) == (15_000, 3)
    assert found["estimate"] == pytest.approx(15_000 / 1.5e9)
    assert "launch_bound" not in found
    # The clock of a v6e is not published.
    assert "estimate" not in command._figures(Program(TEXT), DEVICES["v6e-4"], lines=0)


def test_the_report_is_a_table_of_programs():
    facts = {"count": 4, "about": "TPU v5e", "memory": 17.2e9}
    good = {"compile_seconds": 12.3, "operations": 4321, "flops": 2.81e12, "flop_bound": 0.0143}
    programs = {"act": {"compile_seconds": 7, "error": "out of memory"}, "train": good}
    report = {"preset": "crafter", "dtype": "bfloat16", "facts": facts, "programs": programs}
    text = describe(report)
    assert "crafter in bfloat16 on 4 x TPU v5e with 17,200 MB each" in text
    lines = text.splitlines()
    assert lines[2].split() == ["act", "train"]
    rows = {line[:28].strip(): line[28:].split() for line in lines}
    assert rows["compiling, s"] == ["7", "12.3"]
    assert rows["work, GFLOP"] == ["2,810"]
    assert rows["FLOP bound, ms"] == ["14.3"]
    assert "act does not compile: out of memory\n" in text


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("v5e-1", 'TPU v5e is not installed: pip install -e ".[aot-tpu]"'),
        ("h100", 'NVIDIA H100 is not installed: pip install -e ".[aot-cuda]"'),
    ],
)
def test_a_missing_compiler_is_named_in_one_line(name, line, monkeypatch, capsys):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert cli.main(["compile", "tiny", "--for", name]) == 2
    assert capsys.readouterr().err == f"emerald-jax: the compiler for {line}\n"
    refuse_missing("cpu")


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ("tiny", "the following arguments are required: --for"),
        ("tiny --for v9", "argument --for: invalid choice: 'v9'"),
        ("--for cpu", "name a preset: quickstart"),
        ("tny --for cpu", "unknown preset 'tny'; nearest: tiny"),
        ("tiny --for cpu --model.widht 3", "unknown setting --model.widht; nearest: --model.width"),
        ("tiny --for v5e-4 --replay.batch 6", "replay.batch 6 does not divide over 4 devices"),
        ("tiny --for cpu --out setup.cfg/r.json", "--out: setup.cfg is a file, not a directory"),
    ],
)
def test_wrong_arguments_end_in_one_line(arguments, line, monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "setup.cfg").touch()
    assert cli.main(["compile", *arguments.split()]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"emerald-jax: {line}")
    assert error.count("\n") == 1


def test_devices_are_consistent():
    for name, device in DEVICES.items():
        assert device.count == int(name.partition("-")[2] or 1)
        if device.platform == "gpu":
            capability = ".".join(map(str, device.chip["capability"]))
            assert has_bfloat16(capability) == (device.bfloat16 > 0)


def compile_with(tmp_path: Path, *arguments: str) -> tuple[dict, str]:
    """The report of the command in a process of its own, and its output."""
    path = tmp_path / "report.json"
    call = [sys.executable, "-m", "emerald_jax", "compile", "tiny", *arguments, "--out", str(path)]
    done = subprocess.run(call, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(path.read_text()), done.stdout


def test_the_program_of_this_cpu(tmp_path):
    report, text = compile_with(tmp_path, "--for", "cpu", "--program", "decode", "--lines", "2")
    (found,) = report["programs"].values()
    assert report["dtype"] == "float32"
    assert found["operations"] > found["copies"]
    assert len(found["sources"]) == 2
    assert "decode, operations by source line" in text


@pytest.mark.slow
@pytest.mark.parametrize("name", ["v5e-1", "v5e-4", "h100", "t4"])
def test_every_program_compiles_for_devices_that_are_not_there(name, tmp_path):
    try:
        refuse_missing(name)
    except ConfigError as error:
        pytest.skip(str(error))
    report, _ = compile_with(tmp_path, "--for", name)
    assert list(report["programs"]) == list(PROGRAMS)
    assert report["dtype"] == ("float32" if name == "t4" else "bfloat16")
    train = report["programs"]["train"]
    # All gradients, float32: the tiny agent has 37,802 parameters. Biases that are added to the
    # same array have the same gradient, which is sent once.
    assert (train["collective_bytes"] >= 4 * 37_000) == (DEVICES[name].count > 1)
    assert 0 < train["memory"] < DEVICES[name].memory
    assert train["flop_bound"] < train["traffic_bound"]
    if DEVICES[name].platform == "tpu":
        assert train["cycles"] > train["operations"]
    else:
        assert train["launch_bound"] >= 2.999e-6 * train["operations"]
