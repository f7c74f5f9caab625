"""Runs and exports written by version 0.1.0 up to commit a5675e2 open as before."""

from __future__ import annotations

import json
import shutil
from hashlib import sha256
from pathlib import Path

import jax
import numpy as np
import pytest

import emerald_jax as ej
from emerald_jax.agent.state import build_learner
from emerald_jax.config import ConfigError
from emerald_jax.run.checkpoint import Store, named_leaves
from emerald_jax.run.directory import DamagedError, read_config, saved_config
from emerald_jax.run.weights import export_weights, read_weights
from tests.run_cases import NUM_ACTIONS, catch_config

#: orbax wrote these files after the digests were taken.
LATE = ("_CHECKPOINT_METADATA", "commit_success.txt")


def seal(content: dict) -> str:
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return json.dumps({"sha256": sha256(text.encode()).hexdigest(), "content": content})


def sum_up(folder: Path) -> None:
    """The old SHA256SUMS, without the late files."""
    files = sorted(p for p in folder.rglob("*") if p.is_file() and p.name not in LATE)
    files = [path for path in files if path.name != "SHA256SUMS"]
    lines = [f"{sha256(p.read_bytes()).hexdigest()}  {p.relative_to(folder)}\n" for p in files]
    (folder / "SHA256SUMS").write_text("".join(lines))


def make_old(step: Path) -> None:
    """Change a checkpoint into the old layout."""
    new = json.loads((step / "metadata.json").read_text())
    (step / "metadata.json").unlink()
    leaves = {name: {**leaf, "sha256": "0" * 64} for name, leaf in new["leaves"].items()}
    facts = {"run": new["run"], "replay": new["replay"]}
    (step / "facts").mkdir()
    (step / "facts" / "metadata").write_text(
        seal({"step": new["step"], "leaves": leaves, "facts": facts})
    )
    for name in LATE:
        (step / name).write_text("{}")
    sum_up(step)


@pytest.fixture(scope="module")
def run(run, tmp_path_factory) -> Path:
    """A copy of the shared run in the old layout."""
    path = tmp_path_factory.mktemp("old") / "run"
    shutil.copytree(run, path)
    for step in (4, 9):
        make_old(path / "checkpoints" / str(step))
    return path


@pytest.fixture(scope="module")
def learner():
    return build_learner(catch_config(), NUM_ACTIONS)


def test_an_old_run_is_listed_and_loaded(run, capsys):
    agent = ej.load(run)
    assert agent.updates == 9
    assert [(point.step, point.problem) for point in ej.Run(run).checkpoints] == [
        (4, None),
        (9, None),
    ]
    assert len(ej.Run(run).recordings) > 0


def test_an_old_run_is_resumed_in_the_new_layout(run, learner, tmp_path):
    with Store(run) as store:
        params = read_weights(run, learner, 9)[0]
        shapes = jax.eval_shape(lambda: {"state": {"params": params}})
        point = store.restore(shapes)
        assert point.step == 9
        assert store.save(15, point.tree, {"config": catch_config().to_dict()})
        assert store.wait()
        assert store.steps() == [4, 9, 15]
    assert (run / "checkpoints" / "15" / "metadata.json").is_file()
    assert saved_config(run) == catch_config()


def test_a_flipped_bit_of_an_old_run_is_noticed(run):
    metadata = run / "checkpoints" / "4" / "facts" / "metadata"
    intact = metadata.read_bytes()
    metadata.write_bytes(intact.replace(b'"step": 4', b'"step": 8'))
    with pytest.raises(DamagedError, match="facts/metadata is not the file that was written"):
        Store(run, read_only=True).metadata(4)
    metadata.write_bytes(intact)
    (run / "checkpoints" / "4" / "state" / "new").write_text("x")
    with pytest.raises(DamagedError, match="state/new is not the file that was written"):
        Store(run, read_only=True).verify(4)
    (run / "checkpoints" / "4" / "state" / "new").unlink()


def test_an_old_export_is_read(run, learner, tmp_path):
    export_weights(run, tmp_path / "export", checkpoint=4)
    path = tmp_path / "export" / "export.json"
    path.write_text(seal(json.loads(path.read_text())))
    sum_up(tmp_path / "export")
    ours, theirs = (named_leaves(read_weights(p, learner, 4)[0]) for p in (path.parent, run))
    for name, leaf in theirs.items():
        np.testing.assert_array_equal(ours[name], leaf)


def test_settings_of_another_version_name_it(run):
    config = run / "config.json"
    intact = config.read_text()
    config.write_text(json.dumps({**json.loads(intact), "colour": 3}))
    with pytest.raises(ConfigError, match=r"was written by another version \(0\.1\.0\): unknown"):
        read_config(run)
    config.write_text(intact)
