"""The log on a full disk: rows are written later, TensorBoard loses points, nothing blocks."""

from __future__ import annotations

import contextlib
import json
import logging
import resource
from pathlib import Path

from emerald_jax.run.directory import JsonLines
from emerald_jax.run.log import open_tensorboard


@contextlib.contextmanager
def no_file_beyond(size: int):
    """Files of this process cannot grow beyond ``size`` bytes: writing them fails for real."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def numbers(path: Path) -> list[int]:
    return [json.loads(line)["step"] for line in path.read_text().splitlines()]


def test_rows_are_written_when_there_is_room(tmp_path, caplog):
    path = tmp_path / "rows.jsonl"
    rows = JsonLines(path)
    for step in range(3):
        rows.append({"step": step})
    with no_file_beyond(path.stat().st_size + 5):  # room for half a row
        rows.append({"step": 3})
        rows.append({"step": 4})
        assert numbers(path) == [0, 1, 2]
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert "rows.jsonl cannot be written to (File too large)" in caplog.text
    rows.append({"step": 5})
    assert numbers(path) == list(range(6))
    rows.close()


def test_tensorboard_survives_a_full_disk(tmp_path, caplog):
    writer = open_tensorboard(str(tmp_path), None)
    with no_file_beyond(300):
        for step in range(1000):  # its queue holds ten: with a dead thread this would block
            writer.add_scalar("x", step, step)
        writer.flush()
    writer.add_scalar("x", 1.0, 1000)
    writer.close()
    assert [record.name for record in caplog.records] == ["emerald_jax.run.log"]
