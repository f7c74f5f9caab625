"""Environment steps per second of each adapter, at random actions.

``noise`` is an image of noise behind the Gymnasium adapter: its cost is the adapter's overhead.
``plain``: the same Crafter episodes in one process per environment, all at once, without
communication; ``process`` minus ``plain`` is the overhead of the worker layer. First frames are not
steps, but their time counts.
"""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Iterator
from contextlib import closing
from itertools import product
from statistics import median
from typing import Any

import gymnasium
import numpy as np

from benchmarks.suite.harness import NUM_ACTIONS, Budget, Options
from benchmarks.suite.report import Row
from emerald_jax.config import Config, EnvsConfig
from emerald_jax.envs import EnvError, make_vector_env, register
from emerald_jax.envs.host import env_seeds

NAME = "envs"
ENVS = (
    "crafter",
    "atari:Breakout",
    "noise",
    "gymnax:Catch-bsuite",
    "gymnax:Breakout-MinAtar",
    "craftax:Craftax-Classic-Pixels-v1",
    "vizdoom:HealthGatheringSupreme",
    "miniworld:Hallway",
    "memory_maze:9x9",
    "procgen:coinrun",
)
#: Families that run in one way only.
_ONE_WAY = {"atari": "threads", "procgen": "threads", "gymnax": "device", "craftax": "device"}
_WARM_UP = 20
_ACTIONS = 1024


class Noise(gymnasium.Env):
    """A constant image `[210, 160, 3]`, four actions without effect, truncated after 1000 steps."""

    observation_space = gymnasium.spaces.Box(0, 255, (210, 160, 3), np.uint8)
    action_space = gymnasium.spaces.Discrete(4)
    _image = np.random.default_rng(0).integers(256, size=(210, 160, 3), dtype=np.uint8)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict]:
        """Return the constant image."""
        super().reset(seed=seed, options=options)
        self._t = 0
        return self._image, {}

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict]:
        """Return the same image; an episode has 1000 steps."""
        self._t += 1
        return self._image, 0.0, False, self._t == 1000, {}


def measure(options: Options) -> Iterator[Row | str]:
    """Rows of every environment, count and way of running; a line where a package is missing."""
    register("noise", Noise)
    # Five repeats: processes that share cores are noisy.
    budget = Budget(options.budget().seconds, least=3 if options.quick else 5)
    config = options.config()
    names = options.envs or (("crafter",) if options.quick else ENVS)
    counts = options.counts or (1, config.envs.count)
    for name in names:
        own = _ONE_WAY.get(name.partition(":")[0])
        ways = (own,) if own else ("inline", "process")
        for count, way in product(dict.fromkeys(counts), ways):
            try:
                row = measure_env(name, count, way, budget)
            except EnvError as error:
                yield f"envs {name}: {error}"
                break
            yield add_hiding(row, config, options)
            if (name, way) == ("crafter", "process"):
                yield plain_row(count, budget)


def measure_env(name: str, count: int, way: str, budget: Budget) -> Row:
    """Steps per second of ``count`` environments; EnvError where a package is missing."""
    settings = {} if way in _ONE_WAY.values() else {"workers": way}
    rates, ready = step_rates(name, EnvsConfig(count=count, **settings), budget)
    facts = {"vector_step_seconds": count / median(rates), "start_seconds": round(ready, 2)}
    case = {"env": name, "count": count, "way": way}
    return Row.of(rates, benchmark=NAME, case=case, unit="env steps/s", facts=facts)


def step_rates(name: str, envs: EnvsConfig, budget: Budget) -> tuple[list[float], float]:
    """Environment steps per second at random actions, and the seconds of the start."""
    began = time.perf_counter()
    with closing(make_vector_env(name, envs, seed=0)) as env:
        rng = np.random.default_rng(0)
        actions = env.spec.actions.sample(rng, _ACTIONS, envs.count, dtype=np.int64)
        env.reset()
        for t in range(_WARM_UP):
            env.step(actions[t])
        ready = time.perf_counter() - began
        return timed_steps(lambda t: env.step(actions[t % _ACTIONS]).env_steps, budget), ready


def add_hiding(row: Row, config: Config, options: Options) -> Row:
    """Add ``share_of_train_step`` where ``train`` ran before: step time / time of the updates."""
    rate = options.found.get("updates_per_s")
    if rate and (row.case["env"], row.case["count"]) == (config.env, config.envs.count):
        updates = config.updates_per_vector_step / rate
        row.facts["share_of_train_step"] = row.facts["vector_step_seconds"] / updates
    return row


def plain_row(count: int, budget: Budget) -> Row:
    """Steps per second of ``count`` Crafter worlds in processes without communication."""
    context = multiprocessing.get_context("forkserver")
    modules = [f"emerald_jax.envs.{name}" for name in ("fork_server", "crafter")]
    context.set_forkserver_preload(modules)
    gate, queue = context.Barrier(count), context.Queue()
    actions = np.random.default_rng(0).integers(NUM_ACTIONS, size=(_ACTIONS, count))
    workers = [
        context.Process(target=play_plain, args=(*each, gate, queue, budget), daemon=True)
        for each in zip(env_seeds(0, count), actions.T, strict=True)
    ]
    for worker in workers:
        worker.start()
    rates = [queue.get(timeout=120 + 4 * budget.seconds) for _ in workers]
    for worker in workers:
        worker.join()
    case, facts = {"env": "crafter", "count": count, "way": "plain"}, {"start_seconds": 0.0}
    rates = np.sum(rates, axis=0).tolist()
    return Row.of(rates, benchmark=NAME, case=case, unit="env steps/s", facts=facts)


def play_plain(seed: int, actions: np.ndarray, gate: Any, queue: Any, budget: Budget) -> None:
    """Body of one bare process: all make the same number of repeats, started together."""
    from emerald_jax.envs.crafter import CrafterEnv

    env, over = CrafterEnv(), False
    env.reset(seed=seed)

    def step(t: int) -> int:
        nonlocal over
        if over:  # as in the vector interface, a reset replaces a step
            env.reset()
            over = False
            return 0
        *_, terminated, truncated, _ = env.step(actions[t % _ACTIONS])
        over = terminated or truncated
        return 1

    for t in range(_WARM_UP):
        step(t)
    queue.put(timed_steps(step, budget, before=gate.wait))


def timed_steps(step: Any, budget: Budget, before: Any = None) -> list[float]:
    """Steps per second of ``budget.least`` repeats, which share the budget's seconds.

    ``step`` is called with a running number and returns the environment steps that it made;
    ``before`` is called before each repeat, not timed.
    """
    rates, t = [], 0
    for _ in range(budget.least):
        if before is not None:
            before()
        start, steps = time.perf_counter(), 0
        while (now := time.perf_counter()) - start < budget.seconds / budget.least:
            steps += step(t)
            t += 1
        rates.append(steps / (now - start))
    return rates
