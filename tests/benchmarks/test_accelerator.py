"""``python -m benchmarks accelerator``: its stages, what it survives, and a complete rehearsal."""

from __future__ import annotations

import dataclasses
import json
import sys
import time
from pathlib import Path
from unittest import mock

import jax
import jax.numpy as jnp
import pytest

from benchmarks import accelerator, end_to_end, train
from benchmarks.accelerator import STAGES, Plan
from benchmarks.suite import command
from benchmarks.suite.report import Report, read_report
from benchmarks.suite.trace import kernel_facts, trace_kernels
from emerald_jax.config import ConfigError
from emerald_jax.envs import EnvError
from emerald_jax.presets import get_preset
from emerald_jax.run.directory import METRICS_FILE, read_rows
from emerald_jax.training import train as training
from emerald_jax.training.train import RunResult
from tests.benchmarks.report_cases import make_row
from tests.run_cases import make_run


@pytest.fixture
def plan(tmp_path):
    return Plan(tmp_path, minutes=1.0, until=time.time() + 600)


def stages(**measures):
    """These stages instead of the real ones."""
    found = {name: (measure, 0.5) for name, measure in measures.items()}
    return mock.patch.dict(STAGES, found, clear=True)


def rows(*found):
    return lambda plan: iter(found)


def broken(plan):
    yield make_row([1.0])
    raise RuntimeError("RESOURCE_EXHAUSTED\nand a thousand lines")


def empty_report(plan):
    return Report(command=plan.command, machine={}, versions={}, created="")


def run_all(plan):
    while stage := plan.next_stage():
        accelerator.run_stage(plan, stage)


def test_a_failing_stage_keeps_its_rows_and_the_next_goes_on(plan, capsys):
    with stages(first=broken, second=rows("left: a reason", make_row([2.0]))):
        run_all(plan)
        text = accelerator.write_summary(plan)
    first, second = (read_report(plan.out / f"{name}.json") for name in ("first", "second"))
    assert (len(first.rows), first.complete) == (1, True)
    assert first.left_out[0].startswith("first failed: RuntimeError: ")
    assert "a thousand lines" in (plan.out / "first.error.txt").read_text()
    assert (len(second.rows), second.left_out) == (1, ["left: a reason"])
    assert [line.split()[:2] for line in text.splitlines()[2:]] == [
        ["first", "failed"],
        ["second", "complete"],
    ]
    summary = (plan.out / "summary.md").read_text()
    assert "| first | failed | 1 |" in summary
    assert "left out: left: a reason" in summary
    assert "second: 30 s" in capsys.readouterr().err


def test_the_same_point_again_replaces_its_row(plan):
    with stages(first=rows(make_row([1.0]), make_row([3.0]), make_row([1.0], S=8))):
        run_all(plan)
    found = read_report(plan.out / "first.json").rows
    assert [row.value.median for row in found] == [3.0, 1.0]
    assert all("stage_seconds" in row.facts for row in found)


def test_a_stage_ends_with_its_share(plan):
    plan = dataclasses.replace(plan, minutes=0.0)
    with stages(first=rows(make_row([1.0]), make_row([1.0], S=8))):
        run_all(plan)
    found = read_report(plan.out / "first.json")
    assert len(found.rows) == 1
    assert found.left_out == ["first: its time is over; later points are left out"]


def test_complete_stages_are_skipped_and_cut_off_ones_repeated(plan):
    with stages(first=rows(make_row([1.0])), second=rows(make_row([1.0]))):
        accelerator.run_stage(plan, "first")
        assert plan.next_stage() == "second"
        report = plan.read("first")
        plan.write("second", dataclasses.replace(report, complete=False))
        assert plan.next_stage() == "second"
        run_all(plan)
        assert plan.next_stage() is None


@pytest.mark.parametrize(
    ("script", "seconds", "reason"),
    [
        ("import os; os._exit(3)", 60, "its process ended with exit code 3"),
        ("import time; time.sleep(60)", 0.5, "its process was stopped after"),
    ],
)
def test_a_process_that_dies_or_hangs_costs_one_stage(plan, script, seconds, reason):
    plan = dataclasses.replace(plan, minutes=1e-6)
    for name in ("first", "second"):
        plan.write(name, empty_report(plan))
    with (
        stages(first=rows(), second=rows()),
        mock.patch.object(accelerator, "START_S", seconds),
    ):
        accelerator.supervise(plan, [sys.executable, "-c", script])
        assert accelerator.write_summary(plan).count("failed") == 2
    for name in ("first", "second"):
        assert reason in read_report(plan.out / f"{name}.json").left_out[0]


def test_a_process_that_cannot_start_is_an_error_and_leaves_nothing(plan):
    """So that the same command works once the cause is removed."""
    with stages(first=rows()), pytest.raises(ConfigError, match=r"nothing can be measured: .* 3;"):
        accelerator.supervise(plan, [sys.executable, "-c", "import os; os._exit(3)"])
    assert list(plan.out.iterdir()) == []


def test_without_time_nothing_starts(plan):
    with stages(first=rows()):
        accelerator.supervise(dataclasses.replace(plan, until=0.0), ["no such command"])
        assert plan.next_stage() == "first"


def test_training_does_not_begin_without_time(plan):
    """So that the same command, with more minutes, still trains."""
    real = {"first": rows(make_row([1.0])), "training": rows(make_row([2.0]))}
    with stages(**real), mock.patch.object(jax, "clear_caches"):
        assert accelerator.work(dataclasses.replace(plan, until=time.time() + 30)) == 0
        assert plan.next_stage() == "training"
        accelerator.work(plan)
        assert plan.next_stage() is None


def test_without_an_environment_training_fails_in_one_line(plan):
    missing = EnvError("it needs the package gymnax")
    with (
        stages(training=accelerator.train_run),
        mock.patch.object(end_to_end, "vector_step_seconds", side_effect=missing),
    ):
        run_all(plan)
    first, last = read_report(plan.out / "training.json").left_out
    assert first == "training in gymnax:Catch-bsuite: it needs the package gymnax"
    assert "none of these environments can be used" in last


def with_rate(plan, preset, rate):
    report = empty_report(plan)
    report.rows.append(make_row([rate], "train", preset=preset))
    plan.write("update", report)


def test_a_run_at_the_papers_sizes_needs_fast_updates(plan):
    paper = ["crafter", "craftax:Craftax-Classic-Pixels-v1", "crafter", "gymnax:Catch-bsuite"]
    assert [config.env for config in accelerator.possible_runs(plan)] == paper[-1:]
    with_rate(plan, "crafter", 20.0)
    assert [config.env for config in accelerator.possible_runs(plan)] == paper
    assert all(
        config.model == get_preset("crafter").model
        for config in accelerator.possible_runs(plan)[:3]
    )
    with_rate(plan, "crafter", 0.04)
    assert [config.env for config in accelerator.possible_runs(plan)] == paper[-1:]


@pytest.mark.parametrize(
    ("crafter", "craftax", "chosen", "lines"),
    [
        (0.01, 0.01, ("crafter", "crafter"), 0),
        (0.1, 0.01, ("crafter", "craftax:Craftax-Classic-Pixels-v1"), 1),
        (0.1, None, ("crafter", "crafter"), 2),
        (None, None, ("quickstart", "gymnax:Catch-bsuite"), 3),
    ],
)
def test_the_run_is_the_best_that_fits(plan, crafter, craftax, chosen, lines):
    """At 20 updates/s, an update per step, 16 environments have 0.05 s for a step."""

    def seconds(config, budget):
        found = {"crafter": crafter, "craftax": craftax}.get(config.env.partition(":")[0], 0.01)
        if found is None:
            raise EnvError(f"{config.env} needs a package")
        return found

    with_rate(plan, "crafter", 20.0)
    with mock.patch.object(end_to_end, "vector_step_seconds", seconds):
        config, alone, found = accelerator.choose_run(plan, plan.out / "run")
    assert (config.preset, config.env) == chosen
    assert len(found) == lines
    assert alone > 0
    assert config.log.every == (40 if chosen[0] == "crafter" else 20)


def finished_run(config):
    """As training leaves it."""
    run = make_run(Path(config.logdir))
    rates = {"speed/updates_per_s": 4.0, "speed/env_steps_per_s": 8.0, "speed/env_wait_share": 0.5}
    with (run / METRICS_FILE).open("w") as file:
        file.writelines(json.dumps({"step": 80 + i, **rates}) + "\n" for i in range(3))
    assert config.max_minutes > 1
    return RunResult(run, float("nan"), 83, 9, 30.0, "minutes")


def test_a_run_keeps_its_curve_its_metrics_and_its_weights(plan):
    """4 of 5 updates/s; 16 environments wait 0.5 x 16 / 8 = 1 s a step, alone they take 2."""
    with_rate(plan, "quickstart", 5.0)
    with (
        stages(update=rows(), training=accelerator.train_run),
        mock.patch.object(training, "train", finished_run),
        mock.patch.object(end_to_end, "vector_step_seconds", return_value=2.0),
    ):
        accelerator.run_stage(plan, "training")
    found = read_report(plan.out / "training.json")
    assert found.left_out == []
    (row,) = found.rows
    assert row.case["env"] == "gymnax:Catch-bsuite"
    assert row.value.median == 8.0
    assert row.facts["share_of_train_step"] == pytest.approx(0.8)
    assert row.facts["env_time_hidden"] == pytest.approx(0.5)
    assert (row.facts["updates"], row.facts["env_steps"]) == (9, 83)
    assert "last_return" not in row.facts, "no episode ended"
    assert (plan.out / "curve.png").stat().st_size
    export = json.loads((plan.out / "weights" / "export.json").read_text())
    assert (export["step"], export["dtype"]) == (9, "bfloat16")


def test_an_interrupted_run_is_not_complete(plan):
    stopped = RunResult(plan.out, 0.0, 0, 0, 1.0, "SIGTERM")
    with (
        stages(training=accelerator.train_run),
        mock.patch.object(training, "train", return_value=stopped),
        mock.patch.object(end_to_end, "vector_step_seconds", return_value=2.0),
        pytest.raises(KeyboardInterrupt),
    ):
        accelerator.run_stage(plan, "training")
    assert not read_report(plan.out / "training.json").complete


def test_kernels_of_an_update(plan):
    """A program of one product stands for the update; without an update there is only a line."""
    program, x = jax.jit(jnp.matmul), jnp.ones((64, 64))
    with (
        stages(kernels=accelerator.measure_kernels, update=rows()),
        mock.patch.object(train, "Update", return_value=lambda: program(x, x)),
    ):
        accelerator.run_stage(plan, "kernels")
        assert read_report(plan.out / "kernels.json").rows == []
        with_rate(plan, "crafter", 5.0)
        accelerator.run_stage(plan, "kernels")
    (row,) = read_report(plan.out / "kernels.json").rows
    assert row.facts["kernels"] == 1
    assert list(plan.out.glob("trace/**/*.xplane.pb"))


def test_kernels_are_counted(tmp_path):
    """Five products, one after another, in two calls."""

    def products(x):
        return jax.lax.scan(lambda y, _: (jnp.sin(y @ y), None), x, None, length=5)[0]

    program, x = jax.jit(products), jnp.ones((64, 64))
    jax.block_until_ready(program(x))
    kernels, seconds = trace_kernels(lambda: program(x), 2, tmp_path)
    facts = kernel_facts(kernels, 2, seconds)
    assert facts["kernels"] >= 10
    assert facts["copies"] == 0
    assert any(count == 5 for _, count, _ in facts["longest"])
    assert not any(name.startswith("while") for name, _, _ in facts["longest"])
    assert 0 < facts["kernel_seconds"] <= seconds


def test_options_are_refused(capsys, tmp_path):
    for words, line in (
        (["--minutes", "5"], "--out"),
        (["--minutes", "0", "--out", str(tmp_path)], "it must be at least 0.1"),
    ):
        assert command.main(["accelerator", *words]) == 2
        assert line in capsys.readouterr().err


@pytest.mark.slow
def test_a_complete_rehearsal(capsys, tmp_path):
    out = tmp_path / "day"
    assert command.main(["accelerator", "--rehearse", "--out", str(out)]) == 0
    assert "training" in capsys.readouterr().out
    found = {name: read_report(out / f"{name}.json") for name in STAGES}
    assert all(report.complete for report in found.values())
    assert [len(report.rows) for report in found.values()] == [3, 4, 1, 1, 1, 0, 1]
    assert "world_model_seconds" in found["update"].rows[0].facts
    assert found["kernels"].rows[0].facts["kernels"] > 100
    facts = found["training"].rows[0].facts
    assert facts["updates"] == 33
    assert read_rows(out / "run" / METRICS_FILE)
    assert (out / "curve.png").exists()
    assert json.loads((out / "weights" / "export.json").read_text())["step"] == 33
    before = (out / "update.json").read_bytes()
    assert command.main(["accelerator", "--rehearse", "--out", str(out)]) == 0
    assert (out / "update.json").read_bytes() == before
    capsys.readouterr()
    assert command.main(["accelerator", "--out", str(out)]) == 2
    assert "choose another --out" in capsys.readouterr().err
