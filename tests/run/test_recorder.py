"""stats.jsonl has the format of Crafter's own recorder."""

import json

import crafter
import numpy as np
import pytest

from emerald_jax.config import EnvsConfig
from emerald_jax.envs import make_vector_env
from emerald_jax.envs.host import env_seeds
from emerald_jax.run.evaluations import is_whole_row, stats_row, stats_rows


def test_crafters_recorder_writes_the_same_line(tmp_path):
    # Crafter removes creatures in the order of a set, which differs between two objects; it has no
    # effect on the record within 60 steps (the first world of seed 3).
    limit, actions = 60, np.random.default_rng(0).integers(17, size=60)
    env = make_vector_env("crafter", EnvsConfig(count=1, time_limit=limit), seed=0)
    env.reset()
    for action in actions:
        record = env.step(np.array([action]))
    (episode,) = record.episodes
    env.close()
    theirs = crafter.Env(length=limit, seed=env_seeds(0, 1)[0])
    theirs = crafter.Recorder(theirs, tmp_path, save_video=False, save_episode=False)
    theirs.reset()
    for action in actions:
        theirs.step(action)
    theirs._env._file.close()
    (line,) = (tmp_path / "stats.jsonl").read_text().splitlines()
    row = {"score": episode.score, "length": episode.length, **episode.extra}
    assert json.dumps(stats_row(row)) == line
    assert sum(json.loads(line).values()) > limit  # something was achieved


def test_rows_by_hand():
    row = {"score": 2.1000000000000005, "length": 7, "step": 3, "achievements": {"wood": 2, "x": 0}}
    expected = {"length": 7, "reward": 2.1, "achievement_wood": 2, "achievement_x": 0}
    assert stats_row(row) == expected
    # Other environments' returns are not rounded.
    assert stats_row({"score": 0.123456, "length": 1}) == {"length": 1, "reward": 0.123456}


@pytest.mark.parametrize("broken", [{"fault": "died"}, {"extra": {"fault": "died"}}])
def test_broken_episodes_are_left_out(broken):
    row = {"score": 1.0, "length": 2}
    assert is_whole_row(row)
    assert not is_whole_row({**row, **broken})
    assert stats_rows([row, {**row, **broken}, {"score": 1.0}]) == [stats_row(row)]
