"""Groups of host environments that go on when one of them raises, hangs or dies."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence

import numpy as np

from emerald_jax.envs.base import EnvError
from emerald_jax.envs.seats import Answer, Command, Failure, Reply, SeatError, Seats, Spaces

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
