"""Environment steps per second of each adapter, at random actions.

Host environments run inline and in worker processes; Atari's, in threads of ale_py's own, and those
on the device have one way only.
``noise`` is an image of noise, 210 x 160, behind the Gymnasium adapter: its cost is the adapter's
own. ``plain`` rows play the same Crafter episodes, seed by seed and action by action, in a bare
process for each environment that talks to nobody, all at once: what the worker layer costs is the
difference to Crafter's ``process`` rows. First frames are no steps, but the time they take counts.
"""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Iterator
from itertools import product
from typing import Any

import gymnasium
import numpy as np

from benchmarks.suite.harness import Budget, Options
from benchmarks.suite.report import Row, Spread
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
)
#: Families that do not ask where they should run.
_ONE_WAY = {"atari": "threads", "gymnax": "device", "craftax": "device"}
_WARM_UP = 20
_ACTIONS = 1024
_CRAFTER_ACTIONS = 17


class Noise(gymnasium.Env):
    """An image that costs nothing to make and as much to resize as an Atari screen.

    Observations `[210, 160, 3]` uint8, four actions that do nothing, reward 0, cut after 1000
    steps.
    """

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
        del action
        self._t += 1
        return self._image, 0.0, False, self._t == 1000, {}


def measure(options: Options) -> Iterator[Row | str]:
    """Rows of every environment, number and way of running; a line where a package is missing."""
    register("noise", Noise)
    config, budget = options.config(), _budget(options)
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
    """Steps per second of ``count`` environments behind the vector interface.

    Raises:
        EnvError: when there is no such environment, or its package is missing.
    """
    settings = {} if way in _ONE_WAY.values() else {"workers": way}
    began = time.perf_counter()
    env = make_vector_env(name, EnvsConfig(count=count, **settings), seed=0)
    try:
        actions = random_actions(env.spec.num_actions, count)
        env.reset()
        for t in range(_WARM_UP):
            env.step(actions[t])
        ready = time.perf_counter() - began
        rates = timed_steps(lambda t: env.step(actions[t % _ACTIONS]).env_steps, budget)
    finally:
        env.close()
    value = Spread.of(rates)
    return Row(
        benchmark=NAME,
        case={"env": name, "count": count, "way": way},
        unit="env steps/s",
        value=value,
        facts={"vector_step_seconds": count / value.median, "start_seconds": round(ready, 2)},
    )


def add_hiding(row: Row, config: Config, options: Options) -> Row:
    """Hold Crafter's time against that of the updates it has to hide behind, where it is known.

    ``share_of_train_step`` below 1 means that the environments can keep up with training.
    """
    rate = options.found.get("updates_per_s")
    if rate is None or (row.case["env"], row.case["count"]) != (config.env, config.envs.count):
        return row
    updates = config.updates_per_vector_step / rate
    row.facts["share_of_train_step"] = row.facts["vector_step_seconds"] / updates
    return row


def plain_row(count: int, budget: Budget) -> Row:
    """Steps per second of ``count`` Crafter worlds in processes that talk to nobody."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["emerald_jax.envs.crafter_warm"])
    gate, queue = context.Barrier(count), context.Queue()
    actions = random_actions(_CRAFTER_ACTIONS, count)
    workers = [
        context.Process(
            target=play_plain, args=(seed, actions[:, i], gate, queue, budget), daemon=True
        )
        for i, seed in enumerate(env_seeds(0, count))
    ]
    for worker in workers:
        worker.start()
    rates = [queue.get(timeout=120 + 4 * budget.seconds) for _ in workers]
    for worker in workers:
        worker.join()
    return Row(
        benchmark=NAME,
        case={"env": "crafter", "count": count, "way": "plain"},
        unit="env steps/s",
        value=Spread.of(np.sum(rates, axis=0).tolist()),
        facts={"start_seconds": 0.0},
    )


def play_plain(seed: int, actions: np.ndarray, gate: Any, queue: Any, budget: Budget) -> None:
    """Body of one bare process: the same number of repeats in all, begun together."""
    from emerald_jax.envs.crafter import CrafterEnv

    env, over = CrafterEnv(), False
    env.reset(seed=seed)

    def step(t: int) -> int:
        nonlocal over
        if over:  # As behind the vector interface: a beginning takes an action's turn.
            env.reset()
            over = False
            return 0
        *_, terminated, truncated, _ = env.step(actions[t % _ACTIONS])
        over = terminated or truncated
        return 1

    for t in range(_WARM_UP):
        step(t)
    queue.put(timed_steps(step, budget, before=gate.wait))


def random_actions(num_actions: int, count: int) -> np.ndarray:
    """What every environment does, again and again: `[1024, count]`."""
    return np.random.default_rng(0).integers(num_actions, size=(_ACTIONS, count))


def timed_steps(step: Any, budget: Budget, before: Any = None) -> list[float]:
    """Steps a second of ``budget.least`` repeats that share its seconds.

    Args:
        step: takes a running number, returns the environment steps it made.
        budget: its seconds are those of all repeats.
        before: called before each repeat, not timed.
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


def _budget(options: Options) -> Budget:
    """Five repeats: processes that share cores are noisy."""
    return Budget(options.budget().seconds, least=3 if options.quick else 5)
