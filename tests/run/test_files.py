"""A file is written completely, or the old one stays."""

from __future__ import annotations

import errno
import os

import pytest

from emerald_jax.run import directory
from emerald_jax.run.directory import write_atomic


def test_folders_are_made_and_what_was_there_is_replaced(tmp_path):
    path = tmp_path / "a" / "b.json"
    write_atomic(path, b"old")
    write_atomic(path, memoryview(b"new"))
    assert path.read_bytes() == b"new"
    assert os.listdir(path.parent) == ["b.json"]


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch, step):
    path = tmp_path / "b.json"
    write_atomic(path, b"old")

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(directory.os, step, full)
    with pytest.raises(OSError, match="No space left"):
        write_atomic(path, b"new")
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["b.json"]


def test_a_file_system_that_cannot_sync_a_directory_is_good_enough(tmp_path, monkeypatch):
    def refuses(path):
        raise OSError(errno.EINVAL, "Invalid argument")

    monkeypatch.setattr(directory, "sync_directory", refuses)
    write_atomic(tmp_path / "b.json", b"new")
    assert (tmp_path / "b.json").read_bytes() == b"new"
