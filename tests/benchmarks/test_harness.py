"""Repeats, compiled programs, and rows that are written as soon as they are measured."""

from __future__ import annotations

import time
from types import SimpleNamespace
from unittest import mock

import jax
import jax.numpy as jnp
import pytest

from benchmarks.suite import command, harness
from benchmarks.suite.flops import Flops
from benchmarks.suite.harness import (
    Budget,
    Options,
    compile_for,
    device_counts,
    no_compilation_cache,
    repeat,
    unless_memory_lacks,
)
from benchmarks.suite.report import read_report
from emerald_jax.config import ConfigError
from tests.benchmarks.report_cases import make_row


def test_repeats_fill_the_budget_and_leave_out_the_warm_up():
    calls = []
    assert len(repeat(lambda: calls.append(0), Budget(1.0, least=4, most=4))) == 4
    assert len(calls) == 5
    assert len(repeat(lambda: None, Budget(60.0, least=1, most=7))) == 7


def test_a_call_longer_than_the_budget_counts():
    calls = []
    seconds = repeat(lambda: calls.append(time.sleep(0.01)), Budget(0.001, least=2))
    assert len(calls) == len(seconds) == 2


def test_a_program_that_does_not_fit_is_left_out():
    def fail(message):
        raise jax.errors.JaxRuntimeError(message)

    line = unless_memory_lacks("train", lambda: fail("RESOURCE_EXHAUSTED: Out of memory"))
    assert line == "train: it does not fit into the device's memory"
    with pytest.raises(jax.errors.JaxRuntimeError):
        unless_memory_lacks("train", lambda: fail("INTERNAL: no"))
    assert unless_memory_lacks("train", lambda: 3) == 3


def test_facts_of_a_compiled_program():
    x = jnp.ones((64, 64))
    program, facts = compile_for(jax.jit(lambda x: x @ x + 1), x)
    assert facts["arguments_bytes"] == facts["results_bytes"] == 64 * 64 * 4
    assert program(x)[0, 0] == 65
    assert set(facts) == {
        "compile_seconds",
        "temporaries_bytes",
        "arguments_bytes",
        "results_bytes",
    }
    _, donated = compile_for(jax.jit(lambda x: x + 1, donate_argnums=0), x)
    assert donated["results_bytes"] == 0


def test_compile_times_do_not_come_from_the_cache():
    assert jax.config.jax_enable_compilation_cache
    with no_compilation_cache():
        assert not jax.config.jax_enable_compilation_cache
    assert jax.config.jax_enable_compilation_cache


def test_share_of_the_ceiling():
    facts = harness.share_facts(Flops(150, 75), 3.0, 100.0, devices=4)
    assert (facts["share_of_ceiling"], facts["share_of_ceiling_least"]) == (0.5, 0.25)
    assert facts["ceiling_flops_per_s"] == 100, "virtual devices of a CPU share its cores"


def test_the_ceiling_is_measured_before_and_after():
    rates = iter([70.0, 90.0])
    with (
        mock.patch.object(harness, "best_size", return_value=64),
        mock.patch.object(harness, "_rate", side_effect=lambda size, dtype: next(rates)),
    ):
        seconds, found = harness.repeat_with_ceiling(lambda: None, Budget(1, 3, 3), "float32")
    assert (len(seconds), found) == (3, 90.0)


def test_a_ceiling_is_measured():
    with (
        mock.patch.object(harness, "CPU_SIZES", (16, 64)),
        mock.patch.object(harness, "_SECONDS", 0.0),
    ):
        assert harness.best_size.__wrapped__("float32") in (16, 64)
    assert harness._rate(64, "float32") > 1e6


def test_devices():
    assert device_counts(Options()) == (1, 2, 4, 8)
    assert device_counts(Options(devices=(3,))) == (3,)
    with pytest.raises(ConfigError, match="--devices 9: this machine has 8"):
        device_counts(Options(devices=(9,)))


def test_rows_are_written_as_soon_as_they_are_measured(tmp_path):
    path = tmp_path / "r.json"

    def measure(options):
        yield make_row([1, 2])
        assert [row.value.median for row in read_report(path).rows] == [1.5]
        assert not read_report(path).complete
        yield "something: a reason"
        raise KeyboardInterrupt

    lines = []
    with (
        mock.patch.object(
            command.importlib, "import_module", return_value=SimpleNamespace(measure=measure)
        ),
        pytest.raises(KeyboardInterrupt),
    ):
        command.run_benchmarks(["train"], Options(), command="c", out=path, log=lines.append)
    report = read_report(path)
    assert (len(report.rows), report.left_out) == (1, ["something: a reason"])
    assert not report.complete
    assert any("1.5 things/s" in line for line in lines)
