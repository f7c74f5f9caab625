import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from emerald_jax.config import EnvsConfig
from emerald_jax.envs import EnvError, make_vector_env, spec_of
from emerald_jax.envs.crafter import CrafterEnv

INLINE = EnvsConfig(count=2, workers="inline")
NOOP, SLEEP = 0, 6


def digest(steps=400):
    """Every byte of random play over many worlds, as one number that depends on all of it."""
    env = CrafterEnv(length=150)
    rng = np.random.default_rng(0)
    frames, rewards = [env.reset(seed=5)[0]], []
    for action in rng.integers(17, size=steps):
        image, reward, terminated, truncated, _ = env.step(action)
        frames.append(image)
        rewards.append(reward)
        if terminated or truncated:
            frames.append(env.reset()[0])
    return int(sum(int(f.astype(np.uint64).sum()) * (i + 1) for i, f in enumerate(frames))), rewards


def test_spec():
    spec = spec_of("crafter", EnvsConfig())
    assert spec.image_shape == (64, 64, 3)
    assert spec.num_actions == 17
    assert spec.time_limit == 10_000
    assert spec.action_names[:7] == (
        *("noop", "move_left", "move_right", "move_up", "move_down", "do", "sleep"),
    )
    assert set(spec.action_names) <= set(
        CrafterEnv.__doc__.replace(",", " ").replace(".", " ").split()
    )


def test_gymnasium_accepts_it():
    check_env(CrafterEnv(length=5), skip_render_check=True)


def test_time_limit_is_not_terminal_and_achievements_are_counted():
    env = make_vector_env("crafter", EnvsConfig(count=1, time_limit=4), seed=0)
    assert env.spec.time_limit == 4
    env.reset()
    for t in range(1, 5):
        record = env.step(np.array([NOOP]))
        assert record.is_last[0] == (t == 4)
    assert not record.is_terminal[0]
    (episode,) = record.episodes
    assert (episode.length, episode.terminal) == (4, False)
    assert len(episode.extra["achievements"]) == 22
    assert episode.extra["achievements"]["collect_wood"] == 0


@pytest.mark.parametrize("length", [1, 10])
def test_death_is_terminal_on_the_limits_own_step_too(length):
    env = CrafterEnv(length=length)
    env.reset(seed=0)
    env._world._player.health = 0
    _, reward, terminated, truncated, info = env.step(NOOP)
    assert reward == pytest.approx(-0.9)
    assert terminated
    assert not truncated
    assert "achievements" in info["extra"]


def test_an_unlocked_achievement_is_rewarded_once_and_counted_always():
    env = CrafterEnv(length=3)
    env.reset(seed=0)
    player = env._world._player
    rewards = []
    for _ in range(3):
        player.achievements["collect_wood"] += 1
        *_, info = step = env.step(NOOP)
        rewards.append(step[1])
    assert rewards == [1, 0, 0]
    assert info["extra"]["achievements"]["collect_wood"] == 3


def test_seeds_repeat_and_episodes_differ(play):
    runs = []
    for seed in (0, 0, 1):
        env = make_vector_env("crafter", INLINE, seed=seed)
        runs.append(play(env, 30)[0][-1].image)
        env.close()
    assert (runs[0] == runs[1]).all()
    assert (runs[0] != runs[2]).any()
    assert (runs[0][0] != runs[0][1]).any()


def test_worlds_do_not_depend_on_memory_addresses_or_hash_seeds():
    code = "import test_crafter; print(test_crafter.digest()[0])"
    path = f"{Path(__file__).parents[2]}:{Path(__file__).parent}"
    out = subprocess.run(
        [sys.executable, "-c", f"junk = [object() for _ in range(12345)]\n{code}"],
        env={"PYTHONPATH": path, "PYTHONHASHSEED": "7", "HOME": str(Path.home())},
        capture_output=True,
        text=True,
        check=True,
    )
    assert int(out.stdout) == digest()[0]


def test_worlds_made_ahead_are_the_same_worlds():
    def frames(ahead, spare=0):
        env = CrafterEnv(length=7, ahead=ahead)
        rng, seen = np.random.default_rng(0), []
        for seed in (5, None, None, None, 6, 6, None):
            seen.append(env.reset(seed=seed)[0])
            for action in rng.integers(17, size=3):
                seen.append(env.step(action)[0])
                worked = [env.work_ahead() for _ in range(spare)]
        # The rest of the world is made when it is needed.
        assert not spare or worked[-1] == (spare < 50)
        env.close()
        env.close()
        return np.stack(seen)

    plain = frames(False)
    for spare in (0, 1, 30, 60):  # a world takes 130 pieces of work, there are three times so many
        np.testing.assert_array_equal(frames(True, spare), plain)
    assert not CrafterEnv().work_ahead()
    assert (plain[16] == plain[20]).all()  # seed 6 twice
    assert len(np.unique(plain[::4].reshape(7, -1), axis=0)) == 6


def test_inline_and_processes_agree(play):
    runs = []
    for workers in ("inline", "process"):
        env = make_vector_env(
            "crafter", EnvsConfig(count=2, time_limit=20, workers=workers), seed=3
        )
        runs.append(play(env, 45)[0])
        env.close()
    for one, other in zip(*runs, strict=True):
        for field in one._fields:
            np.testing.assert_array_equal(getattr(one, field), getattr(other, field))


@pytest.mark.parametrize("size", [18, 32, 96])
def test_image_size(size, play):
    env = make_vector_env("crafter", EnvsConfig(count=1, image_size=size), seed=0)
    records, _ = play(env, 3)
    assert records[-1].image.shape == (1, size, size, 3)
    assert records[-1].image.std() > 10


def test_too_small_an_image_is_refused():
    with pytest.raises(EnvError, match="at least 18"):
        make_vector_env("crafter", EnvsConfig(count=1, image_size=16), seed=0)
