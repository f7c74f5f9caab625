"""Train a small world model on random play and picture its dream, with functions only.

python examples/imagine.py [--updates 60] [--out dream.png]       (a minute on two CPU cores)
"""

from __future__ import annotations

from functools import partial

import jax
import numpy as np
import tyro
from PIL import Image

import emerald_jax as ej
from emerald_jax.envs.registry import spec_of
from emerald_jax.run.pictures import report_strip
from emerald_jax.training.evaluate import record


def main(updates: int = 60, out: str = "dream.png", preset: str = "quickstart") -> None:
    """Train, dream, and save the picture as ``out``."""
    config = ej.get_preset(preset)
    batch_size, length = config.replay.batch, config.replay.length
    replay = record(config, 200 * config.envs.count, seed=0)
    learner = ej.build_learner(config, spec_of(config.env, config.envs).actions)
    state = ej.init_state(learner, jax.random.key(0))
    carry = ej.init_carry(learner, batch_size)
    sampler = ej.make_sampler("streams", replay, batch_size, length, seed=0)
    step = jax.jit(partial(ej.train_step, learner=learner), donate_argnums=0)
    for update in range(updates):
        keys = jax.random.split(jax.random.key(update), batch_size)
        state, carry, metrics = step(state, sampler.sample()._replace(carry=carry), keys)
    print(f"pixel error after {updates} updates: {metrics['model/pixel_error']:.4f}")

    context = 2
    window = ej.make_sampler("windows", replay, 2, 8, seed=1).sample()
    window = window._replace(carry=ej.init_carry(learner, 2))
    dream = jax.jit(partial(ej.open_loop, learner=learner, context=context))
    seen = dream(state.params, window, jax.random.split(jax.random.key(7), 2))
    recon, imagined = (np.round(255 * np.asarray(x)).astype(np.uint8) for x in seen[:2])
    Image.fromarray(report_strip(window.image, recon, imagined, context)).save(out)
    print(f"saved {out}")


if __name__ == "__main__":
    tyro.cli(main)
