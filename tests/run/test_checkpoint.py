"""Damaged checkpoints, full disks: the saved point is restored exactly, or refused in one line."""

from __future__ import annotations

import contextlib
import json
import logging
import resource
import shutil
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest

from emerald_jax import __version__
from emerald_jax.config import Config
from emerald_jax.run import Run, checkpoint
from emerald_jax.run.checkpoint import CheckpointError, DamagedError, Store
from emerald_jax.run.directory import write_config

METADATA = {"counters": {"env_steps": 7, "big": 2**100}, "rate": 0.1, "name": "é"}


@flax.struct.dataclass
class State:
    params: dict
    opt: optax.OptState
    step: jax.Array


class Carry(NamedTuple):
    keys: jax.Array
    rng: jax.Array


def make_tree(seed: int = 0, width: int = 4):
    """What a run saves: a flax dataclass, optax states, a NamedTuple, four dtypes, a scalar."""
    key = jax.random.key(seed)
    params = {
        "actor": {"kernel": jax.random.normal(key, (3, width)), "bias": jnp.full(width, 0.5)},
        "half": jnp.linspace(0, 1, 6, dtype=jnp.bfloat16),
    }
    opt = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(1e-3)).init(params)
    carry = Carry(keys=jnp.ones((2, 0, 3)), rng=jax.random.key_data(key))
    return State(params=params, opt=opt, step=jnp.int32(seed)), carry


def abstract(tree):
    return jax.eval_shape(lambda: tree)


def assert_equal(a, b) -> None:
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert x.dtype == y.dtype
        np.testing.assert_array_equal(np.asarray(x), np.asarray(y))


@pytest.fixture
def saved(tmp_path) -> Path:
    """The checkpoints 10, 20 and 30 of a run, each of its own seed."""
    with Store(tmp_path) as store:
        for step in (10, 20, 30):
            assert store.save(step, make_tree(step), METADATA | {"step": step})
    return tmp_path / "checkpoints"


def test_several_runs_of_a_process_save_at_the_same_time(tmp_path) -> None:
    tree = make_tree()

    def save_all(run: int) -> list[bool]:
        with Store(tmp_path / str(run)) as store:
            return [store.save(step, tree, METADATA) and store.wait() for step in range(1, 5)]

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(save_all, range(4))) == [[True] * 4] * 4


def files_of(path: Path) -> list[Path]:
    return sorted(p for p in path.rglob("*") if p.is_file())


def store_of(saved: Path, **options) -> Store:
    return Store(saved.parent, **options)


def restore(saved: Path, step: int | None = None):
    """Tree, metadata, step."""
    return store_of(saved, read_only=True).restore(abstract(make_tree()), step=step)[:3]


def latest_sound(store: Store) -> int:
    """The newest step of which every byte is the one written."""
    for step in reversed(store.steps()):
        with contextlib.suppress(DamagedError):
            store.verify(step)
            return step
    raise AssertionError("no sound step")


def test_round_trip(saved):
    tree, metadata, step = restore(saved)
    assert step == 30
    assert metadata == METADATA | {"step": 30}
    assert_equal(tree, make_tree(30))
    assert_equal(restore(saved, 10)[0], make_tree(10))


def test_the_caller_may_overwrite_its_arrays_at_once(tmp_path):
    array = np.arange(1000.0)
    with Store(tmp_path) as store:
        store.save(1, {"x": array}, {})
        array[:] = -1
        assert store.wait()
        tree = store.restore({"x": jax.ShapeDtypeStruct((1000,), np.float64)}).tree
        again = store.restore({"x": array}).tree
    assert tree["x"].dtype == np.float64  # JAX would have made it float32
    assert float(tree["x"][-1]) == 999
    assert isinstance(again["x"], np.ndarray)


def test_plain_orbax_and_json_read_it(saved):
    state = ocp.StandardCheckpointer().restore(saved / "30" / "state")
    np.testing.assert_array_equal(
        state[0]["params"]["actor"]["kernel"], make_tree(30)[0].params["actor"]["kernel"]
    )
    content = json.loads((saved / "30" / "metadata.json").read_text())
    assert content["run"]["counters"]["big"] == 2**100
    assert content["version"] == __version__
    check = ["sha256sum", "--check", "--quiet", "SHA256SUMS"]
    assert subprocess.run(check, cwd=saved / "30", check=False).returncode == 0


def test_leaves_go_to_the_devices_asked_for(saved):
    device = jax.devices()[-1]
    mesh = jax.sharding.Mesh(jax.devices()[:3], ("x",))
    spread = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("x"))
    alone = jax.sharding.SingleDeviceSharding(device)
    target = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(
            x.shape, x.dtype, sharding=spread if x.shape[:1] == (3,) else alone
        ),
        make_tree(),
    )
    tree = store_of(saved, read_only=True).restore(target).tree
    assert tree[0].step.devices() == {device}
    assert len(tree[0].params["actor"]["kernel"].devices()) == 3
    assert_equal(tree, make_tree(30))


def test_a_part_of_the_tree(saved):
    store = store_of(saved, read_only=True)
    actor, _, step, _ = store.read("0/params/actor")
    with pytest.raises(CheckpointError, match="holds no 0/params/critic"):
        store.read("0/params/critic")
    assert step == 30
    assert_equal(actor, make_tree(30)[0].params["actor"])


def test_a_carry_saved_on_a_gpu_opens_on_a_cpu(tmp_path):
    """Floats of carries come back in the precision of the target; other leaves must fit."""
    half = {"carry": {"keys": jnp.linspace(0, 1, 6, dtype=jnp.bfloat16)}, "z": jnp.arange(3)}
    full = {"carry": {"keys": jnp.zeros(6)}, "z": jnp.zeros(3, jnp.int32)}
    with Store(tmp_path) as store:
        assert store.save(1, half, {})
        assert store.wait()
        tree = store.restore(full).tree
        assert tree["carry"]["keys"].dtype == jnp.float32
        np.testing.assert_array_equal(tree["carry"]["keys"], half["carry"]["keys"])
        with pytest.raises(CheckpointError, match=r"bfloat16\[6\] in it and float32\[6\]"):
            store.restore(full, cast=())
        with pytest.raises(CheckpointError, match=r"z is int32\[3\] in it and float32\[3\]"):
            store.restore(full | {"z": jnp.zeros(3)}, cast=("carry/", "z"))


def test_the_last_save_is_noticed_without_waiting(saved):
    with store_of(saved) as store:
        store.restore(abstract(make_tree()))
        assert store.poll() is None
        assert store.save(40, make_tree(40), METADATA)
        while (ended := store.poll()) is None:
            time.sleep(0.01)
        assert ended
        assert store.poll() is None
        assert store.steps()[-1] == 40


def test_step_0_is_saved_again_with_more_prefill(tmp_path, caplog):
    with Store(tmp_path) as store:
        for rows in (1, 2):
            assert store.save(0, make_tree(rows), {"rows": rows})
            assert store.wait()
        tree, metadata, step, _ = store.restore(abstract(make_tree()))
        assert (step, metadata) == (0, {"rows": 2})
        assert_equal(tree, make_tree(2))


def test_the_newest_are_kept(saved, tmp_path):
    with store_of(saved, keep=2) as store:
        store.restore(abstract(make_tree()))
        for step in (40, 50):
            assert store.save(step, make_tree(step), METADATA)
            assert store.wait()
        assert store.steps() == [40, 50]
        assert latest_sound(store) == 50
        assert store.save(50, make_tree(50), METADATA)  # a preemption right after a save
        write_config(tmp_path, Config())
        info = Run(tmp_path).checkpoints[-1]
    assert (info.step, info.problem) == (50, None)
    assert info.digest
    assert info.nbytes == sum(p.stat().st_size for p in files_of(saved / "50"))


def test_no_single_flipped_bit_is_ever_restored(saved):
    """Eight bits in every file of a step: the step is always refused."""
    rng = np.random.default_rng(0)
    refused = 0
    files = files_of(saved / "30")
    for path in files:
        intact = path.read_bytes()
        for place in rng.integers(0, 8 * len(intact), size=8) if intact else ():
            flipped = bytearray(intact)
            flipped[place // 8] ^= 1 << (place % 8)
            path.write_bytes(flipped)
            try:
                tree, metadata, _ = restore(saved, 30)
            except CheckpointError:
                refused += 1
            else:
                assert_equal(tree, make_tree(30))
                assert metadata == METADATA | {"step": 30}
        path.write_bytes(intact)
    assert refused == 8 * len([path for path in files if path.stat().st_size])
    assert_equal(restore(saved, 30)[0], make_tree(30))


@pytest.mark.parametrize("harm", ["truncate", "empty", "remove"])
def test_truncated_and_missing_files(saved, harm):
    for path in files_of(saved / "30"):
        intact = path.read_bytes()
        if harm == "remove":
            path.unlink()
        else:
            path.write_bytes(intact[: len(intact) // 2] if harm == "truncate" else b"")
        tree, metadata, step = restore(saved)
        assert step in (20, 30)
        assert_equal(tree, make_tree(step))
        assert metadata["step"] == step
        path.write_bytes(intact)


def damage(step: Path) -> None:
    """Change the largest file of the arrays."""
    path = max(files_of(step / "state"), key=lambda p: p.stat().st_size)
    path.write_bytes(bytes(255 - byte for byte in path.read_bytes()))


def test_a_run_resumes_from_the_newest_sound_step(saved, caplog):
    damage(saved / "30")
    with store_of(saved) as store:
        assert latest_sound(store) == 20
        with pytest.raises(DamagedError):
            store.verify(30)
        tree, _, step, _ = store.restore(abstract(make_tree()))
        assert step == 20
        assert "checkpoint 30" in caplog.text
        assert_equal(tree, make_tree(20))
        assert store.steps() == [10, 20, 30]  # reading changes nothing
        assert store.save(25, make_tree(25), METADATA)
        assert store.save(30, make_tree(31), METADATA)
        assert store.wait()
        assert store.steps() == [20, 25, 30]
        assert_equal(store.restore(abstract(make_tree()))[0], make_tree(31))
    assert (saved / "aside" / "30").is_dir()


def test_all_damaged_or_a_renamed_step(saved):
    shutil.rmtree(saved / "10")
    (saved / "30").rename(saved / "40")
    with pytest.raises(CheckpointError, match="saved as step 30"):
        restore(saved, 40)
    damage(saved / "20")
    with pytest.raises(CheckpointError, match="no sound checkpoint") as caught:
        restore(saved)
    assert "\n" not in str(caught.value)
    with pytest.raises(DamagedError):
        store_of(saved, read_only=True).metadata(40)


def test_other_shapes_are_named_in_one_line(saved):
    store = store_of(saved, read_only=True)
    with pytest.raises(CheckpointError, match="does not fit") as caught:
        store.restore(abstract(make_tree(width=5)))
    message = str(caught.value)
    assert "\n" not in message
    assert "0/params/actor/bias is float32[4] in it and float32[5] in this run" in message
    with pytest.raises(CheckpointError, match=r"1/keys is float32\[2, 0, 3\] in it and absent"):
        store.restore((abstract(make_tree()[0]),))
    with pytest.raises(CheckpointError, match=r"new is absent in it and int32\[\]"):
        store.restore({"new": jax.ShapeDtypeStruct((), np.int32)})
    half = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, np.float16), make_tree())
    with pytest.raises(CheckpointError, match="float16"):
        store.restore(half)


def test_no_checkpoint_or_not_this_one(saved, tmp_path):
    with pytest.raises(CheckpointError, match="no checkpoint in"):
        restore(tmp_path / "nowhere" / "checkpoints")
    assert not (tmp_path / "nowhere").exists()
    with pytest.raises(CheckpointError, match="has no checkpoint 11, only 10, 20, 30"):
        restore(saved, 11)


def test_a_foreign_or_unwritable_place_is_refused(tmp_path):
    place = tmp_path / "checkpoints"
    place.mkdir()
    (place / "thesis.tex").write_text("x")
    with pytest.raises(CheckpointError, match=r"thesis\.tex"):
        Store(tmp_path)
    assert [p.name for p in place.iterdir()] == ["thesis.tex"]
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "checkpoints").write_text("x")
    with pytest.raises(CheckpointError, match="is a file"):
        Store(tmp_path / "run")
    with pytest.raises(CheckpointError, match="cannot be written in"):
        Store("/proc/nowhere")  # also for root, who has all permissions


def test_read_only_changes_nothing(saved):
    (saved / "40.orbax-checkpoint-tmp").mkdir()
    before = {path: path.stat().st_mtime_ns for path in saved.rglob("*")}
    with store_of(saved, read_only=True) as store:
        store.restore(abstract(make_tree()))
        assert latest_sound(store) == 30
        with pytest.raises(CheckpointError, match="read-only"):
            store.save(50, make_tree(), METADATA)
    assert before == {path: path.stat().st_mtime_ns for path in saved.rglob("*")}


def test_metadata_must_be_json(tmp_path):
    with Store(tmp_path) as store, pytest.raises(TypeError):
        store.save(1, make_tree(), {"x": np.float32(1)})


def test_half_a_step_from_a_kill_is_cleared_away(saved):
    shutil.copytree(saved / "30", saved / "40.orbax-checkpoint-tmp")
    with store_of(saved) as store:
        assert not (saved / "40.orbax-checkpoint-tmp").exists()
        assert store.restore(abstract(make_tree()))[2] == 30


def test_a_full_disk_at_the_start_of_a_save(saved, monkeypatch, caplog):
    with store_of(saved) as store:
        store.restore(abstract(make_tree()))

        def fail(*_):
            raise OSError(28, "No space left on device")

        with monkeypatch.context() as patch:
            patch.setattr(checkpoint, "save_tree", fail)
            assert not (store.save(40, make_tree(40), METADATA) and store.wait())
        assert "No space left on device" in caplog.text
        assert "keeping 10, 20, 30" in caplog.text
        assert store.save(40, make_tree(40), METADATA)
        assert store.wait()
    assert_equal(restore(saved)[0], make_tree(40))


def test_a_full_disk_in_the_background(saved, caplog):
    """No file of this process may grow beyond 3000 bytes: orbax' writing thread fails for real."""
    big = {"x": np.random.default_rng(0).normal(size=5000)}
    before = {path: path.stat().st_mtime_ns for path in files_of(saved)}
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    with store_of(saved, keep=3) as store:
        store.restore(abstract(make_tree()))
        for _ in range(2):
            resource.setrlimit(resource.RLIMIT_FSIZE, (3000, hard))
            try:
                begun = store.save(40, big, {})
                assert not (begun and store.wait())
            finally:
                resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
            assert store.steps() == [10, 20, 30]
            assert before == {path: path.stat().st_mtime_ns for path in files_of(saved)}
        warnings = [r for r in caplog.records if r.levelno >= logging.WARNING]
        assert [r.name for r in warnings] == ["emerald_jax.run.checkpoint"] * 2
        assert store.save(40, make_tree(40), METADATA)
        assert store.wait()
        assert store.steps() == [20, 30, 40]
    assert_equal(restore(saved)[0], make_tree(40))
