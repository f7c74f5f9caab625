"""Does bfloat16 learn what float32 learns? The same updates in both, on the same batches.

Sampled latents diverge after a few updates, so curves are compared as means over windows of them.

Command: python -m benchmarks.precision               (200 updates of the quickstart's networks)
Result:  benchmarks/results/precision.json
"""

from __future__ import annotations

import time
from typing import Any

import jax
import numpy as np

import emerald_jax as ej
from benchmarks.suite.harness import run_script, with_changes
from emerald_jax.envs.registry import spec_of
from emerald_jax.replay import make_sampler
from emerald_jax.run.machine import compile_program, prepare_jax
from emerald_jax.training.devices import compile_train_step, local_devices, put_batch
from emerald_jax.training.evaluate import record
from emerald_jax.types import Batch

#: Losses that are compared; the actor's, which can be zero, is left out.
TERMS = ("loss/model", "loss/image", "loss/reward", "loss/dyn", "loss/mask", "loss/critic")


def batches(config: ej.Config, updates: int) -> list[Batch]:
    """The fixed stream: independent windows of random play."""
    played = record(config, 4000, seed=0)
    sampler = make_sampler("windows", played, config.replay.batch, config.replay.length, 0)
    return [sampler.sample() for _ in range(updates)]


def curves(config: ej.Config, dtype: str, stream: list[Batch], seed: int) -> dict[str, np.ndarray]:
    """`[updates]` of every term, in one compute type."""
    config = with_changes(config, model={"dtype": dtype})
    actions = spec_of(config.env, config.envs).actions
    learner, count = ej.build_learner(config, actions), config.replay.batch
    init_key, base = jax.random.split(jax.random.key(seed))
    state, carry = ej.init_state(learner, init_key), ej.init_carry(learner, count)
    devices, step, rows = local_devices(1), None, []
    for number, batch in enumerate(stream):
        keys = jax.random.split(jax.random.fold_in(base, number), count)
        arguments = (state, put_batch(batch._replace(carry=carry), devices), keys)
        if step is None:
            step = compile_program(compile_train_step(learner, devices).lower(*arguments))
        state, _, metrics = step(*arguments)
        rows.append([metrics[name] for name in TERMS])
    return dict(zip(TERMS, np.array(jax.device_get(rows)).T, strict=True))


def differences(a: dict, b: dict, window: int) -> dict[str, dict[str, float]]:
    """Relative difference of the windows' means: average, worst, and of the complete curve."""
    found = {}
    for name in a:
        x, y = (c[name].reshape(-1, window).mean(1) for c in (a, b))
        apart = np.abs(y - x) / np.abs(x)
        complete = abs(y.mean() - x.mean()) / abs(x.mean())
        shares = {"mean": apart.mean(), "worst": apart.max(), "whole": complete}
        found[name] = {f"{k}_percent": round(100 * float(v), 3) for k, v in shares.items()}
    return found


def measure(preset: str = "quickstart", updates: int = 200, window: int = 20) -> dict[str, Any]:
    """Compare both types, and two seeds; ``window`` updates are averaged before comparing."""
    if updates % window:
        raise ej.ConfigError("--updates must be a multiple of --window")
    prepare_jax()
    config, began = ej.get_preset(preset), time.monotonic()
    stream = batches(config, updates)
    kinds = (("float32", 0), ("bfloat16", 0), ("float32", 1))
    exact, half, other = (curves(config, dtype, stream, seed) for dtype, seed in kinds)
    return {
        "preset": preset,
        "updates": updates,
        "window": window,
        "bfloat16_from_float32": differences(exact, half, window),
        # For comparison: two float32 runs that differ in their noise alone.
        "other_seed_from_float32": differences(exact, other, window),
        "seconds": round(time.monotonic() - began, 1),
    }


if __name__ == "__main__":
    run_script(measure, "precision")
