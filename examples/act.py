"""Load a trained agent and let it act in its environment, frame by frame.

python examples/act.py runs/quickstart-0 [--steps 100]
"""

from __future__ import annotations

from dataclasses import replace

import jax
import tyro

import emerald_jax as ej


def main(run: str, /, steps: int = 100) -> None:
    """Play ``steps`` steps with the agent of a run directory."""
    agent = ej.load(run)
    envs = replace(agent.config.envs, count=1, workers="inline")
    env = ej.make_vector_env(agent.config.env, envs, seed=1)
    state, record = agent.initial(batch=1), env.reset()
    for step in range(steps):
        key = jax.random.key(step)
        action, state = agent.act(record.image, state, key, is_first=record.is_first)
        record = env.step(action)
        for episode in record.episodes:
            print(f"step {step}: an episode of {episode.length} steps returned {episode.score:.2f}")
    env.close()


if __name__ == "__main__":
    tyro.cli(main)
