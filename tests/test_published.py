"""The published numbers that reports compare with: complete, with sources."""

from emerald_jax.commands.train import parse_train
from emerald_jax.envs.registry import ATARI_100K, DMC_VISION, PROCGEN
from emerald_jax.presets import get_preset
from emerald_jax.run.directory import run_dir
from emerald_jax.scores import (
    atari100k,
    atari200m,
    atari_game,
    crafter,
    crafter_score,
    dmc_vision,
    procgen,
)


def test_sources_are_named():
    for numbers in (crafter(), atari100k(), atari200m(), procgen(), dmc_vision()):
        assert numbers["about"]
        assert all(numbers["sources"].values())


def test_crafters_pooled_scores_follow_from_their_rates():
    released = crafter()["evaluated_at_10M"]["emerald_released_runs"]
    assert round(crafter_score(released["rates"]), 2) == released["score"]
    human = crafter()["human_experts"]
    assert round(crafter_score(human["rates"]), 2) == human["score_pooled"]
    assert len(human["rates"]) == len(released["rates"]) == 22


def test_the_games_are_those_that_can_be_played():
    assert tuple(atari100k()["games"]) == ATARI_100K
    assert all({"random", "human", "iris"} <= set(row) for row in atari100k()["games"].values())
    assert atari_game("atari:Pong")["random"] == -20.7
    assert atari_game("atari:Adventure") is None
    assert atari_game("gym:Pong") is None


def test_every_game_is_a_preset_with_a_directory_of_its_own():
    configs = [parse_train(["atari100k", "--env", f"atari:{game}"]) for game in ATARI_100K]
    for config in configs:
        config.validate()
    assert len({run_dir(config) for config in configs}) == 26
    assert str(run_dir(configs[0])) == "runs/atari100k-atari-Alien-0"
    assert str(run_dir(get_preset("atari100k"))) == "runs/atari100k-0"


def test_the_atari_preset_is_the_protocol():
    config, protocol = get_preset("atari100k"), atari100k()["protocol"]
    assert (config.steps, config.train_ratio, config.envs.count) == (100_000, 1024, 1)
    assert config.envs.frame_skip == protocol["frame_skip"]
    assert config.envs.image_size == 64
    # One update per environment step: 1024 replayed steps in batches of 16 x 64.
    assert config.updates_per_vector_step == 1
    # First frames take room too: even episodes of six steps fit.
    assert config.replay.capacity >= config.steps * 7 / 6


def test_the_presets_of_learning_curves_are_their_protocols():
    atari, config = atari200m(), get_preset("atari200m")
    assert len(atari["games"]) == 57
    assert set(atari["games"]) >= set(ATARI_100K)
    for game, row in atari100k()["games"].items():
        assert (row["random"], row["human"]) == tuple(atari["games"][game].values())
    assert config.steps * config.envs.frame_skip == atari["points"][-1]
    assert (config.envs.sticky, config.envs.full_actions) == (0.25, True)
    assert (config.train_ratio, config.replay.capacity) == (32, 5_000_000)
    assert tuple(procgen()["games"]) == PROCGEN
    assert get_preset("procgen").steps == procgen()["points"][-1]
    control, config = dmc_vision(), get_preset("dmc-vision")
    assert tuple(control["games"]) == DMC_VISION
    assert config.steps * config.envs.frame_skip == control["points"][-1]
    assert config.envs.frame_skip == control["frames_per_step"]
    for numbers in (atari, procgen(), control):
        for agent in numbers["agents"].values():
            assert set(agent["scores"]) == set(numbers["games"])
            assert {len(row) for row in agent["scores"].values()} == {len(numbers["points"])}
