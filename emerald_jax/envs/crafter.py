"""Crafter, https://github.com/danijar/crafter, behind the Gymnasium interface."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from functools import partial
from typing import Any

import crafter
import gymnasium
import numpy as np
import opensimplex
from crafter import objects, worldgen

from emerald_jax.config import EnvsConfig
from emerald_jax.envs.base import EnvError, EnvSpec, square_spec
from emerald_jax.envs.host import HostVectorEnv, make_host_vector_env, runs_inline

TIME_LIMIT = 10_000
SMALLEST_IMAGE = 18


class _World(crafter.Env):
    """Crafter whose random choices depend on its seed alone, and whose reset can be done in parts.

    ``image`` is the first frame, once :meth:`begin_slowly` has finished.
    """

    def _balance_chunk(self, chunk: tuple[int, ...], objs: set[Any]) -> None:
        # The original draws the creature to remove from a Python set, whose order follows memory
        # addresses: two processes with one seed would diverge. Every position holds one object.
        super()._balance_chunk(chunk, sorted(objs, key=lambda obj: tuple(obj.pos)))

    def begin(self, seed: int, episode: int) -> np.ndarray:
        """World number ``episode`` of a series, by Crafter's own reset; its first frame."""
        self._seed, self._episode = seed, episode - 1  # reset() adds one
        return self.reset()

    def begin_slowly(self, seed: int, episode: int) -> Iterator[None]:
        """The same world, one column per step of the iterator: reset and ``generate_world``."""
        world, (width, height) = self._world, self._world.area
        self._seed, self._episode, self._step = seed, episode, 0
        world.reset(seed=hash((seed, episode)) % (2**31 - 1))
        self._update_time()
        self._player = player = objects.Player(world, (width // 2, height // 2))
        self._last_health = player.health
        world.add(player)
        self._unlocked = set()
        noise = opensimplex.OpenSimplex(seed=world.random.randint(0, 2**31 - 1))
        tunnels = np.zeros(world.area, bool)
        for x in range(width):
            yield
            for y in range(height):
                worldgen._set_material(world, (x, y), player, tunnels, noise)
        for x in range(width):
            yield
            for y in range(height):
                worldgen._set_object(world, (x, y), player, tunnels)
        yield
        self.image = self._obs()


class CrafterEnv(gymnasium.Env):
    """Survive, gather and build in an open 64 x 64 world seen from above.

    Observation: `[size, size, 3]` uint8, the 9 x 7 tiles around the player and the inventory.
    Actions (17): noop, move_left, move_right, move_up, move_down, do, sleep, place_stone,
    place_table, place_furnace, place_plant, make_wood_pickaxe, make_stone_pickaxe,
    make_iron_pickaxe, make_wood_sword, make_stone_sword, make_iron_sword.
    Reward: +1 when one of the 22 achievements is unlocked for the first time in an episode, and
    0.1 per point of health gained or lost.
    Terminated: the player's health reached 0; also on the limit's own step.
    Truncated: after ``length`` steps.
    Seeds: ``reset(seed=s)`` begins the series of worlds (s, 1), (s, 2), …; each later ``reset()``
    moves on to the next one.
    Info: Crafter's own without ``discount`` and ``semantic``; on the final step also ``extra``,
    ``{"achievements": name -> times unlocked}``.
    Source: crafter 1.8, https://github.com/danijar/crafter.
    """

    def __init__(self, size: int = 64, length: int = TIME_LIMIT, *, ahead: bool = False):
        """The first world is made by the first reset.

        ``ahead`` makes the next world in :meth:`work_ahead` while this one is played. One world
        takes as long as fifty steps; the other environments of a group would wait.
        """
        self.observation_space = gymnasium.spaces.Box(0, 255, (size, size, 3), np.uint8)
        self.action_space = gymnasium.spaces.Discrete(len(crafter.constants.actions))
        self._size, self._length = size, length
        self._seed, self._episode, self._ahead = 0, 0, ahead
        self._world: _World | None = None
        # The next world, and the iterator that makes it.
        self._next: _World | None = None
        self._making: Iterator[None] | None = None

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """First frame of the next world; the class docstring explains ``seed``."""
        del options
        super().reset(seed=seed)
        if seed is None and self._world is None:
            seed = int(self.np_random.integers(2**31 - 1))
        if seed is not None:
            self._seed, self._episode = int(seed), 0
            self._making = None  # it belongs to another series
        self._episode += 1
        if self._making is None:
            # A world depends on two numbers alone, so the object is reused: a new one would read
            # the textures from disk again.
            self._world = self._world or self._new()
            image = self._world.begin(self._seed, self._episode)
        else:
            for _ in self._making:
                pass
            self._world, self._next = self._next, self._world
            image = self._world.image
        self._making = self._make(self._seed, self._episode + 1) if self._ahead else None
        return image, {}

    def work_ahead(self) -> bool:
        """Make a 130th of the next world, in less time than a step; False when it is complete.

        If it is incomplete when it is needed, the reset completes it.
        """
        return self._making is not None and next(self._making, self) is None

    def _make(self, seed: int, episode: int) -> Iterator[None]:
        self._next = self._next or self._new()
        yield from self._next.begin_slowly(seed, episode)

    def _new(self) -> _World:
        return _World(size=(self._size, self._size), length=self._length)

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """One action; see the class for reward, termination and info."""
        image, reward, over, info = self._world.step(int(action))
        # Crafter sets `done` on death and at the limit; only death has discount 0.
        terminated = info.pop("discount") == 0
        truncated = bool(over) and not terminated
        del info["semantic"]
        if over:
            info["extra"] = {"achievements": dict(info["achievements"])}
        return image, float(reward), bool(terminated), truncated, info


def make_spec(name: str, game: str, envs: EnvsConfig) -> EnvSpec:
    """Spec of Crafter; EnvError if the image is too small to draw the inventory."""
    del game
    if envs.image_size < SMALLEST_IMAGE:
        raise EnvError(
            f"crafter cannot be drawn in {envs.image_size} pixels: "
            f"choose envs.image_size of at least {SMALLEST_IMAGE}"
        )
    actions = crafter.constants.actions
    return square_spec(name, envs, len(actions), TIME_LIMIT, actions)


def make_env(
    name: str, game: str, envs: EnvsConfig, *, seed: int, generation: int = 0
) -> HostVectorEnv:
    """Start Crafter environments; see :class:`CrafterEnv` and ``make_host_vector_env``."""
    spec = make_spec(name, game, envs)
    options = dict(size=envs.image_size, length=spec.time_limit, ahead=not runs_inline(envs))
    factory, seeds = partial(CrafterEnv, **options), dict(seed=seed, generation=generation)
    return make_host_vector_env(spec, factory, envs, **seeds, preload=[__name__])


if "emerald_jax.envs.fork_server" in sys.modules:
    # In the fork server: load Crafter's compiled noise, which takes numba half a second, for all
    # workers.
    CrafterEnv().reset(seed=0)
