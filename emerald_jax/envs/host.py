"""Environments stepped on the host, in worker processes or in this one, and supervised.

An environment that raises is replaced by a new one. If a worker dies or one of its environments
times out, all environments of that worker are replaced, since the healthy ones cannot be reached
any more. Their episodes end at their last good frame: ``is_last``, not ``is_terminal``, with the
reason under ``fault`` in :attr:`Episode.extra`. Too many faults end the run. (Gymnasium's
``AsyncVectorEnv`` needs a process per environment, and can only close them all after a failure.)
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Sequence

import gymnasium
import numpy as np
from gymnasium.spaces import Box, Discrete, MultiDiscrete

from emerald_jax.actions import ActionSpace
from emerald_jax.config import EnvsConfig
from emerald_jax.envs.base import EnvError, EnvSpec, Outcome, VectorEnv
from emerald_jax.envs.guards import FaultError, with_notes
from emerald_jax.envs.workers import Command, EnvFactory, InlineGroup, Reply, WorkerGroup

_LOG = logging.getLogger(__name__)
_CLOSE_SECONDS = 3.0
_MAX_WARNINGS = 20

Group = InlineGroup | WorkerGroup


class HostVectorEnv(VectorEnv):
    """E host environments in one or several groups; see :class:`VectorEnv`.

    An environment is a ``gymnasium.Env`` that observes a `[height, width, 3]` uint8 image and takes
    the actions of :func:`gymnasium_space`. ``info["extra"]`` of its final step becomes
    :attr:`Episode.extra`. An environment that raised counts as one of :attr:`faults`; so does a
    worker that died or hung, whatever the number of its environments.
    """

    def __init__(
        self,
        spec: EnvSpec,
        groups: Sequence[Group],
        *,
        seed: int,
        generation: int = 0,
        timeout: float = EnvsConfig.worker_timeout,
        max_faults: int = EnvsConfig.max_worker_failures,
    ):
        """Start every environment; EnvError if one cannot start or has other spaces than ``spec``.

        ``groups`` of environments are numbered through. ``timeout`` is in seconds, for a start, a
        reset or a step of one environment. See :func:`env_seed`.
        """
        ends = np.cumsum([len(group.frames) for group in groups]).tolist()
        super().__init__(spec, ends[-1])
        self._groups = groups
        # Every group with the numbers of its environments.
        self._pairs = [(g, range(e - len(g.frames), e)) for e, g in zip(ends, groups, strict=True)]
        self._timeout, self._max_faults = timeout, max_faults
        self._shown = self._frames()
        self.faults = 0
        # Seeds of the next resets; None continues an environment's own sequence.
        self._seeds: list[int | None] = [*env_seeds(seed, self.num_envs, generation)]
        self._seed, self._generation = seed, generation
        self._replaced = [0] * self.num_envs
        self._worked = False
        self._logged: set[str] = set()
        try:
            self._start()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """See :class:`VectorEnv`. Workers are asked to end, and killed after three seconds."""
        self._pending = None
        for group in self._groups:
            group.send(())
        deadline = time.monotonic() + _CLOSE_SECONDS
        for group in self._groups:
            group.close(deadline)

    def _begin(self) -> np.ndarray:
        self._send_all([None] * self.num_envs)
        return self._receive_all([True] * self.num_envs).image

    def _send(self, actions: np.ndarray) -> None:
        over = self.newest.is_last
        given = actions.tolist() if actions.ndim == 1 else actions
        self._send_all([None if over[i] else action for i, action in enumerate(given)])

    def _receive(self) -> Outcome:
        outcome = self._receive_all(self.newest.is_last.tolist())
        self._worked = True
        return outcome

    def _start(self) -> None:
        """Make every environment and check its spaces."""
        try:
            for group, lost in self._pairs:
                group.start()
                group.send([Command(index, "make") for index in range(len(lost))])
            since = time.monotonic()
            for group, lost in self._pairs:
                for env, answer in zip(lost, group.receive(self._timeout, since), strict=True):
                    if isinstance(answer, FaultError):
                        lost = range(env, env + 1)
                        raise answer
                    _check_spaces(self.spec, *answer)
        except FaultError as fault:
            reason = str(fault).removeprefix("failed: ")
            raise self._error(f"{_called(lost)} could not start: {reason}", fault) from fault

    def _send_all(self, actions: Sequence[int | np.ndarray | None]) -> None:
        """Step every environment, or reset it where its action is None; returns at once."""
        for group, rows in self._pairs:
            group.send([self._command(rows, env, actions[env]) for env in rows])

    def _command(self, rows: range, env: int, action: int | np.ndarray | None = None) -> Command:
        """A step with ``action``, or without one a reset with the environment's next seed."""
        if action is not None:
            return Command(env - rows.start, "step", action)
        seed, self._seeds[env] = self._seeds[env], None
        return Command(env - rows.start, "reset", seed)

    def _receive_all(self, begins: Sequence[bool]) -> Outcome:
        """Results of the last :meth:`_send_all`; EnvError after too many faults."""
        since = time.monotonic()
        replies: list[Reply] = []
        for group, rows in self._pairs:
            replies += self._replies_of(group, rows, begins, since)
        self._shown = self._frames()
        for env, reply in enumerate(replies):
            for kind, line in reply.warnings.items():
                if kind not in self.warnings and len(self.warnings) < _MAX_WARNINGS:
                    self.warnings[kind] = line
                    _LOG.warning("%s: environment %d: %s", self.spec.name, env, line)
        return Outcome(
            self._shown,
            np.array([reply.reward for reply in replies]),
            np.array([reply.terminated for reply in replies]),
            np.array([reply.truncated for reply in replies]),
            {env: reply.extra for env, reply in enumerate(replies) if reply.extra},
        )

    def _frames(self) -> np.ndarray:
        return np.concatenate([group.frames for group in self._groups])

    def _replies_of(
        self, group: Group, rows: range, begins: Sequence[bool], since: float
    ) -> list[Reply]:
        """Replies of one group, after all faults have been handled."""
        # A failed reset is tried again until it works. A failed step ends its episode at the frame
        # before it. If a worker is lost after a step was done (when a reset is tried again), the
        # episode ends with that step.
        replies: dict[int, Reply] = {}
        asked: Sequence[int] = rows
        while asked:
            answers, asked = self._answers(group, rows, asked, since), []
            for env, answer in answers.items():
                if not isinstance(answer, FaultError):
                    replies[env] = answer
                elif begins[env]:
                    asked.append(env)
                else:
                    replies[env] = self._cut(group, rows, env, answer, replies.get(env))
            if asked:
                group.send([self._command(rows, env) for env in asked])
                since = time.monotonic()
        return [replies[env] for env in rows]

    def _answers(
        self, group: Group, rows: range, asked: Sequence[int], since: float
    ) -> dict[int, Reply | FaultError]:
        """Answers of the environments ``asked``, or of all ``rows`` if the group is lost."""
        try:
            answers = dict(zip(asked, group.receive(self._timeout, since), strict=True))
        except FaultError as fault:
            self._count(rows, fault)
            group.start()
            return dict.fromkeys(rows, fault)
        for env, answer in answers.items():
            if isinstance(answer, FaultError):
                self._count(range(env, env + 1), answer)
        return answers

    def _cut(
        self, group: Group, rows: range, env: int, fault: FaultError, reply: Reply | None
    ) -> Reply:
        """Final reply of an episode whose environment is lost."""
        if reply is None:
            group.frames[env - rows.start] = self._shown[env]
            reply = Reply()
        if reply.over:
            return reply
        return reply._replace(truncated=True, extra={"fault": str(fault)})

    def _count(self, envs: range, fault: FaultError) -> None:
        """Count and log a fault; choose new seeds for ``envs``. EnvError if it ends the run."""
        self.faults += 1
        what = f"{_called(envs)} {fault}"
        if fault.hopeless and not self._worked:
            raise self._error(what, fault) from fault
        if self.faults > self._max_faults:
            many = f"failure {self.faults}, envs.max_worker_failures is {self._max_faults}"
            raise self._error(f"{what} ({many})", fault) from fault
        notes = () if what in self._logged else getattr(fault, "__notes__", ())
        fate = "it is replaced and its episode cut"
        if len(envs) > 1:
            fate = "they are replaced and their episodes cut"
        _LOG.warning(
            "%s: %s; %s (failure %d of at most %d)%s",
            *(self.spec.name, what, fate, self.faults, self._max_faults),
            "".join(f"\n{note}" for note in notes).rstrip(),
        )
        self._logged.add(what)
        for env in envs:
            self._replaced[env] += 1
            self._seeds[env] = env_seed(self._seed, self._generation, env, self._replaced[env])

    def _error(self, message: str, fault: FaultError) -> EnvError:
        """An error in one line, with the environment's traceback as a note."""
        return with_notes(EnvError(f"{self.spec.name}: {message}"), fault)


def make_host_vector_env(
    spec: EnvSpec,
    factory: EnvFactory,
    envs: EnvsConfig,
    *,
    seed: int,
    generation: int = 0,
    preload: Sequence[str] = (),
) -> HostVectorEnv:
    """Start ``envs.count`` host environments, inline or in workers as ``envs.workers`` chooses.

    cloudpickle must be able to pickle ``factory``; ``preload`` names modules to import once for all
    workers. EnvError if an environment cannot start or has other spaces than ``spec``.
    """
    shape = spec.image_shape
    groups: list[Group] = [InlineGroup([factory] * envs.count, shape)]
    if not runs_inline(envs):
        sizes = group_sizes(envs.count, envs.processes or cores())
        groups = [WorkerGroup([factory] * size, shape, preload) for size in sizes]
    limits = {"timeout": envs.worker_timeout, "max_faults": envs.max_worker_failures}
    return HostVectorEnv(spec, groups, seed=seed, generation=generation, **limits)


def env_seed(seed: int, generation: int, env: int, replacement: int) -> int:
    """Seed below 2**31 of one environment; independent of the others and of the workers.

    ``generation`` counts the resumes of the run, ``replacement`` those of the environment since.
    """
    if generation == replacement == 0:
        return int(np.random.SeedSequence(seed).generate_state(env + 1)[env]) >> 1
    sequence = np.random.SeedSequence(seed, spawn_key=(generation, env, replacement))
    return int(sequence.generate_state(1)[0]) >> 1


def env_seeds(seed: int, count: int, generation: int = 0) -> list[int]:
    """First seeds of ``count`` environments in a generation; see :func:`env_seed`."""
    return [env_seed(seed, generation, env, 0) for env in range(count)]


def runs_inline(envs: EnvsConfig) -> bool:
    """Whether host environments run in this process; ``auto``: only a single one does.

    Host environments are slow, and one Python process steps only one at a time.
    """
    return envs.workers == "inline" or (envs.workers == "auto" and envs.count == 1)


def group_sizes(count: int, groups: int) -> list[int]:
    """Environments per group, at most ``groups``: as even as possible, no group empty."""
    groups = min(groups, count)
    return [count // groups + (group < count % groups) for group in range(groups)]


def cores() -> int:
    """CPU cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _called(envs: range) -> str:
    """``environment 3``, ``environments 0 to 7``."""
    one = f"environment {envs[0]}"
    return one if len(envs) == 1 else f"environments {envs[0]} to {envs[-1]}"


def _check_spaces(spec: EnvSpec, space: gymnasium.Space, actions: gymnasium.Space) -> None:
    """Refuse spaces other than the spec's."""
    if not isinstance(space, Box) or space.shape != spec.image_shape or space.dtype != np.uint8:
        wanted = list(spec.image_shape)
        raise EnvError(f"{spec.name} observes {space}, not a uint8 image of {wanted}")
    if actions != gymnasium_space(spec.actions):
        wanted = f"{spec.actions} from 0" if spec.actions.discrete else spec.actions
        raise EnvError(f"{spec.name} takes {actions}, not {wanted}")


def gymnasium_space(actions: ActionSpace) -> gymnasium.Space:
    """Actions in our form: Discrete, MultiDiscrete if all are categories, or a Box `[A]`."""
    if actions.discrete:
        return Discrete(actions.sizes[0])
    if all(actions.sizes):
        return MultiDiscrete(actions.sizes)
    return Box(*actions.bounds)
