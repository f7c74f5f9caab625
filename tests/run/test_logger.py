"""The files of a run directory, and the lines on the terminal."""

from __future__ import annotations

import dataclasses
import io
import json
import math
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from emerald_jax.config import Config, ConfigError
from emerald_jax.presets import get_preset
from emerald_jax.run.directory import (
    JsonLines,
    check_run_dir,
    read_config,
    read_rows,
    write_config,
)
from emerald_jax.run.log import ProgressView, RunLogger, format_bytes, format_seconds

TINY = get_preset("tiny")
QUIET = dataclasses.replace(TINY, log=dataclasses.replace(TINY.log, quiet=True))


@pytest.fixture
def logger(tmp_path: Path):
    with RunLogger(tmp_path, QUIET, total_steps=1000) as logger:
        yield logger


class Clock:
    """Seconds that a test sets."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_nothing_is_written_before_there_is_something_to_write(tmp_path: Path) -> None:
    with RunLogger(tmp_path / "run", TINY, total_steps=10) as logger:
        logger.say("hello")
        logger.progress(0, 0)
    assert not (tmp_path / "run").exists()


def test_scalars_reach_the_disk_at_once(logger: RunLogger, tmp_path: Path) -> None:
    logger.scalars(16, {"loss/image": np.float32(1.5), "loss/reward": float("nan")})
    logger.scalars(32, {"loss/image": 1, "loss/reward": math.inf})
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [16, 32]
    assert [row["loss/image"] for row in rows] == [1.5, 1.0]
    assert [row["loss/reward"] for row in rows] == [None, None]
    assert rows[0]["time"] > 1e9


def test_tensorboard_has_the_groups_and_the_settings_once(
    logger: RunLogger, tmp_path: Path
) -> None:
    logger.scalars(16, {"loss/image": 1.0, "loss/bad": math.nan})
    logger.scalars(32, {"loss/image": 1.0})
    logger.episode(32, {"score": 1.0, "length": 9})
    logger.close()
    (events,) = (tmp_path / "tensorboard").iterdir()
    data = events.read_bytes()
    assert data.count(b"loss/image") == 2
    assert data.count(b"train_ratio") == 1
    assert b"loss/bad" not in data
    assert b"episode/score" in data


def test_episodes_are_averaged_over_the_last_hundred(logger: RunLogger, tmp_path: Path) -> None:
    assert math.isnan(logger.mean_score)
    for index in range(150):
        logger.episode(index, {"score": float(index), "length": 9, "extra": {}})
    assert logger.mean_score == np.mean(range(50, 150))
    rows = read_rows(tmp_path / "episodes.jsonl")
    assert len(rows) == 150
    assert rows[3]["score"] == 3.0


def test_rewind_drops_what_lies_after_the_checkpoint(tmp_path: Path) -> None:
    image = np.zeros((4, 4, 3), np.uint8)
    with RunLogger(tmp_path, QUIET, total_steps=1000) as first:
        for step in (100, 200, 300):
            first.scalars(step, {"loss/image": step})
            first.episode(step, {"score": step / 100})
            first.image(step, "dream", image)
    with RunLogger(tmp_path, QUIET, total_steps=1000) as second:
        second.rewind(200)
        assert second.mean_score == 1.5  # episodes of returns 1 and 2
        second.scalars(250, {"loss/image": 250})
        second.episode(250, {"score": 6.0})
        assert second.mean_score == 3.0
    assert [row["step"] for row in read_rows(tmp_path / "metrics.jsonl")] == [100, 200, 250]
    assert [row["score"] for row in read_rows(tmp_path / "episodes.jsonl")] == [1.0, 2.0, 6.0]
    pictures = sorted(path.name for path in (tmp_path / "pictures").iterdir())
    assert pictures == ["dream_000000100.png", "dream_000000200.png"]


def test_stats_are_rewound_with_the_episodes_they_belong_to(tmp_path: Path) -> None:
    def episode(score: float, **more) -> dict:
        return {"score": score, "length": 9, "achievements": {"wood": int(score)}, **more}

    with RunLogger(tmp_path, QUIET, total_steps=1000) as first:
        first.episode(100, episode(1.0))
        first.episode(200, episode(50.0, fault="died"))
        first.episode(200, episode(2.0))
        first.episode(300, episode(3.0))
        assert first.mean_score == 2.0  # the one that a fault cut does not count
    with (tmp_path / "stats.jsonl").open("a") as stats:
        stats.write('{"length": 9, "rew')  # a kill in the middle of a write
    with RunLogger(tmp_path, QUIET, total_steps=1000) as second:
        second.rewind(200)
        assert second.mean_score == 1.5
        second.episode(250, episode(6.0))
    rows = read_rows(tmp_path / "stats.jsonl")
    assert [row["reward"] for row in rows] == [1.0, 2.0, 6.0]
    assert rows[2] == {"length": 9, "reward": 6.0, "achievement_wood": 6}
    assert len(read_rows(tmp_path / "episodes.jsonl")) == 4
    assert [row["step"] for row in read_rows(tmp_path / "resumes.jsonl")] == [200]


def test_episodes_that_do_not_count_are_reported(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with RunLogger(tmp_path, TINY, total_steps=1000) as logger:
        logger.episode(100, {"score": 1.0, "length": 9, "fault": "died"})
    with RunLogger(tmp_path, TINY, total_steps=1000) as logger:
        logger.rewind(100)
        logger.episode(200, {"score": 1.0, "length": 9, "fault": "died"})
        assert math.isnan(logger.mean_score)
    lines = capsys.readouterr().err.splitlines()
    assert [line.split("(")[1] for line in lines] == ["1 so far)", "2 so far)"]
    assert read_rows(tmp_path / "stats.jsonl") == []


def test_half_a_line_of_a_killed_process_is_removed(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}\n{"step": 3, "lo')
    assert [row["step"] for row in read_rows(path)] == [1, 2]
    rows = JsonLines(path)
    rows.append({"step": 4})
    assert [row["step"] for row in read_rows(path)] == [1, 2, 4]
    path.write_text('{"step": 1}\n{"step": 2}\n{"step": 3, "lo')
    assert [row["step"] for row in rows.rewind(1)] == [1]
    assert path.read_text() == '{"step": 1}\n'
    assert [p.name for p in tmp_path.iterdir()] == ["metrics.jsonl"]  # no drafts left
    rows.close()


def test_rewinding_nothing_makes_nothing(tmp_path: Path) -> None:
    with RunLogger(tmp_path / "run", QUIET, total_steps=1000) as logger:
        logger.rewind(0)
    assert not (tmp_path / "run").exists()


def test_pictures_are_exact(logger: RunLogger, tmp_path: Path) -> None:
    image = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    path = logger.image(42, "report/dream", image)
    assert path == tmp_path / "pictures" / "report-dream_000000042.png"
    np.testing.assert_array_equal(np.asarray(Image.open(path)), image)


@pytest.mark.parametrize(
    "array",
    [np.zeros((4, 4), np.uint8), np.zeros((4, 4, 4), np.uint8), np.zeros((4, 4, 3), np.float32)],
)
def test_arrays_of_other_shapes_are_refused(logger: RunLogger, array: np.ndarray) -> None:
    with pytest.raises(ValueError, match="a picture is"):
        logger.image(0, "dream", array)


def test_a_first_achievement_is_reported_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with RunLogger(tmp_path, TINY, total_steps=1000) as logger:
        logger.episode(100, {"score": 1.0, "achievements": {"collect_wood": 2, "sleep": 0}})
        logger.episode(200, {"score": 1.0, "extra": {"achievements": {"collect_wood": 1}}})
    assert capsys.readouterr().err == "first collect wood after 100 steps\n"
    with RunLogger(tmp_path, TINY, total_steps=1000) as logger:
        logger.rewind(200)
        logger.episode(300, {"score": 1.0, "achievements": {"collect_wood": 1}})
    assert capsys.readouterr().err == ""


def test_config_round_trip(tmp_path: Path) -> None:
    write_config(tmp_path / "run", TINY)
    assert read_config(tmp_path / "run") == TINY
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["config.json"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "is not a run: it holds no config.json"),
        ("{", "cannot be read"),
        ("3", "cannot be read"),
        ('{"model": 3}', "cannot be read"),
        ('{"colour": 3}', "was written by another version: unknown setting colour"),
    ],
)
def test_other_directories_are_refused(tmp_path: Path, text: str | None, message: str) -> None:
    if text is not None:
        (tmp_path / "config.json").write_text(text)
    with pytest.raises(ConfigError, match=message):
        read_config(tmp_path)


def test_a_folder_of_runs_names_one_of_them(tmp_path: Path) -> None:
    for name in ("crafter-1", "crafter-0"):
        write_config(tmp_path / name, TINY)
    with pytest.raises(ConfigError, match=rf"give a run in it, such as {tmp_path}/crafter-0$"):
        read_config(tmp_path)


def at(logdir: Path, config: Config = TINY) -> Config:
    return dataclasses.replace(config, logdir=str(logdir))


def test_a_directory_below_a_file_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot be written in"):
        check_run_dir(at(tmp_path / "file" / "run"))


def view(clock: Clock, *, terminal: bool, **settings) -> tuple[ProgressView, io.StringIO]:
    out = io.StringIO()
    console = Console(file=out, force_terminal=terminal, width=100, highlight=False)
    return ProgressView(1000, clock=clock, console=console, **settings), out


def test_plain_lines_every_ten_seconds() -> None:
    clock = Clock()
    progress, out = view(clock, terminal=False)
    for second in range(26):
        clock.now = float(second)
        progress.update(10 * second, 4 * second, 0.5)
    lines = out.getvalue().splitlines()
    assert len(lines) == 3  # at 0, 10 and 20 seconds
    # 200 of 1000 steps after 20 seconds, at 10 steps/s: 80 seconds to go.
    assert lines[2].startswith("200 / 1,000 steps (20 %)  return 0.50  4 updates/s  1:20 left  ")
    assert lines[2].endswith("B")


def test_the_wall_clock_limit_shortens_the_time_left() -> None:
    clock = Clock()
    progress, out = view(clock, terminal=False, max_seconds=30)
    for second in (0.0, 10.0):
        clock.now = second
        progress.update(int(10 * second), 0, math.nan)
    assert "0:20 left" in out.getvalue().splitlines()[1]
    assert "return" not in out.getvalue()


def test_a_terminal_gets_a_bar_with_the_final_numbers() -> None:
    clock = Clock()
    progress, out = view(clock, terminal=True)
    progress.update(0, 0, math.nan)
    progress.say("a [bold] word")
    clock.now = 0.01  # too soon to be drawn, but these are the final numbers
    progress.update(1000, 400, 0.97)
    progress.close()
    progress.close()
    text = out.getvalue()
    assert "a [bold] word" in text
    assert "1,000 / 1,000" in text
    assert "100 %" in text
    assert "return 0.97" in text


def test_quiet_says_only_the_result(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    with RunLogger(tmp_path, QUIET, total_steps=1000) as logger:
        logger.say("hello")
        logger.progress(1000, 10)
        logger.result("return 0.97")
    assert capsys.readouterr() == ("return 0.97\n", "")


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (-1, "0:00"),
        (42, "0:42"),
        (725, "12:05"),
        (11230, "3:07:10"),
        (4 * 86400 + 10800, "4 d 03 h"),
    ],
)
def test_durations(seconds: float, text: str) -> None:
    assert format_seconds(seconds) == text


def test_memory() -> None:
    assert format_bytes(812_400_000) == "812 MB"
    assert format_bytes(3_420_000_000) == "3.4 GB"
