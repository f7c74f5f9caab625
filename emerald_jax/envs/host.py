"""Groups of host environments that go on when one of them raises, hangs or dies.

Environments stepped on the host: by some worker processes, or all in this one.

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

import logging
import os
import time
from collections.abc import Mapping, Sequence

import numpy as np
from gymnasium.spaces import Box, Discrete

from emerald_jax.config import EnvsConfig
from emerald_jax.envs.base import EnvError, EnvSpec, EpisodeTracker, VectorStep
from emerald_jax.envs.workers import (
    Answer,
    Command,
    EnvFactory,
    Failure,
    InlineSeats,
    Reply,
    SeatError,
    Seats,
    Spaces,
    WorkerSeats,
)

_LOG = logging.getLogger(__name__)
_CLOSE_SECONDS = 3.0


class Supervisor:
    """E environments in groups, numbered through, and what becomes of their failures.

    Attributes:
        num_envs: E.
        faults: failures so far. An environment that raised is one; so is a worker that died or
            hung, whatever the number of its environments.
    """

    def __init__(
        self, name: str, groups: Sequence[Seats], *, seed: int, timeout: float, max_faults: int
    ):
        """Nothing starts before :meth:`start`.

        Args:
            name: of the environments, for messages.
            groups: where they sit.
            seed: of all environments.
            timeout: seconds an environment may take to start, reset or step.
            max_faults: faults that are forgiven.
        """
        self._name, self._seed = name, seed
        self._timeout, self._max_faults = timeout, max_faults
        ends = np.cumsum([len(group.frames) for group in groups]).tolist()
        rows = [range(end - len(g.frames), end) for g, end in zip(groups, ends, strict=True)]
        self._groups = list(zip(groups, rows, strict=True))
        self._shown = np.concatenate([group.frames for group in groups])
        self.num_envs = len(self._shown)
        self.faults = 0
        # What the next reset of each environment is seeded with; None goes on.
        self._seeds: list[int | None] = [*env_seeds(seed, self.num_envs)]

    def start(self) -> list[Spaces]:
        """Make every environment; one that fails already here is not tried again.

        Raises:
            EnvError: when an environment cannot start.
        """
        for group, rows in self._groups:
            group.start()
            group.send([Command(seat, "make") for seat in range(len(rows))])
        since, spaces = time.monotonic(), []
        for group, rows in self._groups:
            try:
                answers = group.receive(self._timeout, since)
            except SeatError as fault:
                it = "it" if len(rows) == 1 else "they"
                raise self._error(f"{_called(rows)} {fault} while {it} started", fault) from fault
            for env, answer in zip(rows, answers, strict=True):
                if isinstance(answer, Failure):
                    fault = answer.as_error()
                    raise self._error(f"environment {env} {fault} while it started", fault)
                spaces.append(answer)
        return spaces

    def send(self, begins: Sequence[bool], actions: Sequence[int]) -> None:
        """Let every environment begin an episode or take an action; returns at once.

        Args:
            begins: `[E]`, which have to begin.
            actions: `[E]`, of the others.
        """
        for group, rows in self._groups:
            group.send(
                [
                    self._beginning(rows, env)
                    if begins[env]
                    else Command(env - rows.start, "step", actions[env])
                    for env in rows
                ]
            )

    def receive(self, begins: Sequence[bool]) -> tuple[list[Reply], np.ndarray]:
        """Replies and images `[E, …]` that :meth:`send` led to, after all faults were made good.

        A beginning that failed is tried again until it works. A step that failed ends its episode
        at the image before it. When a worker is lost after a step was done, because of a beginning
        that had to be tried again, the episode ends with that step.

        Args:
            begins: as they were sent.

        Raises:
            EnvError: when environments failed too often.
        """
        since = time.monotonic()
        replies: list[Reply] = []
        for group, rows in self._groups:
            replies += self._replies_of(group, rows, begins, since)
        self._shown = np.concatenate([group.frames for group, _ in self._groups])
        return replies, self._shown

    def close(self) -> None:
        """End every worker, politely or else by force; safe to call twice."""
        for group, _ in self._groups:
            group.ask_to_close()
        deadline = time.monotonic() + _CLOSE_SECONDS
        for group, _ in self._groups:
            group.close(deadline)

    def _beginning(self, rows: range, env: int) -> Command:
        """What sends an environment into its next episode."""
        seed, self._seeds[env] = self._seeds[env], None
        return Command(env - rows.start, "reset", seed)

    def _replies_of(
        self, group: Seats, rows: range, begins: Sequence[bool], since: float
    ) -> list[Reply]:
        """What one group has to say; see :meth:`receive`."""
        replies: dict[int, Reply] = {}
        asked: Sequence[int] = rows
        while asked:
            failed = self._gather(group, rows, asked, since, replies)
            asked = [env for env in failed if begins[env]]
            for env, fault in failed.items():
                if not begins[env]:
                    replies[env] = self._cut(group, rows, env, fault, replies.get(env))
            if asked:
                group.send([self._beginning(rows, env) for env in asked])
                since = time.monotonic()
        return [replies[env] for env in rows]

    def _gather(
        self,
        group: Seats,
        rows: range,
        asked: Sequence[int],
        since: float,
        replies: dict[int, Reply],
    ) -> Mapping[int, SeatError]:
        """Add the replies of those that were asked; returns what befell the others."""
        try:
            answers: Sequence[Answer] = group.receive(self._timeout, since)
        except SeatError as fault:
            self._count(rows, fault)
            group.start()
            return dict.fromkeys(rows, fault)
        failed = {}
        for env, answer in zip(asked, answers, strict=True):
            if isinstance(answer, Failure):
                failed[env] = answer.as_error()
                self._count(range(env, env + 1), failed[env])
            else:
                replies[env] = answer
        return failed

    def _cut(
        self, group: Seats, rows: range, env: int, fault: SeatError, reply: Reply | None
    ) -> Reply:
        """How the episode of an environment ends that was lost."""
        if reply is None:
            group.frames[env - rows.start] = self._shown[env]
            reply = Reply()
        if reply.over:
            return reply
        return reply._replace(truncated=True, extra={"fault": str(fault)})

    def _count(self, envs: range, fault: SeatError) -> None:
        """Count and log a fault, and choose new seeds for the environments that replace these.

        Raises:
            EnvError: when there have been too many.
        """
        self.faults += 1
        what = f"{_called(envs)} {fault}"
        if self.faults > self._max_faults:
            many = f"failure {self.faults}, envs.max_worker_failures is {self._max_faults}"
            raise self._error(f"{what} ({many})", fault) from fault
        fate = "it is replaced and its episode cut"
        if len(envs) > 1:
            fate = "they are replaced and their episodes cut"
        _LOG.warning(
            "%s: %s; %s (failure %d of at most %d)%s",
            *(self._name, what, fate, self.faults, self._max_faults),
            "".join(f"\n{note}" for note in getattr(fault, "__notes__", ())).rstrip(),
        )
        seeds = env_seeds(self._seed, self.num_envs, self.faults)
        for env in envs:
            self._seeds[env] = seeds[env]

    def _error(self, message: str, fault: SeatError) -> EnvError:
        """An error in one line, with the traceback of the environment as a note."""
        error = EnvError(f"{self._name}: {message}")
        for note in getattr(fault, "__notes__", ()):
            error.add_note(note)
        return error


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


def _called(envs: range) -> str:
    """``environment 3``, ``environments 0 to 7``."""
    one = f"environment {envs[0]}"
    return one if len(envs) == 1 else f"environments {envs[0]} to {envs[-1]}"


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
