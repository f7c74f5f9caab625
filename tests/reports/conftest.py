"""Run directories with numbers that can be checked by hand."""

import dataclasses
import json

import pytest

from emerald_jax.config import Config
from emerald_jax.presets import get_preset
from emerald_jax.run.directory import JsonLines, write_config
from emerald_jax.scores import crafter

NAMES = sorted(crafter()["human_experts"]["rates"])


@pytest.fixture
def make_run(tmp_path):
    """``make_run(name, preset, episodes=…, evals=…, resumes=…, **settings)`` -> its directory."""

    def make(name, preset, *, episodes=(), evals=(), resumes=(), envs=None, **settings):
        config: Config = get_preset(preset)
        changed = dataclasses.replace(config.envs, **(envs or {}))
        run = tmp_path / name
        write_config(run, dataclasses.replace(config, envs=changed, **settings))
        JsonLines(run / "episodes.jsonl").replace(episodes)
        JsonLines(run / "resumes.jsonl").replace({"step": step} for step in resumes)
        for number, result in enumerate(evals):
            path = run / "evals" / f"{result['updates']}-{number}" / "result.json"
            path.parent.mkdir(parents=True)
            path.write_text(json.dumps(result))
        return run

    return make


@pytest.fixture
def crafter_episodes():
    """``crafter_episodes(count, length, wood)``: all of them collect wood, or none."""

    def make(count, length, wood, score=1.0):
        achieved = dict.fromkeys(NAMES, 0) | {"collect_wood": int(wood)}
        return [
            {"step": (i + 1) * length, "score": score, "length": length, "achievements": achieved}
            for i in range(count)
        ]

    return make


@pytest.fixture
def evaluation():
    """``evaluation(**changes)``: a result that meets Crafter's evaluation protocol."""

    def make(**changes):
        rates = dict.fromkeys(NAMES, 0.0) | {"collect_wood": changes.pop("wood", 100.0)}
        result = {
            **{"env": "crafter", "updates": 625_000, "env_steps": 10_000_000, "mode": "sample"},
            **{"seed": 0, "episodes": 256, "left_out": 0, "return": 1.0, "rates": rates},
            **{"time_limit": 10_000, "image_size": 64},
        }
        return {**result, **changes}

    return make
