"""Let a trained agent look at real frames, dream on, and save the dream beside reality.

python examples/dream_video.py runs/quickstart-0 --out dream.gif
"""

from __future__ import annotations

import argparse

import jax
import numpy as np

import emerald_jax as ej


def main() -> None:
    """Run the example."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run")
    parser.add_argument("--out", default="dream.gif")
    parser.add_argument("--horizon", type=int, default=20)
    options = parser.parse_args()

    agent = ej.load(options.run)

    # The arrays of a dream: four recorded frames are seen, then the agent's policy steers.
    clip = ej.Recordings(options.run).draw(4, np.random.default_rng(0))
    dream = agent.imagine(clip.image, clip.action, horizon=options.horizon, key=jax.random.key(0))
    print(f"frames {dream.frames.shape}, tokens {dream.tokens.shape}")
    print(f"predicted return {dream.rewards.sum():.2f}, surest token {dream.confidence.max():.3f}")

    # The film: the real environment takes the dreamt actions, so both can be compared.
    plan = ej.FilmPlan(source="reset", actions="policy", horizon=options.horizon)
    print(f"saved {ej.save_film(ej.film_run(agent, options.run, plan), options.out)}")


if __name__ == "__main__":
    main()
