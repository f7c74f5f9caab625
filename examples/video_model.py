"""The world model alone, on a recorded video: no rewards, no agent, actions if there are any.

Trains encoder, transformer and MaskGIT on a video's frames, then imagines how it goes on and says
how far off that is. Without a video it records one of Catch played at random.

    python examples/video_model.py [--video film.npz] [--updates 300] [--out next.png]

The file holds ``image`` `[T, 16, 16, 3]` uint8 and may hold ``action`` `[T]`, what led into each.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
from PIL import Image

import emerald_jax as ej

CONTEXT = 4


def main() -> None:
    """Run the example."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--video")
    parser.add_argument("--updates", type=int, default=300)
    parser.add_argument("--preset", default="quickstart")
    parser.add_argument("--out", default="next.png")
    options = parser.parse_args()

    config = ej.get_preset(options.preset)
    image, action, num_actions = video(options.video, config)
    model = ej.build_world_model(config, num_actions)
    params = ej.init_world_model(model, jax.random.key(0))
    optimizer = optax.adam(config.optim.model_lr)
    opt_state = optimizer.init(params)

    def loss(params: dict, batch: ej.Batch, keys: jax.Array) -> tuple:
        one = partial(ej.world_model_losses, params, model=model, config=config.loss)
        terms, (_, metrics) = jax.vmap(one)(batch, keys)
        # A video has frames only: what ties the latents together stays, reward and end go.
        weights = {n: getattr(config.loss, n) for n in terms if n not in ("reward", "cont")}
        return sum(w * terms[n].mean() for n, w in weights.items()), metrics["pixel_error"].mean()

    @jax.jit
    def update(params: dict, opt_state: optax.OptState, batch: ej.Batch, key: jax.Array) -> tuple:
        keys = jax.random.split(key, len(batch.action))
        grads, error = jax.grad(loss, has_aux=True)(params, batch, keys)
        updates, opt_state = optimizer.update(grads, opt_state)
        return optax.apply_updates(params, updates), opt_state, error

    random = np.random.default_rng(0)
    for step in range(options.updates):
        batch = windows(image, action, config, model, random)
        params, opt_state, error = update(params, opt_state, batch, jax.random.key(step))
    print(f"pixel error after {options.updates} updates: {error:.4f}")

    # Imagine the end of one window from its beginning and its actions.
    learner = ej.build_learner(config, num_actions)._replace(model=model)
    dream = jax.jit(partial(ej.open_loop, learner=learner, context=CONTEXT))
    batch = windows(image, action, config, model, random)
    seen = dream({"world_model": params}, batch, jax.random.split(jax.random.key(1), len(batch[1])))
    recon, imagined = (np.round(255 * np.asarray(x)).astype(np.uint8) for x in seen[:2])
    off = np.square((imagined[:, CONTEXT:] - batch.image[:, CONTEXT:].astype(float)) / 255).mean()
    print(f"mean squared error of the imagined frames: {off:.4f}")
    rows = slice(0, 3)
    strip = ej.report_strip(batch.image[rows], recon[rows], imagined[rows], CONTEXT)
    Image.fromarray(strip).save(options.out)


def video(path: str | None, config: ej.Config) -> tuple[np.ndarray, np.ndarray, int]:
    """Frames, the action that led into each, and how many actions there are."""
    if path:
        file = np.load(path, allow_pickle=False)
        count = len(file["image"])
        action = file["action"] if "action" in file else np.zeros(count, np.int32)
        return file["image"], action.astype(np.int32), int(action.max()) + 1
    env = ej.make_vector_env(config.env, replace(config.envs, count=1), seed=0)
    random, records = np.random.default_rng(0), [env.reset()]
    for _ in range(400):
        action = random.integers(env.spec.num_actions, size=1, dtype=np.int32)
        records.append(env.step(action))
    image, action = (np.concatenate([getattr(r, n) for r in records]) for n in ("image", "action"))
    return image, action, env.spec.num_actions


def windows(
    image: np.ndarray,
    action: np.ndarray,
    config: ej.Config,
    model: ej.WorldModel,
    random: np.random.Generator,
) -> ej.Batch:
    """A batch of windows about whose past nothing is known."""
    count, length = config.replay.batch, config.replay.length
    at = random.integers(len(image) - length + 1, size=count)[:, None] + np.arange(length)
    flag = np.zeros((count, length), bool)
    reset = flag.copy()
    reset[:, 0] = True
    reset |= action[at] < 0  # a cut in the film
    carry = jax.tree.map(lambda x: jnp.broadcast_to(x, (count, *x.shape)), ej.empty_carry(model))
    reward = np.zeros((count, length), np.float32)
    return ej.Batch(image[at], action[at], reward, flag, flag, flag, reset, carry)


if __name__ == "__main__":
    main()
