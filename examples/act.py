"""Load a trained agent and let it act in its environment, one frame at a time.

python examples/act.py runs/quickstart-0 [--steps 100]
"""

from __future__ import annotations

import argparse
from dataclasses import replace

import jax

import emerald_jax as ej


def main() -> None:
    """Run the example."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run")
    parser.add_argument("--steps", type=int, default=100)
    options = parser.parse_args()

    agent = ej.load(options.run)
    envs = replace(agent.config.envs, count=1, workers="inline")
    env = ej.make_vector_env(agent.config.env, envs, seed=1)

    key, state, record = jax.random.key(0), agent.initial(batch=1), env.reset()
    for step in range(options.steps):
        action, state = agent.act(
            record.image, state, jax.random.fold_in(key, step), is_first=record.is_first
        )
        record = env.step(action)
        for episode in record.episodes:
            print(f"step {step}: an episode of {episode.length} steps returned {episode.score:.2f}")
    env.close()


if __name__ == "__main__":
    main()
