"""The published numbers that reports compare with: complete, with sources."""

from emerald_jax.commands.train import parse_train
from emerald_jax.envs.registry import ATARI_100K
from emerald_jax.presets import get_preset
from emerald_jax.run.directory import run_dir
from emerald_jax.scores import atari100k, atari_game, crafter, crafter_score


def test_sources_are_named():
    for numbers in (crafter(), atari100k()):
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
