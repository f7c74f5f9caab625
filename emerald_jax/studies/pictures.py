"""Pictures of a study's world models: dreams beside reality, and a latent being decoded."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import jax
import numpy as np

from emerald_jax.models.world_model import Pass
from emerald_jax.studies.worlds import World
from emerald_jax.trained.looking import decoding_trace
from emerald_jax.training.report import open_loop
from emerald_jax.training.state import init_carry
from emerald_jax.types import Array, Batch, Key, Params
from emerald_jax.viz.panels import decoding_strip, png_of
from emerald_jax.viz.strips import report_strip

#: Sequences and frames of a strip.
_SEQUENCES, _FRAMES = 2, 24


def strip_file(out: Path, name: str) -> Path:
    """Where :func:`draw` writes the strip of a variant."""
    return out / (f"strip-{name}.png" if name else "strip.png")


def draw(world: World, windows: Batch, context: int, out: Path, name: str) -> None:
    """Write ``strip-NAME.png`` and, of a MaskGIT, ``decoding-NAME.png`` (NAME may be empty).

    Args:
        world: a trained world model.
        windows: :class:`Batch` `[W, T]` within one episode each.
        context: real frames read before the dream.
        out: directory of the results.
        name: of the variant, fit for a file.
    """
    out.mkdir(parents=True, exist_ok=True)
    count = min(_SEQUENCES, windows.action.shape[0])
    length = min(_FRAMES, windows.action.shape[1])
    part = Batch(
        *(x[:count, :length] for x in windows[:-1]), carry=init_carry(world.learner, count)
    )
    keys = jax.random.split(jax.random.key(0), count)
    run = partial(open_loop, learner=world.learner, context=context)
    seen = jax.device_get(jax.jit(run)({"world_model": world.params}, part, keys))
    recon, dream = (np.round(255 * x).astype(np.uint8) for x in (seen.recon, seen.dream))
    strip = report_strip(np.asarray(part.image), recon, dream, context)
    strip_file(out, name).write_bytes(png_of(strip))
    if world.learner.config.model.prior == "maskgit" and world.learner.config.model.positions > 1:
        path = strip_file(out, name)
        path.with_name(path.name.replace("strip", "decoding")).write_bytes(
            _decoding(world, part, context)
        )


def _decoding(world: World, part: Batch, context: int) -> bytes:
    """The first imagined latent of the first sequence, decoding step by decoding step."""
    learner, steps = world.learner, world.learner.config.behavior.decode_steps
    side = learner.config.model.grid

    def trace(params: Params, sequence: Batch, key: Key) -> tuple[Array, Array, Array]:
        pass_key, decode_key = jax.random.split(key)
        passed: Pass = learner.model.apply({"params": params}, sequence, pass_key)
        h = passed.state.h[context]
        made = decoding_trace({"world_model": params}, h, decode_key, learner=learner, steps=steps)
        return made.frame, made.masked, made.confidence

    first = jax.tree.map(lambda x: x[0], part)
    made = jax.device_get(jax.jit(trace)(world.params, first, jax.random.key(0)))
    masked, sure = (x.astype(np.float32).mean(-1).reshape(steps, side, side) for x in made[1:])
    return png_of(decoding_strip(made[0], masked, sure, np.asarray(part.image)[0, context]))
