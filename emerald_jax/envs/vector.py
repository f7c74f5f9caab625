"""Environments stepped on the host: by some worker processes, or all in this one.

A host environment is a ``gymnasium.Env`` whose observation is a `[height, width, 3]` uint8 image
and whose actions are discrete. What it puts under ``extra`` in the final step's info, a dict of
plain JSON values, ends up in :attr:`Episode.extra`.

A worker steps a group of environments one after another, so that a message and a switch of context
are paid once per group. Environments are supervised. One that raises is made anew; so is the whole
group of a worker that dies, or in which one environment hangs past a timeout: the others are well,
but nobody can reach them. Their episodes end where they last were well, ``is_last`` but not
``is_terminal``, with what happened under ``fault`` in :attr:`Episode.extra`. After too many of
these events the run ends.

Gymnasium's ``AsyncVectorEnv`` is not used: it takes a process for each environment, and when one
fails it can only close them all.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

import numpy as np
from gymnasium.spaces import Box, Discrete

from emerald_jax.config import EnvsConfig
from emerald_jax.envs.base import EnvError, EnvSpec, VectorStep
from emerald_jax.envs.episodes import EpisodeTracker
from emerald_jax.envs.seats import EnvFactory, InlineSeats, Seats, Spaces
from emerald_jax.envs.supervision import Supervisor
from emerald_jax.envs.workers import WorkerSeats


class HostVectorEnv:
    """E host environments in one or several groups; see :class:`VectorEnv`."""

    def __init__(
        self,
        spec: EnvSpec,
        groups: Sequence[Seats],
        *,
        seed: int,
        timeout: float = EnvsConfig.worker_timeout,
        max_faults: int = EnvsConfig.max_worker_failures,
    ):
        """Start every environment. One that fails already here is not tried again.

        Args:
            spec: of each environment.
            groups: where they sit; numbered through.
            seed: of all environments; environment i gets its own, which depends neither on how
                many there are nor on where they sit.
            timeout: seconds an environment may take to start, reset or step.
            max_faults: failures that are forgiven; see :class:`Supervisor`.

        Raises:
            EnvError: when an environment cannot start, or its spaces do not match ``spec``.
        """
        self.spec = spec
        self._groups = groups
        self._crew = Supervisor(
            spec.name, groups, seed=seed, timeout=timeout, max_faults=max_faults
        )
        self.num_envs = self._crew.num_envs
        self._tracker = EpisodeTracker(self.num_envs, spec.num_actions)
        self._pending: np.ndarray | None = None
        try:
            for spaces in self._crew.start():
                _check_spaces(spec, spaces)
        except BaseException:
            self.close()
            raise

    @property
    def faults(self) -> int:
        """Environments that raised, and workers that died or hung, since the beginning."""
        return self._crew.faults

    def reset(self) -> VectorStep:
        """See :class:`VectorEnv`. The first call seeds, later ones go on to new episodes."""
        if self._pending is not None:
            self.step_wait()
        begins, nothing = [True] * self.num_envs, [0] * self.num_envs
        self._crew.send(begins, nothing)
        return self._tracker.first(self._crew.receive(begins)[1])

    def step_async(self, actions: np.ndarray) -> None:
        """See :class:`VectorEnv`."""
        if self._pending is not None:
            raise EnvError("step_async twice in a row: call step_wait in between")
        self._pending = self._tracker.check(actions)
        self._crew.send(self._tracker.newest.is_last.tolist(), self._pending.tolist())

    def step_wait(self) -> VectorStep:
        """See :class:`VectorEnv`.

        Raises:
            EnvError: when nothing is under way, or environments failed too often.
        """
        if self._pending is None:
            raise EnvError("step_wait without step_async: nothing is under way")
        actions, self._pending = self._pending, None
        replies, images = self._crew.receive(self._tracker.newest.is_last.tolist())
        return self._tracker.step(
            images,
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
        self._crew.close()

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
    shape = spec.image_shape
    groups: list[Seats]
    if runs_inline(envs):
        groups = [InlineSeats([factory] * envs.count, shape)]
    else:
        sizes = group_sizes(envs.count, envs.processes or cores())
        groups = [WorkerSeats([factory] * size, shape, preload) for size in sizes]
    return HostVectorEnv(
        spec,
        groups,
        seed=seed,
        timeout=envs.worker_timeout,
        max_faults=envs.max_worker_failures,
    )


def runs_inline(envs: EnvsConfig) -> bool:
    """Whether host environments run in this process; see :func:`make_host_vector_env`."""
    return envs.workers == "inline" or (envs.workers == "auto" and envs.count == 1)


def group_sizes(count: int, groups: int) -> list[int]:
    """How many environments each group gets: as alike as can be, none empty.

    Args:
        count: environments.
        groups: wanted; fewer where there are fewer environments.
    """
    groups = min(groups, count)
    return [count // groups + (group < count % groups) for group in range(groups)]


def cores() -> int:
    """CPU cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


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
