"""Draw the figures of these pages.

python docs/figures.py [--run runs/quickstart-0]; figures of a trained model need a run.
"""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

import emerald_jax as ej
from emerald_jax.agent.dream import read
from emerald_jax.look.figures import decoding_strip, new_figure, png_of
from emerald_jax.look.film import FilmPlan, film_run, save_film
from emerald_jax.look.inspect import decoding_trace
from emerald_jax.models.tssm import episode_mask
from emerald_jax.ops.maskgit import mask_counts
from emerald_jax.run.recordings import Recordings
from emerald_jax.types import Before

IMAGES = Path(__file__).resolve().parent / "images"
TOKENS = 512


def main() -> None:
    """Draw all figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", help="a trained quickstart run")
    options = parser.parse_args()
    IMAGES.mkdir(exist_ok=True)
    draw_schedule(IMAGES / "schedule.png")
    draw_visibility(IMAGES / "visibility.png")
    if options.run:
        plan = FilmPlan(source="reset", horizon=10, context=3, seed=3)
        film = film_run(ej.load(options.run), options.run, plan)
        save_film(film, IMAGES / "dream_catch.png")
        draw_decoding(options.run, IMAGES / "decoding.png")


def draw_schedule(path: Path) -> None:
    """Tokens masked at the start of each decoding step."""
    figure, (axis,) = new_figure(6.4, 3.2)
    for steps in (3, 8, 16):
        counts, places = [*mask_counts(TOKENS, steps), 0], np.arange(steps + 1) / steps
        axis.step(places, counts, "o-", where="post", label=f"S = {steps}")
    axis.set(xlabel="share of the decoding steps done", ylabel=f"tokens masked, of {TOKENS}")
    axis.legend(frameon=False, loc="lower left")
    figure.savefig(path)


def draw_visibility(path: Path) -> None:
    """Tokens that each step may attend to, across the end of an episode."""
    context, length, border = 8, 16, 6
    same = np.asarray(episode_mask(jnp.ones(context, bool), jnp.arange(length) == border))
    back = context + np.arange(length)[:, None] - np.arange(context + length)[None]
    figure, (axis,) = new_figure(7.2, 4.2)
    axis.grid(visible=False)
    visible = same & (back >= 0) & (back <= context)
    axis.imshow(visible, cmap="Greens", vmax=1.6, aspect="auto")
    axis.axvline(context - 0.5, color="#e25822", linewidth=1.5)
    axis.set_xticks(range(0, context + length, 4), range(-context, length, 4))
    axis.set_xlabel("attended token; left of the line: cached from the chunk before")
    axis.set_ylabel("step of this chunk")
    axis.set_title(f"C = {context}, a new episode begins at step {border}", fontsize="medium")
    figure.savefig(path)


def draw_decoding(run: str, path: Path) -> None:
    """The decoding steps of one latent, as reports show them."""
    agent = ej.load(run)
    clip = Recordings(run).draw(8, np.random.default_rng(1))
    key = jax.random.key(0)
    # h of the newest frame: the model's expectation before it sees the frame.
    images, actions = clip.image[:, None], clip.action[:, None]
    states = jax.jit(partial(read, learner=agent.learner))(agent.params, images, actions, key)[1]
    trace = jax.jit(partial(decoding_trace, learner=agent.learner, steps=3))
    found = trace(agent.params, states.h[-1, 0], Before(states.z[-2, 0], clip.action[-1]), key)
    side = round(found.masked.shape[1] ** 0.5)
    masked, sure = (
        np.asarray(x).mean(-1).reshape(-1, side, side) for x in (found.masked, found.confidence)
    )
    strip = decoding_strip(np.asarray(found.frame), masked, sure, clip.image[-1])
    path.write_bytes(png_of(strip))


if __name__ == "__main__":
    main()
