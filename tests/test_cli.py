"""The command line: accepted arguments, and one-line errors for the rest."""

from __future__ import annotations

import importlib
import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

from emerald_jax import cli
from emerald_jax.commands.train import parse_train, setting_types
from emerald_jax.config import Config
from emerald_jax.presets import PRESETS, get_preset
from emerald_jax.run.directory import write_config

ROOT = Path(__file__).resolve().parents[1]

#: Packages that give JAX its CUDA platform.
CUDA = ("jax_cuda12_plugin", "jax_cuda13_plugin")


def refusal(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The one line on standard error with which ``arguments`` are refused."""
    assert cli.main(arguments) == 2
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.endswith("\n")
    assert output.err.count("\n") == 1
    assert output.err.startswith("emerald-jax: ")
    return output.err.removeprefix("emerald-jax: ").strip()


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ("train crafter --model.widht 3", "unknown setting --model.widht; nearest: --model.width"),
        ("train crafter --modle.width=3", "unknown setting --modle.width; nearest: --model.width"),
        ("train crafter --widht 3", "unknown setting --widht; nearest: --model.width"),
        ("train crafter --no-log.quiet", "unknown setting --no-log.quiet; nearest: --log.no-quiet"),
        ("train crafter --step 3", "unknown setting --step; nearest: --steps"),
        ("train crafter -steps 3", "unknown setting -steps; nearest: --steps"),
        ("train crafter --preset tiny", "unknown setting --preset"),
        ("train crafter --qqqq 3", "unknown setting --qqqq; emerald-jax train --help lists them"),
        ("train crafter --steps abc", "--steps takes an integer, got 'abc'"),
        ("train crafter --steps=1e6", "--steps takes an integer, got '1e6'"),
        ("train crafter --steps", "--steps takes an integer, got nothing"),
        ("train crafter --steps --seed 3", "--steps takes an integer, got nothing"),
        ("train crafter --train_ratio x", "--train-ratio takes a number, got 'x'"),
        ("train crafter --optim.model-lr nan", "--optim.model-lr takes a number, got 'nan'"),
        (
            "train crafter --replay.sampler window",
            "--replay.sampler takes one of streams, windows, got 'window'",
        ),
        ("train crafter --log.quiet=yes", "--log.quiet is a switch and takes no value, got 'yes'"),
        ("train crafter 3", "unexpected '3' after preset 'crafter': settings begin with --"),
        ("train quikstart", "unknown preset 'quikstart'; nearest: quickstart"),
        ("train --seed 3", "name a preset: quickstart, minatar, crafter"),
        ("train crafter --steps -5", "steps is -5: it must be at least 1"),
        ("train crafter --model.grid 5", "envs.image_size 64 cannot reach model.grid 5"),
        ("train tiny --devices 3", "replay.batch 4 does not divide over 3 devices"),
        ("trian crafter", "unknown command 'trian'; nearest: train"),
        ("zzzzz", "unknown command 'zzzzz'; commands: train, eval"),
        ("bench", "bench is not a command: run python -m benchmarks in a checkout"),
        ("bench decode --quick", "bench is not a command: run python -m benchmarks"),
        ("eval", "the following arguments are required: RUN"),
        ("eval nowhere", "nowhere does not exist: give the directory of a run"),
        ("eval nowhere --episodes few", "argument --episodes: invalid int value: 'few'"),
        ("eval nowhere --episodes 0", "--episodes is 0: it must be at least 1"),
        ("eval nowhere --mode best", "argument --mode: invalid choice: 'best'"),
        ("presets --all", "unrecognized arguments: --all"),
    ],
)
def test_wrong_arguments_end_in_one_line(
    arguments: str, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert refusal(capsys, *arguments.split()).startswith(line)


@pytest.mark.parametrize("seed", [-1, 2**63, 10**30])
@pytest.mark.parametrize(
    "command",
    [
        "train tiny --steps 80 --logdir run",
        "check-env gymnax:Catch-bsuite --steps 10",
        "eval nowhere",
        "eval --random gymnax:Catch-bsuite",
        "collect --env gymnax:Catch-bsuite --steps 10 --out data",
        "dream nowhere --out dream.gif",
        "inspect nowhere --out report.html",
        "play nowhere",
    ],
)
def test_seeds_out_of_range_are_refused_and_nothing_is_written(
    command: str,
    seed: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    line = refusal(capsys, *command.split(), "--seed", str(seed))
    assert f"seed is {seed}: it must " in line
    assert str(2**63 - 1) in line
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "arguments", ["train crafter --model.widht 3", "train tiny --steps abc", "eval .", "presets"]
)
def test_refused_before_jax_is_imported_and_nothing_written(arguments: str, tmp_path: Path) -> None:
    program = (
        "import sys; from emerald_jax.cli import main; "
        f"code = main({arguments.split()!r}); "
        "assert 'jax' not in sys.modules, 'jax'; sys.exit(code)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == (0 if arguments == "presets" else 2), done.stderr
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_importing_the_package_is_cheap() -> None:
    heavy = "{'jax', 'flax', 'numpy', 'tyro', 'rich'}"
    program = f"import sys, emerald_jax; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert done.stdout.strip() == "[]", done.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        "tiny --steps 3 --model.ff-ratio 4 --replay.sampler windows --log.quiet",
        "tiny --steps=3 --model.ff_ratio=4 --replay.sampler=windows --quiet",
        "--model.ff_ratio 4 --steps 3 --quiet tiny --replay.sampler windows",
    ],
)
def test_spellings_of_the_same_settings(arguments: str) -> None:
    config = parse_train(arguments.split())
    assert (config.preset, config.steps, config.model.ff_ratio) == ("tiny", 3, 4)
    assert config.replay.sampler == "windows"
    assert config.log.quiet is True
    assert type(config) is Config


def test_switches_can_be_turned_off() -> None:
    assert parse_train(["tiny", "--log.quiet", "--log.no-quiet"]).log.quiet is False


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_alone_is_itself(name: str) -> None:
    assert parse_train([name]) == get_preset(name)


def test_train_without_a_preset_lists_them(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["train"]) == 2
    error = capsys.readouterr().err
    assert all(name in error for name in PRESETS)


@pytest.mark.parametrize("arguments", [["train", "--help"], ["train", "tiny", "-h"]])
def test_help_lists_every_setting(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        cli.main(arguments)
    assert stop.value.code == 0
    text = capsys.readouterr().out
    for name in setting_types():
        assert f"--{name}" in text
    assert "--preset" not in text
    assert "(default: 3)" in text
    assert "Imagined steps H per rollout." in text


@pytest.mark.parametrize(
    "command", ["eval", "report", "sweep", "compile", "presets", "envs", "check-env", "version"]
)
def test_every_command_has_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        cli.main([command, "--help"])
    assert stop.value.code == 0
    assert f"emerald-jax {command}" in capsys.readouterr().out


def test_overview(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--help"]) == 0
    assert cli.main([]) == 2
    output = capsys.readouterr()
    assert output.out == output.err
    assert all(command in output.out for command in cli.COMMANDS)


@pytest.mark.parametrize(
    ("command", "name"),
    [("presets", "crafter-small"), ("envs", "gymnax:Catch-bsuite"), ("version", "emerald-jax")],
)
def test_lists(command: str, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([command]) == 0
    assert name in capsys.readouterr().out


def fake_module(monkeypatch: pytest.MonkeyPatch, name: str, **members: object) -> None:
    """Put a module of that name where imports find it."""
    module = ModuleType(name)
    vars(module).update(members)
    monkeypatch.setitem(sys.modules, name, module)


def test_train_hands_over_the_config_and_returns_the_exit_code(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    seen = []

    def train(config: Config) -> SimpleNamespace:
        seen.append(config)
        return SimpleNamespace(exit_code=3)

    fake_module(monkeypatch, "emerald_jax.training.train", train=train)
    logdir = tmp_path / "run"
    assert cli.main(["train", "tiny", "--seed", "7", "--logdir", str(logdir)]) == 3
    assert seen[0].seed == 7
    assert not logdir.exists()


def test_user_errors_are_one_line_and_others_are_tracebacks(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    class RunError(RuntimeError):
        pass

    def train(config: Config) -> SimpleNamespace:
        raise RunError("the loss is not finite:\n  look at metrics.jsonl")

    fake_module(monkeypatch, "emerald_jax.agent.state", RunError=RunError)
    fake_module(monkeypatch, "emerald_jax.training.train", train=train)
    arguments = ["train", "tiny", "--logdir", str(tmp_path / "run")]
    assert refusal(capsys, *arguments) == "the loss is not finite: look at metrics.jsonl"

    def broken(config: Config) -> SimpleNamespace:
        raise RuntimeError("a bug")

    fake_module(monkeypatch, "emerald_jax.training.train", train=broken)
    with pytest.raises(RuntimeError, match="a bug"):
        cli.main(arguments)


@pytest.mark.parametrize(("module", "name"), cli._USER_ERRORS)
def test_every_user_error_exists_and_is_known(module: str, name: str) -> None:
    error = getattr(importlib.import_module(module), name)
    assert issubclass(error, Exception)
    assert error in cli._user_errors()


def test_interruption(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def train(config: Config) -> SimpleNamespace:
        raise KeyboardInterrupt

    fake_module(monkeypatch, "emerald_jax.training.train", train=train)
    assert cli.main(["train", "tiny", "--logdir", str(tmp_path / "run")]) == 130


def test_foreign_run_directories_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "thesis.tex").write_text("mine")
    line = refusal(capsys, "train", "tiny", "--logdir", str(tmp_path))
    assert "holds files but no run" in line
    line = refusal(capsys, "train", "tiny", "--logdir", str(tmp_path / "thesis.tex"))
    assert "is a file" in line
    line = refusal(capsys, "eval", str(tmp_path))
    assert line == f"{tmp_path} is not a run: it holds no config.json"
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_run_is_not_continued_at_another_size(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_config(tmp_path, get_preset("tiny"))
    (tmp_path / "checkpoints" / "10").mkdir(parents=True)
    line = refusal(capsys, "train", "tiny", "--model.width", "32", "--logdir", str(tmp_path))
    assert "holds a run with model.width 16, not 32" in line


@pytest.mark.parametrize("platform", ["cuda", "gpu", "nowhere"])
def test_a_missing_platform_is_one_line(platform: str, tmp_path: Path) -> None:
    if platform != "nowhere" and any(map(importlib.util.find_spec, CUDA)):
        pytest.skip("this platform is installed")
    lines = [
        "train tiny --steps 80 --logdir run",
        "eval --random gymnax:Catch-bsuite --episodes 1",
    ]
    code = "import sys; from emerald_jax import cli; "
    code += "print([cli.main(line.split()) for line in sys.argv[1:]])"
    done = subprocess.run(
        [sys.executable, "-c", code, *lines],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": platform},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.stdout == "[2, 2]\n"
    refusals = done.stderr.splitlines()
    assert len(refusals) == 2, done.stderr
    for refused in refusals:
        assert refused.startswith("emerald-jax: JAX has no platform for JAX_PLATFORMS=" + platform)
        assert 'pip install -e ".[cuda]"' in refused
    assert not list(tmp_path.iterdir())


def test_a_closed_pipe_gives_no_traceback() -> None:
    # The pipe's reader is gone before the help is written.
    command = f"set -o pipefail; {sys.executable} -m emerald_jax train --help | true"
    done = subprocess.run(
        ["bash", "-c", command], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stderr) == (0, "")
