"""Train the world model alone on a video, then imagine and compare the end of a window.

python examples/video_model.py [--video film.npz] [--updates 300] [--out next.png]

The file holds ``image`` `[T, 16, 16, 3]` uint8 and optionally ``action`` `[T]`, leading into each.
Without a video, random play of Catch is recorded.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import jax
import numpy as np
import optax
import tyro
from PIL import Image

import emerald_jax as ej
from emerald_jax.actions import ActionSpace, absent
from emerald_jax.envs.registry import spec_of
from emerald_jax.run.pictures import report_strip
from emerald_jax.training.evaluate import record

CONTEXT = 4


def main(
    video: str | None = None,
    updates: int = 300,
    preset: str = "quickstart",
    out: str = "next.png",
) -> None:
    """Train on a video file, then save a picture of the imagined frames as ``out``."""
    config = ej.get_preset(preset)
    image, action, actions = read_video(video, config)
    learner = ej.build_learner(config, actions)
    params = ej.init_state(learner, jax.random.key(0)).params["world_model"]
    optimizer = optax.adam(config.optim.model_lr)
    opt_state = optimizer.init(params)

    def loss(params: dict, batch: ej.Batch, keys: jax.Array) -> tuple:
        options = {"model": learner.model, "config": config.loss}
        terms, (_, metrics) = ej.world_model_losses(params, batch, keys, **options)
        # A video has no rewards and no episode ends.
        weights = {n: getattr(config.loss, n) for n in terms if n not in ("reward", "cont")}
        return sum(w * terms[n].mean() for n, w in weights.items()), metrics["pixel_error"].mean()

    @jax.jit
    def update(params: dict, opt_state: optax.OptState, batch: ej.Batch, key: jax.Array) -> tuple:
        keys = jax.random.split(key, len(batch.action))
        grads, error = jax.grad(loss, has_aux=True)(params, batch, keys)
        change, opt_state = optimizer.update(grads, opt_state)
        return optax.apply_updates(params, change), opt_state, error

    random = np.random.default_rng(0)
    draw = partial(windows, image, action, config, ej.init_carry(learner, config.replay.batch))
    for step in range(updates):
        params, opt_state, error = update(params, opt_state, draw(random), jax.random.key(step))
    print(f"pixel error after {updates} updates: {error:.4f}")

    # Imagine the end of a window from its beginning and its actions.
    batch, dream = draw(random), jax.jit(partial(ej.open_loop, learner=learner, context=CONTEXT))
    seen = dream({"world_model": params}, batch, jax.random.split(jax.random.key(1), len(batch[1])))
    recon, imagined = (np.round(255 * np.asarray(x)).astype(np.uint8) for x in seen[:2])
    error = np.square((imagined[:, CONTEXT:] - batch.image[:, CONTEXT:].astype(float)) / 255).mean()
    print(f"mean squared error of the imagined frames: {error:.4f}")
    strip = report_strip(batch.image[:3], recon[:3], imagined[:3], CONTEXT)
    Image.fromarray(strip).save(out)


def read_video(path: str | None, config: ej.Config) -> tuple[np.ndarray, np.ndarray, ActionSpace]:
    """Frames `[T, ...]`, the action `[T]` that led into each, and what the actions are."""
    if path:
        file = np.load(path, allow_pickle=False)
        count = len(file["image"])
        action = file["action"] if "action" in file else np.zeros(count, np.int32)
        return file["image"], action.astype(np.int32), ActionSpace((max(1, int(action.max()) + 1),))
    played = record(replace(config, envs=replace(config.envs, count=1)), 400, seed=0)
    image, action = (played.columns[name][: played.written, 0] for name in ("image", "action"))
    return image, action, spec_of(config.env, config.envs).actions


def windows(
    image: np.ndarray,
    action: np.ndarray,
    config: ej.Config,
    carry: ej.Carry,
    random: np.random.Generator,
) -> ej.Batch:
    """A batch of windows with an unknown past."""
    count, length = config.replay.batch, config.replay.length
    at = random.integers(len(image) - length + 1, size=count)[:, None] + np.arange(length)
    flag = np.zeros((count, length), bool)
    reset = absent(action[at])  # a cut in the film
    reset[:, 0] = True
    return ej.Batch(image[at], action[at], np.float32(flag), flag, flag, flag, reset, carry)


if __name__ == "__main__":
    tyro.cli(main)
