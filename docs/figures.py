"""Draw the figures of these pages with the package's own code.

    python docs/figures.py [--run runs/quickstart-0]

Without a run only those that need no trained model are drawn.
"""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

import emerald_jax as ej
from emerald_jax.models.tssm import episode_mask
from emerald_jax.ops.maskgit import mask_counts

IMAGES = Path(__file__).resolve().parent / "images"
TOKENS = 512


def main() -> None:
    """Draw them all."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", help="a trained quickstart run")
    options = parser.parse_args()
    IMAGES.mkdir(exist_ok=True)
    draw_schedule(IMAGES / "schedule.png")
    draw_visibility(IMAGES / "visibility.png")
    if options.run:
        draw_dream(options.run, IMAGES / "dream_catch.png")
        draw_decoding(options.run, IMAGES / "decoding.png")


def draw_schedule(path: Path) -> None:
    """How many tokens are masked at the start of each decoding step."""
    figure, axis = _figure(6.4, 3.2)
    for steps in (3, 8, 16):
        counts = mask_counts(TOKENS, steps)
        axis.step(
            np.arange(steps + 1) / steps, [*counts, 0], "o-", where="post", label=f"S = {steps}"
        )
    axis.set_xlabel("share of the decoding steps done")
    axis.set_ylabel(f"tokens masked, of {TOKENS}")
    axis.legend(frameon=False, loc="lower left")
    figure.savefig(path)


def draw_visibility(path: Path) -> None:
    """Which tokens a step may attend to, across an episode's end."""
    context, length, border = 8, 16, 6
    reset = jnp.arange(length) == border
    same = np.asarray(episode_mask(jnp.ones(context, bool), reset))
    back = context + np.arange(length)[:, None] - np.arange(context + length)[None]
    visible = same & (back >= 0) & (back <= context)
    figure, axis = _figure(7.2, 4.2)
    axis.imshow(visible, cmap="Greens", vmax=1.6, aspect="auto")
    axis.axvline(context - 0.5, color="#e25822", linewidth=1.5)
    axis.set_xticks(range(0, context + length, 4), range(-context, length, 4))
    axis.set_xlabel("attended token; left of the line those cached from the chunk before")
    axis.set_ylabel("step of this chunk")
    axis.set_title(f"C = {context}, a new episode begins at step {border}", fontsize="medium")
    figure.savefig(path)


def draw_dream(run: str, path: Path) -> None:
    """The film of a fresh episode, as one picture."""
    agent = ej.load(run)
    plan = ej.FilmPlan(source="reset", horizon=10, context=3, seed=3)
    ej.save_film(ej.film_run(agent, run, plan), path)


def draw_decoding(run: str, path: Path) -> None:
    """The decoding steps of one latent, as reports show them."""
    from emerald_jax.look.figures import decoding_strip

    agent = ej.load(run)
    clip = ej.Recordings(run).draw(8, np.random.default_rng(1))
    # h of the newest frame: what the model expects before it sees it.
    state, key = agent.initial(1), jax.random.key(0)
    carry = state.carry
    look = jax.jit(partial(ej.act, learner=agent.learner))
    for image, action in zip(clip.image, clip.action, strict=True):
        seen = ej.Observation(image[None], action[None], action[None] < 0)
        acted = look(agent.params, carry, seen, key)
        carry = acted.carry
    trace = jax.jit(partial(ej.decoding_trace, learner=agent.learner, steps=3))(
        agent.params, acted.state.h[0], key
    )
    side = round(trace.masked.shape[1] ** 0.5)
    masked, sure = (
        np.asarray(x).mean(-1).reshape(-1, side, side) for x in (trace.masked, trace.confidence)
    )
    strip = decoding_strip(np.asarray(trace.frame), masked, sure, clip.image[-1])
    Image.fromarray(strip).save(path)


def _figure(width: float, height: float) -> tuple:
    figure = Figure(figsize=(width, height), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    axis = figure.subplots()
    axis.spines[["top", "right"]].set_visible(False)
    return figure, axis


if __name__ == "__main__":
    main()
