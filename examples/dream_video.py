"""Show real frames to a trained agent, let it dream on, and save the dream beside reality.

python examples/dream_video.py runs/quickstart-0 --out dream.gif
"""

from __future__ import annotations

import jax
import numpy as np
import tyro

import emerald_jax as ej
from emerald_jax.look.film import FilmPlan, film_run, save_film
from emerald_jax.run.recordings import Recordings


def main(run: str, /, out: str = "dream.gif", horizon: int = 20) -> None:
    """Dream ``horizon`` steps with the agent of a run directory."""
    agent = ej.load(run)

    # Arrays: the agent reads four recorded frames, then follows its own policy in the dream.
    clip = Recordings(run).draw(4, np.random.default_rng(0))
    dream = agent.imagine(clip.image, clip.action, horizon=horizon, key=jax.random.key(0))
    print(f"frames {dream.frames.shape}, tokens {dream.tokens.shape}")
    print(f"predicted return {dream.rewards.sum():.2f}, best token {dream.confidence.max():.3f}")

    # A film: the real environment takes the dreamt actions, so the two can be compared.
    plan = FilmPlan(source="reset", actions="policy", horizon=horizon)
    print(f"saved {save_film(film_run(agent, run, plan), out)}")


if __name__ == "__main__":
    tyro.cli(main)
