"""Environment steps per second, each adapter, 1 and 16 environments, random actions.

    python benchmarks/envs.py [NAME ...] [--counts 1 16] [--seconds 2] [--repeats 5] [--out FILE]

Prints one JSON object and writes it to FILE. Every row is the median over the repeats and the
lowest and highest of them; first frames are not counted as steps. ``noise`` is an image of noise,
210 x 160, behind the Gymnasium adapter: its cost is the adapter's own. ``plain`` rows step the same
Crafter worlds in bare processes that talk to nobody, all at once: what the worker layer costs is
the difference to the row ``crafter``.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import multiprocessing
import os
import platform
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np

from emerald_jax.config import EnvsConfig
from emerald_jax.envs import EnvError, make_vector_env, register

NAMES = (
    "crafter",
    "atari:Breakout",
    "noise",
    "gymnax:Catch-bsuite",
    "gymnax:Breakout-MinAtar",
    "craftax:Craftax-Classic-Pixels-v1",
)
WARM_UP = 20


class Noise(gymnasium.Env):
    """An image that costs nothing to make and as much to resize as an Atari screen."""

    observation_space = gymnasium.spaces.Box(0, 255, (210, 160, 3), np.uint8)
    action_space = gymnasium.spaces.Discrete(4)

    def __init__(self) -> None:
        self._image = np.random.default_rng(0).integers(256, size=(210, 160, 3), dtype=np.uint8)
        self._t = 0

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict]:
        """The image, always the same."""
        super().reset(seed=seed)
        self._t = 0
        return self._image, {}

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict]:
        """The image again; an episode takes 1000 steps."""
        self._t += 1
        return self._image, 0.0, self._t == 1000, False, {}


def measure(name: str, count: int, seconds: float, repeats: int) -> dict[str, Any]:
    """Steps per second of ``count`` environments behind the vector interface."""
    made = time.perf_counter()
    env = make_vector_env(name, EnvsConfig(count=count), seed=0)
    rng = np.random.default_rng(0)
    actions = rng.integers(env.spec.num_actions, size=(1024, count))
    try:
        env.reset()
        for t in range(WARM_UP):
            env.step(actions[t])
        made = time.perf_counter() - made
        rates, t = [], 0
        for _ in range(repeats):
            start, steps = time.perf_counter(), 0
            while (now := time.perf_counter()) - start < seconds:
                steps += env.step(actions[t % 1024]).env_steps
                t += 1
            rates.append(steps / (now - start))
    finally:
        env.close()
    return {"env": name, "count": count, **spread(rates), "start_seconds": round(made, 2)}


def measure_plain(count: int, seconds: float, repeats: int) -> dict[str, Any]:
    """Steps per second of ``count`` Crafter worlds in processes that talk to nobody."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["emerald_jax.envs.crafter_warm"])
    gate = context.Barrier(count)
    queue = context.Queue()
    arguments = (gate, queue, seconds, repeats)
    workers = [
        context.Process(target=play_plain, args=(seed, *arguments), daemon=True)
        for seed in range(count)
    ]
    for worker in workers:
        worker.start()
    rates = [queue.get(timeout=60 + 2 * seconds * repeats) for _ in workers]
    for worker in workers:
        worker.join()
    together = np.sum(rates, axis=0).tolist()
    return {"env": "plain", "count": count, **spread(together)}


def play_plain(seed: int, gate: Any, queue: Any, seconds: float, repeats: int) -> None:
    """Body of one bare process."""
    from emerald_jax.envs.crafter import CrafterEnv

    env = CrafterEnv()
    env.reset(seed=seed)
    actions = np.random.default_rng(seed).integers(17, size=1024)
    rates, t = [], 0
    for _ in range(repeats):
        gate.wait()
        start, steps = time.perf_counter(), 0
        while (now := time.perf_counter()) - start < seconds:
            *_, terminated, truncated, _ = env.step(actions[t % 1024])
            steps, t = steps + 1, t + 1
            if terminated or truncated:
                env.reset()
        rates.append(steps / (now - start))
    queue.put(rates)


def spread(rates: list[float]) -> dict[str, float]:
    """Median, lowest and highest."""
    return {
        "steps_per_second": round(statistics.median(rates), 1),
        "lowest": round(min(rates), 1),
        "highest": round(max(rates), 1),
    }


def machine() -> dict[str, Any]:
    """What the numbers depend on."""
    packages = ("numpy", "jax", "gymnasium", "crafter", "ale-py", "gymnax")
    return {
        "cores": os.cpu_count(),
        "load_before": round(os.getloadavg()[0], 2),
        "machine": platform.machine(),
        "python": platform.python_version(),
        **{package: importlib.metadata.version(package) for package in packages},
    }


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("names", nargs="*", default=[*NAMES, "plain"])
    parser.add_argument("--counts", type=int, nargs="+", default=[1, 16])
    parser.add_argument("--seconds", type=float, default=2.0, help="of one repeat")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results/envs.json")
    options = parser.parse_args()
    register("noise", Noise)
    report: dict[str, Any] = {"machine": machine(), "rows": [], "left_out": []}
    for name in options.names:
        for count in options.counts:
            try:
                if name == "plain":
                    row = measure_plain(count, options.seconds, options.repeats)
                else:
                    row = measure(name, count, options.seconds, options.repeats)
            except EnvError as error:
                report["left_out"].append(str(error))
                break
            report["rows"].append(row)
            print(json.dumps(row), file=sys.stderr)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(report, indent=2) + "\n")
    print(json.dumps(report))


if __name__ == "__main__":
    main()
