"""Environments stepped on the host: one process each, or all in this one.

A host environment is a ``gymnasium.Env`` whose observation is a `[height, width, 3]` uint8 image
and whose actions are discrete. What it puts under ``extra`` in the final step's info, a dict of
plain JSON values, ends up in :attr:`Episode.extra`.

Environments are supervised. One that raises, dies, or hangs past a timeout is made anew: its
episode ends where it last was well, ``is_last`` but not ``is_terminal``, with what happened under
``fault`` in :attr:`Episode.extra`. After too many of these the run ends.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence

import numpy as np
from gymnasium.spaces import Box, Discrete

from emerald_jax.config import EnvsConfig
from emerald_jax.envs.base import EnvError, EnvSpec, VectorStep
from emerald_jax.envs.episodes import EpisodeTracker
from emerald_jax.envs.seats import EnvFactory, InlineSeat, Reply, Seat, SeatError, Spaces
from emerald_jax.envs.workers import WorkerSeat

_LOG = logging.getLogger(__name__)
_CLOSE_SECONDS = 3.0


class HostVectorEnv:
    """E host environments, each in a seat; see :class:`VectorEnv`.

    Attributes:
        faults: environments that were made anew since the beginning.
    """

    def __init__(
        self,
        spec: EnvSpec,
        seats: Sequence[Seat],
        *,
        seed: int,
        timeout: float = EnvsConfig.worker_timeout,
        max_faults: int = EnvsConfig.max_worker_failures,
    ):
        """Start every environment. One that fails already here is not tried again.

        Args:
            spec: of each environment.
            seats: one per environment.
            seed: of all environments; environment i gets its own, which does not depend on how
                many there are.
            timeout: seconds an environment may take to start, reset or step.
            max_faults: faults that are forgiven.

        Raises:
            EnvError: when an environment cannot start, or its spaces do not match ``spec``.
        """
        self.spec = spec
        self.num_envs = len(seats)
        self.faults = 0
        self._seats = seats
        self._timeout, self._max_faults = timeout, max_faults
        self._tracker = EpisodeTracker(self.num_envs, spec.num_actions)
        self._seed = seed
        # What the next reset of each environment is seeded with; None goes on.
        self._seeds: list[int | None] = [*env_seeds(seed, self.num_envs)]
        self._pending: np.ndarray | None = None
        try:
            for seat in seats:
                seat.start()
            for env, seat in enumerate(seats):
                _check_spaces(spec, self._ready(env, seat))
        except BaseException:
            self.close()
            raise

    def reset(self) -> VectorStep:
        """See :class:`VectorEnv`. The first call seeds, later ones go on to new episodes."""
        if self._pending is not None:
            self.step_wait()
        for env in range(self.num_envs):
            self._begin(env)
        images = [self._first(env).image for env in range(self.num_envs)]
        return self._tracker.first(np.stack(images))

    def step_async(self, actions: np.ndarray) -> None:
        """See :class:`VectorEnv`."""
        if self._pending is not None:
            raise EnvError("step_async twice in a row: call step_wait in between")
        self._pending = self._tracker.check(actions)
        for env, action in enumerate(self._pending.tolist()):
            if self._tracker.newest.is_last[env]:
                self._begin(env)
            else:
                self._seats[env].send("step", action)

    def step_wait(self) -> VectorStep:
        """See :class:`VectorEnv`.

        Raises:
            EnvError: when nothing is under way, or environments failed too often.
        """
        if self._pending is None:
            raise EnvError("step_wait without step_async: nothing is under way")
        actions, self._pending = self._pending, None
        first = self._tracker.newest.is_last
        deadline = time.monotonic() + self._timeout
        replies = [
            self._first(env) if first[env] else self._stepped(env, deadline)
            for env in range(self.num_envs)
        ]
        return self._tracker.step(
            np.stack([reply.image for reply in replies]),
            actions,
            np.array([reply.reward for reply in replies]),
            np.array([reply.terminated for reply in replies]),
            np.array([reply.truncated for reply in replies]),
            {env: reply.extra for env, reply in enumerate(replies) if reply.extra},
        )

    def step(self, actions: np.ndarray) -> VectorStep:
        """See :class:`VectorEnv`."""
        self.step_async(actions)
        return self.step_wait()

    def close(self) -> None:
        """See :class:`VectorEnv`. Workers end politely, or else by force."""
        self._pending = None
        for seat in self._seats:
            seat.ask_to_close()
        deadline = time.monotonic() + _CLOSE_SECONDS
        for seat in self._seats:
            seat.close(deadline)

    def get_state(self) -> None:
        """None: host environments cannot be saved, their episodes are cut by a restart."""
        return None

    def set_state(self, state: Mapping[str, np.ndarray]) -> VectorStep:
        """Always refused, since :meth:`get_state` returns nothing.

        Raises:
            EnvError: always.
        """
        del state
        raise EnvError(f"{self.spec.name} cannot be restored: call reset() instead")

    def _ready(self, env: int, seat: Seat) -> Spaces:
        try:
            return seat.ready(self._timeout)
        except SeatError as fault:
            raise self._error(f"environment {env} {fault} while it started", fault) from fault

    def _begin(self, env: int) -> None:
        """Send one environment into its next episode."""
        self._seats[env].send("reset", self._seeds[env])
        self._seeds[env] = None

    def _first(self, env: int) -> Reply:
        """The first frame of the episode that :meth:`_begin` began, with new tries on faults."""
        while True:
            try:
                return self._seats[env].receive(self._timeout)
            except SeatError as fault:
                self._replace(env, fault)
                self._begin(env)

    def _stepped(self, env: int, deadline: float) -> Reply:
        """Where a step led; after a fault, the end of the episode at the frame before it."""
        try:
            return self._seats[env].receive(max(deadline - time.monotonic(), 0))
        except SeatError as fault:
            self._replace(env, fault)
            image = self._tracker.newest.image[env]
            return Reply(image, truncated=True, extra={"fault": str(fault)})

    def _replace(self, env: int, fault: SeatError) -> None:
        """Count and log a fault, and make the environment anew with a seed of its own.

        Raises:
            EnvError: when there have been too many.
        """
        self.faults += 1
        what = f"environment {env} {fault}"
        if self.faults > self._max_faults:
            many = f"failure {self.faults}, envs.max_worker_failures is {self._max_faults}"
            raise self._error(f"{what} ({many})", fault) from fault
        _LOG.warning(
            "%s: %s; it is replaced and its episode cut (failure %d of at most %d)%s",
            *(self.spec.name, what, self.faults, self._max_faults),
            "".join(f"\n{note}" for note in getattr(fault, "__notes__", ())).rstrip(),
        )
        self._seats[env].start()
        self._seeds[env] = env_seeds(self._seed, self.num_envs, self.faults)[env]

    def _error(self, message: str, fault: SeatError) -> EnvError:
        """An error in one line, with the traceback of the environment as a note."""
        error = EnvError(f"{self.spec.name}: {message}")
        for note in getattr(fault, "__notes__", ()):
            error.add_note(note)
        return error


def make_host_vector_env(
    spec: EnvSpec,
    factory: EnvFactory,
    envs: EnvsConfig,
    *,
    seed: int,
    preload: Sequence[str] = (),
) -> HostVectorEnv:
    """``envs.count`` host environments, where ``envs.workers`` says.

    ``auto`` takes processes when there is more than one environment: host environments are slow,
    and Python steps only one at a time.

    Args:
        spec: of each environment.
        factory: makes one environment; picklable by cloudpickle.
        envs: count, workers, and how faults are treated.
        seed: of all environments.
        preload: modules worth importing once for all workers.

    Raises:
        EnvError: when an environment cannot start, or its spaces do not match ``spec``.
    """
    inline, shape = runs_inline(envs), spec.image_shape
    return HostVectorEnv(
        spec,
        [
            InlineSeat(factory, shape) if inline else WorkerSeat(factory, shape, preload)
            for _ in range(envs.count)
        ],
        seed=seed,
        timeout=envs.worker_timeout,
        max_faults=envs.max_worker_failures,
    )


def runs_inline(envs: EnvsConfig) -> bool:
    """Whether host environments run in this process; see :func:`make_host_vector_env`."""
    return envs.workers == "inline" or (envs.workers == "auto" and envs.count == 1)


def env_seeds(seed: int, count: int, generation: int = 0) -> list[int]:
    """Independent seeds below 2**31; the first ones do not depend on ``count``.

    Args:
        seed: of all environments.
        count: environments.
        generation: another one gives other seeds.
    """
    key = (generation,) if generation else ()
    sequence = np.random.SeedSequence(seed, spawn_key=key)
    return [int(s) >> 1 for s in sequence.generate_state(count)]


def _check_spaces(spec: EnvSpec, spaces: Spaces) -> None:
    """Refuse spaces other than the spec's."""
    space, actions = spaces
    if not isinstance(space, Box) or space.shape != spec.image_shape or space.dtype != np.uint8:
        raise EnvError(
            f"{spec.name} observes {space}, not a uint8 image of {list(spec.image_shape)}"
        )
    if not isinstance(actions, Discrete) or actions.start != 0:
        raise EnvError(f"{spec.name} takes {actions}: only discrete actions from 0 are supported")
    if actions.n != spec.num_actions:
        raise EnvError(f"{spec.name} takes {actions.n} actions, its spec says {spec.num_actions}")
