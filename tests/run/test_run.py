"""A run on disk as one object."""

from __future__ import annotations

import shutil
import subprocess
import sys

import pytest

import emerald_jax as ej
from emerald_jax.config import ConfigError
from emerald_jax.run.directory import RunLock
from tests.run_cases import ENVS, ROWS, catch_config

WITHOUT_JAX = """
import sys
import emerald_jax as ej
run = ej.Run(sys.argv[1])
assert run.config.env == "gymnax:Catch-bsuite"
assert len(run.rows("episodes")) == 20 and run.evaluations == []
assert "jax" not in sys.modules
"""


@pytest.fixture(scope="module")
def path(run, tmp_path_factory):
    return shutil.copytree(run, tmp_path_factory.mktemp("run") / "run")


def test_it_reads_everything(path):
    run = ej.Run(path)
    assert run.path == path
    assert run.config == catch_config()
    assert [row["step"] for row in run.rows()] == [0, 16, 32, 48, 64]
    assert len(run.rows("episodes")) == 20
    assert run.rows("resumes") == run.evaluations == []
    assert len(run.recordings) == ENVS * ROWS
    assert [(point.step, point.problem) for point in run.checkpoints] == [(4, None), (9, None)]
    assert run.agent().updates == run.agent(9).updates == 9
    assert repr(run) == f"Run({str(path)!r})"


def test_it_changes_nothing_while_a_run_is_training(path):
    before = {p: p.stat().st_mtime_ns for p in path.rglob("*")}
    with RunLock(path):
        assert len(ej.Run(path).checkpoints) == 2
    (path / "lock").unlink()
    assert before.keys() == dict.fromkeys(path.rglob("*"), 0).keys()


def test_it_needs_no_jax(path):
    subprocess.run([sys.executable, "-c", WITHOUT_JAX, str(path)], check=True)


def test_other_directories_are_refused(path):
    with pytest.raises(ConfigError, match="is not a run"):
        ej.Run(path.parent)
