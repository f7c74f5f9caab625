"""The paper's Crafter model on this machine: parameters, compile time, one update, one imagination.

Command: python benchmarks/paper_size.py           (five minutes and 12 GiB on two CPU cores)
Result:  benchmarks/results/paper_size.json
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import emerald_jax as ej
from emerald_jax.training.program import compile_program, prepare_jax
from emerald_jax.training.state import count_parameters
from emerald_jax.training.update import start_positions

ACTIONS = 17


def random_batch(config: ej.Config) -> ej.Batch:
    """A batch of noise in the shapes of a real one; episodes begin at every sequence's start."""
    shape, rng = (config.replay.batch, config.replay.length), np.random.default_rng(0)
    size, flag = config.envs.image_size, np.zeros(shape, bool)
    reset = flag.copy()
    reset[:, 0] = True
    return ej.Batch(
        image=rng.integers(0, 256, (*shape, size, size, 3), dtype=np.uint8),
        action=rng.integers(0, ACTIONS, shape).astype(np.int32),
        reward=rng.normal(size=shape).astype(np.float32),
        is_first=flag,
        is_last=flag,
        is_terminal=flag,
        reset=reset,
    )


def timed(function: Callable, repeats: int) -> list[float]:
    """Wall seconds of ``repeats`` calls, each waited for."""
    seconds = []
    for _ in range(repeats):
        began = time.monotonic()
        jax.block_until_ready(function())
        seconds.append(round(time.monotonic() - began, 3))
    return seconds


def dream(
    params: Any, batch: ej.Batch, keys: Any, *, learner: Any, positions: Any
) -> ej.Trajectory:
    """Read every sequence and imagine from its starts: imagination on its own, prefix included."""

    def one(sequence: ej.Batch, key: Any) -> ej.Trajectory:
        read, roll = jax.random.split(key)
        passed = learner.model.apply({"params": params["world_model"]}, sequence, read)
        return ej.rollout(params, ej.starts_from(passed, positions), roll, learner=learner)

    return jax.vmap(one)(batch, keys)


def main() -> None:
    """Measure and write JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--preset", default="crafter")
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--out", default=str(Path(__file__).parent / "results/paper_size.json"))
    options = parser.parse_args()
    prepare_jax()
    jax.config.update("jax_enable_compilation_cache", False)
    config = ej.get_preset(options.preset)
    learner = ej.build_learner(config, ACTIONS)
    state = jax.jit(partial(ej.init_state, learner))(jax.random.key(0))
    batch = random_batch(config)._replace(carry=ej.init_carry(learner, config.replay.batch))
    batch = jax.tree.map(jnp.asarray, batch)
    keys = jax.random.split(jax.random.key(1), config.replay.batch)
    positions = start_positions(config.replay.length, config.behavior.start_stride)

    imagined = jax.jit(partial(dream, learner=learner, positions=positions))
    imagination = compile_program(imagined.lower(state.params, batch, keys))
    dreams = timed(lambda: imagination(state.params, batch, keys), options.repeats)

    began = time.monotonic()
    lowered = jax.jit(partial(ej.train_step, learner=learner)).lower(state, batch, keys)
    update = compile_program(lowered)
    compile_seconds = time.monotonic() - began
    steps = timed(lambda: update(state, batch, keys), options.repeats)
    result = {
        "preset": options.preset,
        "parameters": count_parameters(state.params),
        "compile_seconds": round(compile_seconds, 1),
        "update_seconds": steps,
        "update_seconds_median": statistics.median(steps),
        "read_and_imagine_seconds": dreams,
        "starts": int(config.replay.batch * len(positions)),
        "horizon": config.behavior.horizon,
        "decode_steps": config.behavior.decode_steps,
        "temporaries_gib": round(update.memory_analysis().temp_size_in_bytes / 2**30, 2),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, "
        f"{jax.devices()[0].device_kind}, jax {jax.__version__}",
    }
    Path(options.out).parent.mkdir(parents=True, exist_ok=True)
    Path(options.out).write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
