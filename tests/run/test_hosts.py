"""Who trains a run together, and how the replay is dealt to them. No process is started here."""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from emerald_jax.agent.state import RunError
from emerald_jax.config import ConfigError, ReplayConfig
from emerald_jax.presets import get_preset
from emerald_jax.process import StoppedError
from emerald_jax.replay import COLUMNS, Replay
from emerald_jax.run import replay_files
from emerald_jax.run.hosts import ALONE, Hosts, cluster_size, connect
from emerald_jax.run.replay_files import ReplayFiles
from tests.replay_world import SHAPE, World, fill

VARIABLES = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
SLURM = {"SLURM_JOB_ID": "7", "SLURM_STEP_NODELIST": "node[1-2]", "SLURM_PROCID": "0"}


class Fake(Hosts):
    """A host that hears what a test says."""

    def __init__(self, index: int, count: int, heard: list[dict[str, Any]] = ()) -> None:
        super().__init__(index, count)
        self.heard = heard

    def _all(self, value: dict[str, Any], timeout_ms: int) -> list[dict[str, Any]]:
        return [value, *self.heard]


@pytest.fixture(autouse=True)
def no_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)


def test_one_process_is_alone(monkeypatch):
    config = get_preset("tiny")
    assert connect(config) is ALONE
    assert ALONE.exchange("x") == ["x"]
    assert ALONE.part(config) is config
    assert (ALONE.seed(5), ALONE.first) == (5, True)
    monkeypatch.setenv(VARIABLES[1], "2")
    with pytest.raises(ConfigError, match="set all of JAX_COORDINATOR_ADDRESS"):
        connect(config)
    assert connect(dataclasses.replace(config, distributed="off")) is ALONE


@pytest.mark.parametrize(("tasks", "found"), [("1", 1), ("8", 8)])
def test_slurm_names_the_processes(monkeypatch, tasks, found):
    for name, value in {**SLURM, "SLURM_LOCALID": "0", "SLURM_NTASKS": tasks}.items():
        monkeypatch.setenv(name, value)
    assert cluster_size() == found


def test_given_processes(monkeypatch):
    for name, value in zip(VARIABLES, ("localhost:1", "12", "9"), strict=True):
        monkeypatch.setenv(name, value)
    assert cluster_size() == 12
    monkeypatch.setenv(VARIABLES[2], "12")
    with pytest.raises(ConfigError, match="JAX_PROCESS_ID 12 is no process of 12"):
        cluster_size()


def test_the_parts_make_the_whole():
    config = get_preset("tiny")
    parts = [Fake(i, 2).part(config) for i in range(2)]
    assert [part.envs.count for part in parts] == [2, 2]
    assert [part.replay.batch for part in parts] == [2, 2]
    # All have the same rows: as many as one host would have.
    assert parts[0].replay.capacity // 2 == config.replay.capacity // 4
    tree = {"x": np.arange(8)}
    np.testing.assert_array_equal(Fake(1, 2).mine(tree)["x"], [4, 5, 6, 7])
    assert len({Fake(i, 9).seed(5) for i in range(9)}) == 9
    for other, reason in (
        ({"envs": dataclasses.replace(config.envs, count=3)}, r"envs\.count 3 does not divide"),
        ({"data": "recorded"}, "--data is for one host"),
        ({"replay": ReplayConfig(batch=4, best_of=2)}, "each of 2 hosts has 2"),
    ):
        with pytest.raises(ConfigError, match=reason):
            Fake(0, 2).part(dataclasses.replace(config, **other))


def test_different_hosts_are_refused():
    config, heard = get_preset("tiny"), Fake(0, 2)
    values = []
    heard.exchange = lambda value: values.append(value) or [value]
    heard.agree(config, checkpoints=[3])
    same = Fake(0, 2, [{"value": values[0]}])
    same.agree(config, checkpoints=[3])
    other = {**values[0], "optim.model_lr": 1.0, "jax": "0.1"}
    with pytest.raises(ConfigError, match=r"host 1 differs.*jax '0.1', not.*optim.model_lr 1.0, "):
        Fake(0, 2, [{"value": other}]).agree(config, checkpoints=[3])


def test_what_ends_one_host_ends_the_others():
    with pytest.raises(StoppedError, match="SIGTERM"):
        Fake(0, 2, [{"stopped": "SIGTERM"}]).exchange(1)
    with pytest.raises(RunError, match="host 1 has failed: no memory"):
        Fake(0, 2, [{"failed": "no memory"}]).exchange(1)


def test_a_directory_of_its_own_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("emerald_jax.run.hosts.SEEN_S", 0.2)
    ALONE.check_shared(tmp_path)
    with pytest.raises(ConfigError, match="a file system that all hosts share"):
        Fake(1, 2).check_shared(tmp_path / "config.json")


def save(folder: Path, replays: list[Replay]) -> dict[str, Any]:
    """Save as the hosts of a run do; returns the joined manifest."""
    count = len(replays)
    files = [ReplayFiles(folder, Hosts(i, count)) for i in range(count)]
    manifests = [f.save(replay) for f, replay in zip(files, replays, strict=True)]
    joined = {**manifests[0], "chunks": [c for m in manifests for c in m["chunks"]]}
    for f in files:
        f.prune([joined])
        f.close()
    return joined


def load(folder: Path, manifest: dict[str, Any], count: int, rows: int = 40) -> list[Replay]:
    replays = [Replay(rows * (4 // count), 4 // count, SHAPE) for _ in range(count)]
    for index, replay in enumerate(replays):
        files = ReplayFiles(folder, Hosts(index, count))
        assert files.load(manifest, replay) == ()
        files.close()
    return replays


@pytest.mark.parametrize("counts", list(itertools.permutations((1, 2, 4))))
def test_every_record_is_dealt_once(tmp_path, monkeypatch, counts):
    monkeypatch.setattr(replay_files, "_chunk_rows", lambda replay: 16)
    whole = Replay(40 * 4, 4, SHAPE)
    fill(whole, World([[4], [6], [9], [3]]), 55)  # the oldest rows have been overwritten
    replays = [whole]
    for count in (*counts, 1):
        replays = load(tmp_path, save(tmp_path, replays), count)
    for name in COLUMNS:
        np.testing.assert_array_equal(replays[0].columns[name], whole.columns[name])
    assert (replays[0].written, replays[0].oldest, replays[0].holes) == (55, 15, [])
    save(tmp_path, replays)
    assert not list(tmp_path.glob("envs-*")), "what no checkpoint needs is deleted"
    assert len(list(tmp_path.glob("*.npz"))) == 3


def test_a_lost_chunk_is_a_hole_of_those_who_need_it(tmp_path):
    whole = Replay(40 * 4, 4, SHAPE)
    fill(whole, World([[4], [6], [9], [3]]), 30)
    manifest = save(tmp_path, [whole])
    manifest = save(tmp_path, load(tmp_path, manifest, 2))
    lost = manifest["chunks"][1]
    assert lost["envs"] == [2, 4]
    (tmp_path / lost["file"]).unlink()
    for count, holes in ((2, ([], [(0, 30)])), (1, ([(0, 30)],))):
        for index, expected in enumerate(holes):
            replay = Replay(40 * (4 // count), 4 // count, SHAPE)
            found = ReplayFiles(tmp_path, Hosts(index, count)).load(manifest, replay)
            assert (replay.holes, bool(found)) == (expected, bool(expected))
