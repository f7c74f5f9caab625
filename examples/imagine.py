"""Train a small world model for a few updates and look into its dream, with the functions alone.

Collects random play of Catch, takes updates, lets the model read a few real frames and dream on,
and saves the picture. About a minute on two CPU cores.

    python examples/imagine.py [--updates 60] [--out dream.png]
"""

from __future__ import annotations

import argparse
from functools import partial

import jax
import numpy as np
from PIL import Image

import emerald_jax as ej


def main() -> None:
    """Run the example."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--updates", type=int, default=60)
    parser.add_argument("--out", default="dream.png")
    parser.add_argument("--preset", default="quickstart")
    options = parser.parse_args()
    config = ej.get_preset(options.preset)
    env = ej.make_vector_env(config.env, config.envs, seed=0)
    replay = ej.Replay(config.replay.capacity, env.num_envs, env.spec.image_shape)
    sampler = ej.make_sampler("streams", replay, config.replay.batch, config.replay.length, seed=0)

    random, record = np.random.default_rng(0), env.reset()
    for _ in range(200):
        replay.append(record)
        actions = random.integers(env.spec.num_actions, size=env.num_envs, dtype=np.int32)
        record = env.step(actions)

    learner = ej.build_learner(config, env.spec.num_actions)
    state = ej.init_state(learner, jax.random.key(0))
    carry = ej.init_carry(learner, config.replay.batch)
    step = jax.jit(partial(ej.train_step, learner=learner), donate_argnums=0)
    for update in range(options.updates):
        keys = jax.random.split(jax.random.key(update), config.replay.batch)
        batch = sampler.sample()._replace(carry=carry)
        state, carry, metrics = step(state, batch, keys)
    print(f"pixel error after {options.updates} updates: {metrics['model/pixel_error']:.4f}")

    length, context = 8, 2
    window = ej.make_sampler("windows", replay, 2, length, seed=1).sample()
    window = window._replace(carry=ej.init_carry(learner, 2))
    dream = jax.jit(partial(ej.open_loop, learner=learner, context=context))
    seen = dream(state.params, window, jax.random.split(jax.random.key(7), 2))
    recon, imagined = (np.round(255 * np.asarray(x)).astype(np.uint8) for x in seen[:2])
    Image.fromarray(ej.report_strip(window.image, recon, imagined, context)).save(options.out)
    print(f"saved {options.out}")


if __name__ == "__main__":
    main()
