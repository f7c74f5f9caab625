"""Settings with which a run may be resumed, and directories that are refused in one line."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from emerald_jax.config import Config, ConfigError
from emerald_jax.presets import get_preset
from emerald_jax.run.directory import (
    FREE,
    RunLock,
    check_run_dir,
    compare_settings,
    run_dir,
    saved_config,
    write_config,
)

TINY = get_preset("tiny")


def at(logdir: Path, **changes: Any) -> Config:
    """``tiny`` at ``logdir``, with changes by dotted name."""
    config = dataclasses.replace(TINY, logdir=str(logdir))
    for name, value in changes.items():
        group, _, field = name.rpartition("__")
        if group:
            value = dataclasses.replace(getattr(config, group), **{field: value})
        config = dataclasses.replace(config, **{group or field: value})
    return config


def pretend_checkpoint(logdir: Path, config: Config, step: int = 10) -> Path:
    """The part of a checkpoint that holds its settings."""
    path = logdir / "checkpoints" / str(step) / "metadata.json"
    path.parent.mkdir(parents=True)
    run = {"config": config.to_dict()}
    path.write_text(json.dumps({"step": step, "leaves": {}, "run": run, "replay": None}))
    return path


def test_new_and_empty_directories(tmp_path: Path) -> None:
    assert run_dir(TINY) == Path("runs/tiny-0")
    assert check_run_dir(at(tmp_path / "new" / "run")) == tmp_path / "new" / "run"
    assert not (tmp_path / "new").exists()
    # Left by a run that was refused, and by one that was killed while writing its config.json.
    (tmp_path / "lock").write_text("1\n")
    (tmp_path / ".config.json.123.tmp").write_text("{")
    assert check_run_dir(at(tmp_path)) == tmp_path
    RunLock(tmp_path).release()
    assert [path.name for path in tmp_path.iterdir()] == ["lock"]


def test_a_run_without_a_checkpoint_may_restart_with_any_settings(tmp_path: Path) -> None:
    write_config(tmp_path, at(tmp_path))
    assert check_run_dir(at(tmp_path, replay__batch=8)) == tmp_path


@pytest.mark.parametrize(
    ("setting", "value", "said"),
    [
        ("env", "crafter", "env gymnax:Catch-bsuite, not crafter"),
        ("envs__count", 8, "envs.count 4, not 8"),
        ("envs__image_size", 32, "envs.image_size 16, not 32"),
        ("envs__frame_skip", 4, "envs.frame_skip 0, not 4"),
        ("envs__image_key", "pixels", "envs.image_key empty, not pixels"),
        ("envs__time_limit", 50, "envs.time_limit 0, not 50"),
        ("model__context", 7, "model.context 6, not 7"),
        ("replay__batch", 8, "replay.batch 4, not 8"),
        ("replay__length", 9, "replay.length 8, not 9"),
        ("replay__sampler", "windows", "replay.sampler streams, not windows"),
    ],
)
def test_settings_of_shapes_and_data_must_not_change(tmp_path, setting, value, said) -> None:
    pretend_checkpoint(tmp_path, at(tmp_path))
    with pytest.raises(ConfigError) as caught:
        check_run_dir(at(tmp_path, **{setting: value}))
    assert f"holds a run with {said}: choose another" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("steps", 9999),
        ("seed", 3),
        ("train_ratio", 16.0),
        ("devices", 2),
        ("model__dropout", 0.3),
        ("model__remat", not TINY.model.remat),
        ("behavior__gamma", 0.9),
        ("optim__model_lr", 1e-5),
        ("behavior__detours", 0.1),
        ("replay__best_of", 4),
        ("replay__capacity", 4000),
        ("log__keep", 9),
        ("envs__workers", "inline"),
    ],
)
def test_settings_without_effect_on_saved_data_may_change(tmp_path, setting, value) -> None:
    pretend_checkpoint(tmp_path, at(tmp_path))
    now = at(tmp_path, **{setting: value})
    assert check_run_dir(now) == tmp_path
    (difference,) = compare_settings(at(tmp_path), now)
    assert difference.name == setting.replace("__", ".")
    assert str(difference).endswith(f" -> {value!r}")


def test_several_are_named_together_and_new_settings_are_refused() -> None:
    found = compare_settings(TINY, at(Path("x"), model__width=32, envs__count=2, loss__image=2.0))
    assert {d.name: d.free for d in found} == {
        "logdir": True,
        "envs.count": False,
        "model.width": False,
        "loss.image": True,
    }
    assert compare_settings(TINY, TINY) == []
    assert not {"model.*", "envs.*", "replay.*"} & set(FREE)


def test_the_settings_of_a_checkpoint_precede_config_json(tmp_path: Path) -> None:
    newer = pretend_checkpoint(tmp_path, at(tmp_path, model__width=32), step=20)
    pretend_checkpoint(tmp_path, at(tmp_path, model__width=64), step=3)
    (tmp_path / "config.json").write_text("{ truncated")
    assert check_run_dir(at(tmp_path, model__width=32)) == tmp_path
    with pytest.raises(ConfigError, match="width 32, not 16"):
        check_run_dir(at(tmp_path))
    newer.write_text("{")
    assert saved_config(tmp_path).model.width == 64


def test_init_from_is_for_new_runs(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="nowhere does not exist"):
        check_run_dir(at(tmp_path / "run", init_from=str(tmp_path / "nowhere")))
    check_run_dir(at(tmp_path / "run", init_from="pretrained/catch"))
    pretend_checkpoint(tmp_path / "run", at(tmp_path / "run", init_from="elsewhere"))
    # The same command resumes, even if the weights are gone; so does one without the setting.
    check_run_dir(at(tmp_path / "run", init_from="elsewhere"))
    check_run_dir(at(tmp_path / "run"))
    with pytest.raises(ConfigError, match="--init-from is for a new run"):
        check_run_dir(at(tmp_path / "run", init_from="another"))


def test_foreign_and_damaged_directories(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("mine")
    with pytest.raises(ConfigError, match="holds files but no run"):
        check_run_dir(at(tmp_path))
    (tmp_path / "config.json").write_text('{"colour": 3}')  # with no checkpoint nothing is lost
    assert check_run_dir(at(tmp_path)) == tmp_path
    (tmp_path / "checkpoints" / "7").mkdir(parents=True)
    with pytest.raises(ConfigError, match="written by another version: unknown setting colour"):
        check_run_dir(at(tmp_path))
