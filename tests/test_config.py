"""The settings: refusals, JSON round trips, presets."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from emerald_jax.config import Config, ConfigError
from emerald_jax.presets import PRESETS, get_preset
from emerald_jax.training.loop import Pace


def change(config: Config, **settings: object) -> Config:
    """``config`` with dotted settings (``model__width=3``) changed."""
    for name, value in settings.items():
        group, _, field = name.rpartition("__")
        if group:
            value = dataclasses.replace(getattr(config, group), **{field: value})
        config = dataclasses.replace(config, **{group or field: value})
    return config


@pytest.mark.parametrize("name", PRESETS)
def test_presets_are_valid_and_carry_their_name(name: str) -> None:
    config = get_preset(name)
    config.validate()
    assert config.preset == name


@pytest.mark.parametrize("name", PRESETS)
def test_round_trip_through_json(name: str) -> None:
    config = get_preset(name)
    assert Config.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_missing_keys_take_their_defaults() -> None:
    assert Config.from_dict({"model": {"width": 64}}) == change(Config(), model__width=64)


def test_settings_that_are_gone_do_not_stop_older_runs() -> None:
    assert Config.from_dict({"behavior": {"noise_hold": 3, "gamma": 0.9}}).behavior.gamma == 0.9
    with pytest.raises(ConfigError, match="unknown setting noise_hold"):
        Config.from_dict({"noise_hold": 3})


def test_the_paper_is_the_default() -> None:
    config = Config()
    assert config.tokens == 4 * 4 * 32 == 512
    assert config.stages == 4  # 64 -> 32 -> 16 -> 8 -> 4
    # 16 environments x ratio 64 over 16 x 64 replayed steps: one update per vector step.
    assert config.updates_per_vector_step == 1.0


@pytest.mark.parametrize(
    ("preset", "updates"),
    [("crafter", 624_935), ("atari100k", 98_975), ("quickstart", 967), ("tiny", 133)],
)
def test_the_number_of_updates_follows_from_the_pace(preset: str, updates: int) -> None:
    config = get_preset(preset)
    assert config.total_updates == updates
    # The last updates are made for the environment steps before the last vector step.
    steps = config.steps - config.envs.count
    pace = Pace(config)
    assert pace.owes(steps, updates - 1)
    assert not pace.owes(steps, updates)
    assert not pace.owes(config.replay.prefill, 0)
    if preset != "tiny":
        page = Path(__file__).resolve().parents[1] / "docs" / "differences.md"
        assert f"{updates:,}" in page.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"modle": {}}, "unknown setting modle; nearest: model"),
        ({"model": {"widht": 3}}, r"unknown setting model\.widht; nearest: model\.width"),
        ({"qqqqq": 3}, "unknown setting qqqqq$"),
    ],
)
def test_unknown_keys_name_the_nearest(values: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Config.from_dict(values)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"envs__count": 0}, r"envs\.count is 0"),
        ({"model__grid": 0}, r"model\.grid is 0"),
        ({"model__groups": -1}, r"model\.groups is -1"),
        ({"model__heads": 0}, r"model\.heads is 0"),
        ({"model__context": 0}, r"model\.context is 0"),
        ({"behavior__horizon": 0}, r"behavior\.horizon is 0"),
        ({"behavior__start_stride": 0}, r"behavior\.start_stride is 0"),
        ({"replay__batch": 0}, r"replay\.batch is 0"),
        ({"replay__best_of": 0}, r"replay\.best_of is 0"),
        ({"replay__best_of": 2, "replay__sampler": "windows"}, "windows ignore episodes"),
        ({"replay__best_of": 2, "replay__batch": 3}, "fewer than four"),
        ({"behavior__detours": 1.0}, r"behavior\.detours is 1\.0"),
        ({"behavior__real_weight": -1.0}, r"behavior\.real_weight is -1\.0"),
        ({"log__every": 0}, r"log\.every is 0"),
        ({"log__keep": 0}, r"log\.keep is 0"),
        ({"steps": 0}, "steps is 0"),
        ({"seed": -1}, r"seed is -1: it must lie in 0 … 9223372036854775807"),
        ({"seed": 2**63}, "seed is 9223372036854775808: it must lie in 0"),
        ({"model__classes": 1}, r"model\.classes"),
        ({"replay__length": 1}, r"replay\.length"),
        ({"model__dropout": 1.0}, r"model\.dropout"),
        ({"model__unimix": -0.1}, r"model\.unimix"),
        ({"train_ratio": 0.0}, "train_ratio is 0"),
        ({"model__grid": 5}, r"image_size 64 cannot reach model\.grid 5 .* such as 80"),
        ({"envs__image_size": 48}, "image_size 48 cannot reach"),  # 48 = 4 x 12, no power of two
        ({"envs__image_size": 4}, "image_size 4 cannot reach"),  # no stage at all
        ({"model__width": 100}, r"model\.width 100 does not divide by model\.heads 8"),
        ({"model__predictor_width": 100}, r"model\.predictor_width 100 does not divide"),
        ({"model__width": 65, "model__heads": 1}, r"model\.width 65 must be even"),
        ({"behavior__decode_steps": 513}, "513 must lie between 0 and the 512 tokens"),
        ({"behavior__decode_steps": -1}, "-1 must lie between"),
        ({"model__latent": "vector", "behavior__decode_steps": 33}, "33 .* the 32 tokens"),
        ({"behavior__decode_noise": -1.0}, r"decode_noise is -1\.0: it must lie in 0 … 1000"),
        ({"behavior__decode_noise": float("inf")}, r"decode_noise is inf"),
        ({"model__posterior": "oh"}, r"posterior oh needs model\.sequence rssm"),
        (
            {"model__latent": "vector", "model__prior": "autoregressive"},
            r"model\.latent vector has only one: choose --model\.prior maskgit or linear",
        ),
        ({"behavior__start_stride": 65}, "start_stride 65 leaves no start"),
        ({"replay__capacity": 1024}, r"keeps 64 steps .* at least 1040"),  # 65 x 16
        ({"replay__prefill": 1023}, r"prefill 1023 .* at least 1024"),  # 64 x 16
    ],
)
def test_impossible_settings_are_refused(settings: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        change(Config(), **settings).validate()


@pytest.mark.parametrize("posterior", ["auto", "o", "oh"])
def test_the_default_posterior_depends_on_the_sequence_model(posterior: str) -> None:
    recurrent = change(Config(), model__sequence="rssm", model__posterior=posterior)
    recurrent.validate()
    assert recurrent.model.posterior_sees_h == (posterior != "o")
    assert not Config().model.posterior_sees_h


def test_settings_unused_by_a_variant_do_not_restrict_it() -> None:
    # No heads divide 100: the GRU has none, and the linear prior no predictor.
    free = change(
        Config(),
        model__sequence="rssm",
        model__prior="linear",
        model__width=99,
        model__predictor_width=100,
        behavior__decode_steps=1000,
    )
    free.validate()
    with pytest.raises(ConfigError, match="width 99 does not divide"):
        change(free, model__sequence="tssm").validate()


def test_refusals_are_one_line() -> None:
    with pytest.raises(ConfigError) as caught:
        change(Config(), model__grid=5).validate()
    assert "\n" not in str(caught.value)


def test_a_batch_must_divide_over_the_devices() -> None:
    Config().validate(num_devices=8)
    with pytest.raises(ConfigError, match="batch 16 does not divide over 3 devices"):
        Config().validate(num_devices=3)


def test_unknown_presets_name_the_nearest() -> None:
    with pytest.raises(ConfigError, match="unknown preset 'quikstart'; nearest: quickstart"):
        get_preset("quikstart")


def test_settings_are_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        Config().steps = 3
