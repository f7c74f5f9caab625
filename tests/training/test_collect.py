"""Recorded data sets: what is written is what is read, and what is not whole is refused."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest

from emerald_jax.presets import get_preset
from emerald_jax.replay import COLUMNS, Replay, ReplayError
from emerald_jax.run.recordings import DATASET_FILE, read_dataset, write_dataset
from emerald_jax.training.evaluate import facts_of, record
from experiments.study.worlds import split
from tests.replay_world import SHAPE, World, fill

FACTS = {"env": "fake", "num_actions": 5, "image_shape": list(SHAPE)}


@pytest.fixture
def replay():
    replay = Replay(90, 3, SHAPE)
    fill(replay, World([[4, 7], [3], [25]]), 30)
    return replay


def test_every_byte_comes_back(tmp_path, replay):
    write_dataset(tmp_path / "d", replay, FACTS)
    found = read_dataset(tmp_path / "d")
    assert found.facts == FACTS
    assert (found.replay.written, found.replay.oldest) == (30, 0)
    for name in COLUMNS:
        np.testing.assert_array_equal(found.replay.columns[name], replay.columns[name])
    assert found.replay.columns["is_terminal"].any()
    assert found.replay.num_episodes == replay.num_episodes
    # Anyone can read a chunk.
    (chunk,) = (tmp_path / "d").glob("*.npz")
    with np.load(chunk, allow_pickle=False) as rows:
        np.testing.assert_array_equal(rows["reward"], replay.columns["reward"])


def test_a_data_set_is_never_overwritten(tmp_path, replay):
    write_dataset(tmp_path, replay, FACTS)
    with pytest.raises(ReplayError, match="already holds a data set: choose another --out"):
        write_dataset(tmp_path, replay, FACTS)


@pytest.mark.parametrize("harm", ["chunk", "missing", "manifest", "version", "nothing"])
def test_what_is_not_whole_is_refused(tmp_path, replay, harm):
    write_dataset(tmp_path, replay, FACTS)
    (chunk,) = tmp_path.glob("*.npz")
    manifest = tmp_path / DATASET_FILE
    if harm == "chunk":
        data = bytearray(chunk.read_bytes())
        data[len(data) // 2] ^= 1
        chunk.write_bytes(data)
    elif harm == "missing":
        chunk.unlink()
    elif harm == "manifest":
        manifest.write_text(manifest.read_text()[:-20])
    elif harm == "version":
        manifest.write_text(json.dumps({**json.loads(manifest.read_text()), "format": 99}))
    else:
        manifest.unlink()
    message = {
        "chunk": "is damaged",
        "missing": "is damaged",
        "manifest": "cannot be read",
        "version": "format 99, this version reads 1",
        "nothing": "is not a data set",
    }[harm]
    with pytest.raises(ReplayError, match=message) as caught:
        read_dataset(tmp_path)
    assert "\n" not in str(caught.value)


def test_held_out_rows_are_never_trained_on(replay):
    train, held_out = split(replay, 0.2)
    assert (train.written, held_out.written) == (24, 6)
    code = {r: set(p.columns["reward"].ravel()) for r, p in (("a", train), ("b", held_out))}
    assert code["a"] & code["b"] <= {0.0}, "the rewards are the records' own numbers"
    np.testing.assert_array_equal(train.columns["image"], replay.columns["image"][:24])
    np.testing.assert_array_equal(held_out.columns["image"], replay.columns["image"][24:])
    assert held_out.begins(2, 0, 1)[0], "the cut begins an episode in every environment"


def test_a_recording_holds_whole_episodes():
    # Catch: 9 steps, 10 records; 4 environments in step; seeds decide everything.
    config = get_preset("tiny")
    one, again = (record(config, 70, seed=0) for _ in range(2))
    other = record(config, 70, seed=1)
    assert one.written * 4 == len(one)
    steps = len(one) - int(one.columns["is_first"].sum())
    assert 70 <= steps < 74
    first = one.columns["is_first"][: one.written]
    np.testing.assert_array_equal(first[::10], True)
    np.testing.assert_array_equal(one.columns["is_terminal"][9 : one.written : 10], True)
    assert (one.columns["action"][: one.written] == -1)[first].all()
    for name in COLUMNS:
        np.testing.assert_array_equal(one.columns[name], again.columns[name])
    assert (one.columns["action"] != other.columns["action"]).any()
    facts = facts_of(dataclasses.replace(config, seed=3), "random", 0, 70)
    assert facts["num_actions"] == 3
    assert json.loads(json.dumps(facts)) == facts
