"""How long saving stops training, at the paper's sizes: parameters, optimisers, a growing replay.

Nothing is trained: the arrays are random numbers in the shapes of a run's checkpoint. Measured is
the time that the loop waits; the rest is written in the background.

Command: python -m benchmarks.save_stall              (two minutes and 4 GiB on one CPU core)
Result:  benchmarks/results/save_stall.json
"""

from __future__ import annotations

import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np

import emerald_jax as ej
from benchmarks.replay import noise_step
from benchmarks.suite.harness import NUM_ACTIONS, run_script
from emerald_jax.run.checkpoint import Store


def run_tree(config: ej.Config) -> Any:
    """Random arrays in the shapes of a run's state, carries and waiting batch, on the device."""
    learner = ej.build_learner(config, NUM_ACTIONS)
    batch, size = config.replay.batch, config.envs.image_size
    shapes = {
        "state": jax.eval_shape(partial(ej.init_state, learner), jax.random.key(0)),
        "carry": jax.eval_shape(partial(ej.init_carry, learner, batch)),
        "acting": jax.eval_shape(partial(ej.init_carry, learner, config.envs.count)),
        "pending": jax.ShapeDtypeStruct((batch, config.replay.length, size, size, 3), np.uint8),
    }
    noise = partial(np.random.default_rng(0).standard_normal, dtype=np.float32)
    made = jax.tree.map(lambda x: jax.device_put((100 * noise(x.shape)).astype(x.dtype)), shapes)
    return jax.block_until_ready(made)


def play(replay: ej.Replay, rows: int, store: Store | None) -> None:
    """Add rows of noise; with ``store`` they are written ahead, as in the training loop."""
    step = noise_step(replay.num_envs, replay.image_shape)
    for row in range(rows):
        # Every row differs, so that no file system can store them once.
        replay.append(step._replace(image=np.roll(step.image, row, axis=-2)))
        if store is not None:
            # In a run, minutes pass between rows; here, wait for the writer instead.
            store.advance(replay)
            while store.writing_ahead():
                time.sleep(0.01)


def save(store: Store, step: int, tree: Any, replay: ej.Replay) -> dict[str, float]:
    """Seconds that the loop waits for one save, and until it is on disk."""
    began = time.monotonic()
    assert store.save(step, tree, {}, replay)
    stall = time.monotonic() - began
    assert store.wait()
    return {"stall_s": round(stall, 3), "on_disk_s": round(time.monotonic() - began, 2)}


def measure(preset: str = "crafter", rows: int = 3000, folder: str | None = None) -> dict[str, Any]:
    """Save with ``rows`` vector steps in between, in ``folder`` (default: a temporary one)."""
    config = ej.get_preset(preset)
    count, interval = config.envs.count, 60 * config.log.checkpoint_minutes
    tree, replay = run_tree(config), ej.Replay(200_000, count, (64, 64, 3))
    increment = rows * ej.Replay.nbytes_needed(count, count, (64, 64, 3))
    result: dict[str, Any] = {
        "preset": preset,
        "tree_mb": round(sum(leaf.nbytes for leaf in jax.tree.leaves(tree)) / 1e6, 1),
        "replay_increment_mb": round(increment / 1e6, 1),
    }
    with tempfile.TemporaryDirectory(dir=folder) as place, Store(Path(place)) as store:
        result["first_save"] = save(store, 1, tree, replay)
        result["no_new_records"] = [save(store, step, tree, replay) for step in (2, 3, 4)]
        play(replay, rows, store)
        result["increment_written_ahead"] = save(store, 5, tree, replay)
        play(replay, rows, None)
        result["increment_all_at_once"] = save(store, 6, tree, replay)
    result["interval_s"] = interval
    for case in ("increment_written_ahead", "increment_all_at_once"):
        result[f"stall_percent_{case}"] = round(100 * result[case]["stall_s"] / interval, 3)
    return result


if __name__ == "__main__":
    run_script(measure, "save_stall")
