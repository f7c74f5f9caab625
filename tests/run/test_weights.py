"""Weights without optimisers: exports, their readers, and new runs that start from them."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from emerald_jax import cli
from emerald_jax.agent.state import build_learner, fresh_state
from emerald_jax.config import ConfigError
from emerald_jax.replay import Replay
from emerald_jax.run import Run
from emerald_jax.run.checkpoint import Store, named_leaves
from emerald_jax.run.directory import CheckpointError, write_config
from emerald_jax.run.replay_files import ReplayFiles
from emerald_jax.run.weights import export_weights, read_weights, write_weights
from tests.model_cases import NUM_ACTIONS, make_state, small_config
from tests.replay_world import SHAPE, World, fill

#: Reads a checkpoint, an export and the replay of a run without this package.
FOREIGNER = """
import hashlib, json, pathlib, sys
import numpy as np, orbax.checkpoint as ocp
run, export = map(pathlib.Path, sys.argv[1:])
step = run / "checkpoints" / "20"
content = json.loads((step / "metadata.json").read_text())
tree = ocp.StandardCheckpointer().restore((step / "state").absolute())
alone = ocp.StandardCheckpointer().restore((export / "weights").absolute())
assert set(alone) == {"world_model", "actor", "critic"}
checked = 0
for name, leaf in content["leaves"].items():
    node, other = tree, {"state": {"params": alone}}
    for part in name.split("/"):
        node, other = node[part], other[part]
    assert list(node.shape) == leaf["shape"] and str(node.dtype) == leaf["dtype"]
    np.testing.assert_array_equal(node, other)
    checked += 1
assert checked > 100
assert content["run"]["env_steps"] == 80
for chunk in content["replay"]["chunks"]:
    data = (run / "replay" / chunk["file"]).read_bytes()
    assert hashlib.sha256(data).hexdigest() == chunk["sha256"]
    rows = np.load(run / "replay" / chunk["file"], allow_pickle=False)
    assert len(rows["image"]) == chunk["stop"] - chunk["start"] > 0
assert json.loads((export / "config.json").read_text())["model"]["width"] == 24
assert "emerald_jax" not in sys.modules
"""


@pytest.fixture(scope="module")
def learner():
    config = dataclasses.replace(small_config(), env="gymnax:Catch-bsuite")
    return build_learner(config, NUM_ACTIONS)


@pytest.fixture(scope="module")
def state(learner):
    return make_state(learner)


@pytest.fixture(scope="module")
def run(tmp_path_factory, learner, state) -> Path:
    """A run with two checkpoints, the newer with weights doubled, and a little replay."""
    path = tmp_path_factory.mktemp("weights") / "run"
    write_config(path, learner.config)
    replay = Replay(300, 3, SHAPE)
    with Store(path) as store:
        for step in (10, 20):
            fill(replay, World([[5]] * 3), 30)
            params = jax.tree.map(lambda x, s=step: x * (s / 10), state.params)
            metadata = {"env_steps": 4 * step, "config": learner.config.to_dict()}
            store.save(step, {"state": {"params": params}}, metadata, replay)
    return path


@pytest.fixture(scope="module")
def export(run) -> Path:
    target = run.parent / "export"
    content = export_weights(run, target)
    assert (content["step"], content["env_steps"], content["dtype"]) == (20, 80, "float32")
    return target


def assert_weights(params, state, factor, **tolerance):
    for name, leaf in named_leaves(params).items():
        expected = np.asarray(named_leaves(state.params)[name]) * factor
        assert leaf.dtype == jnp.float32
        np.testing.assert_allclose(leaf, expected, err_msg=name, **{"rtol": 0, **tolerance})


def test_runs_and_exports_are_read_alike(run, export, learner, state):
    assert_weights(read_weights(run, learner)[0], state, 2)
    params, step, metadata = read_weights(export, learner)
    assert_weights(params, state, 2)
    assert (step, metadata["env_steps"]) == (20, 80)
    params, step, _ = read_weights(run, learner, 10)
    assert_weights(params, state, 1)
    assert step == 10
    with pytest.raises(CheckpointError, match="holds checkpoint 20, not 10"):
        read_weights(export, learner, 10)


def test_bfloat16_halves_the_size(run, export, learner, state, tmp_path):
    export_weights(run, tmp_path / "half", dtype="bfloat16", checkpoint=10)
    params, step, _ = read_weights(tmp_path / "half", learner)
    assert step == 10
    assert_weights(params, state, 1, rtol=2**-8)
    leaves = [
        json.loads((folder / "export.json").read_text())["leaves"]
        for folder in (export, tmp_path / "half")
    ]
    assert {leaf["dtype"] for leaf in leaves[1].values()} == {"bfloat16"}
    assert leaves[0].keys() == leaves[1].keys()


def test_plain_orbax_and_json_read_all_of_it(run, export):
    command = [sys.executable, "-c", FOREIGNER, str(run), str(export)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=run.parent)
    assert done.returncode == 0, done.stderr
    check = ["sha256sum", "--check", "--quiet", "SHA256SUMS"]
    for folder in (export, run / "checkpoints" / "20"):
        assert subprocess.run(check, cwd=folder, check=False).returncode == 0
        listed = {line.split("  ")[1] for line in (folder / "SHA256SUMS").read_text().splitlines()}
        files = {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()}
        assert files - listed == {"SHA256SUMS"}


def test_no_flipped_bit_of_an_export_is_read(export, learner, state):
    rng = np.random.default_rng(0)
    refused = 0
    files = sorted(p for p in export.rglob("*") if p.is_file() and p.stat().st_size)
    for path in files:
        intact = path.read_bytes()
        flipped = bytearray(intact)
        place = int(rng.integers(8 * len(intact)))
        flipped[place // 8] ^= 1 << (place % 8)
        path.write_bytes(flipped)
        try:
            assert_weights(read_weights(export, learner)[0], state, 2)
        except (CheckpointError, ConfigError):
            refused += 1
        path.write_bytes(intact)
    assert refused == len(files)


def test_weights_that_do_not_fit_are_refused_by_setting(run, export):
    for source in (run, export):
        wider = small_config(model={"width": 32})
        with pytest.raises(CheckpointError) as caught:
            read_weights(source, build_learner(wider, NUM_ACTIONS))
        assert "do not fit this run: model.width 24 there and 32 here" in str(caught.value)
        assert "\n" not in str(caught.value)
        with pytest.raises(CheckpointError, match=r"does not fit: .*actor"):
            read_weights(source, build_learner(small_config(), NUM_ACTIONS + 1))
    with pytest.raises(ConfigError, match="is not a run"):
        read_weights(run / "replay", build_learner(small_config(), NUM_ACTIONS))


def test_a_new_run_has_fresh_optimisers_and_counters(export, learner, state):
    params, _, _ = read_weights(export, learner)
    begun = fresh_state(learner, params)
    assert_weights(begun.params, state, 2)
    for ours, critic in zip(
        jax.tree.leaves(begun.slow_critic), jax.tree.leaves(begun.params["critic"]), strict=True
    ):
        np.testing.assert_array_equal(ours, critic)
        assert ours is not critic
    assert int(begun.step) == int(state.step)
    fresh, ours = jax.tree.leaves(state.opt_state), jax.tree.leaves(begun.opt_state)
    for a, b in zip(fresh, ours, strict=True):
        np.testing.assert_array_equal(a, b)


def test_an_export_appears_complete_or_not_at_all(run, tmp_path, monkeypatch):
    (tmp_path / "mine").mkdir()
    with pytest.raises(CheckpointError, match="exists: choose another --to"):
        export_weights(run, tmp_path / "mine")
    with pytest.raises(CheckpointError, match="cannot be written"):
        export_weights(run, "/proc/nowhere/export")

    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("emerald_jax.run.weights.write_json", fail)
    with pytest.raises(CheckpointError, match="cannot be written: No space left on device"):
        export_weights(run, tmp_path / "new")
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_the_commands(run, tmp_path, capsys):
    assert cli.main(["export", str(run), "--to", str(tmp_path / "to"), "--dtype", "bfloat16"]) == 0
    assert "checkpoint 20 as bfloat16" in capsys.readouterr().out
    assert cli.main(["export", str(run), "--to", str(tmp_path / "to")]) == 2
    assert "exists: choose another --to" in capsys.readouterr().err
    before = sorted((p, p.stat().st_mtime_ns) for p in run.rglob("*"))
    assert cli.main(["checkpoints", str(run)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3
    assert lines[0].split()[0] == "updates"
    assert lines[2].split()[:2] == ["20", "80"]
    assert lines[2].endswith("60 rows in 1 chunks  sound")
    assert sorted((p, p.stat().st_mtime_ns) for p in run.rglob("*")) == before


def test_the_listing_names_what_is_damaged(run, capsys):
    chunk = max((run / "replay").iterdir())  # of the newer checkpoint, and of it alone
    metadata = run / "checkpoints" / "10" / "metadata.json"
    for path in (chunk, metadata):
        intact = path.read_bytes()
        path.write_bytes(intact[:-9] + bytes([intact[-9] ^ 1]) + intact[-8:])
        assert cli.main(["checkpoints", str(run)]) == 1
        found = capsys.readouterr().out
        assert (f"replay chunks lost: {chunk.name}" in found) == (path == chunk)
        assert ("damaged: its metadata cannot be read" in found) == (path == metadata)
        points = {point.step: point for point in Run(run).checkpoints}
        assert bool(points[20].lost) == (path == chunk)
        path.write_bytes(intact)
    assert not ReplayFiles(run / "nowhere").checker()({"file": "x", "sha256": "", "bytes": 0})


def test_a_single_group_is_written_and_read(learner, state, tmp_path):
    """As a study keeps the world model that it has trained."""
    params = {"world_model": state.params["world_model"]}
    write_weights(tmp_path / "w", params, learner.config, {"step": 7, "study": "prior"})
    found, step, metadata = read_weights(tmp_path / "w", learner, groups=["world_model"])
    assert (step, metadata["env_steps"], metadata["study"]) == (7, None, "prior")
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(params), strict=True):
        np.testing.assert_array_equal(a, b)
    with pytest.raises(CheckpointError, match=r"does not fit: actor/.* is absent in it"):
        read_weights(tmp_path / "w", learner)


def test_a_group_of_a_run_is_read_alone(run, learner, state):
    found, _, _ = read_weights(run, learner, groups=["actor"])
    assert found.keys() == {"actor"}
