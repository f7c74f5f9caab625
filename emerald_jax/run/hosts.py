"""The processes that train one run together, here called hosts. Most runs have one.

JAX connects them where a scheduler has started several (SLURM, Open MPI, Kubernetes, Cloud TPU), or
where ``JAX_COORDINATOR_ADDRESS``, ``JAX_NUM_PROCESSES`` and ``JAX_PROCESS_ID`` are set. Hosts agree
on small values through JAX's coordination service, which also notices a host that has ended.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import platform
import sys
import threading
import time
import warnings
from pathlib import Path
from typing import Any, NoReturn

import jax
import numpy as np
from jax._src import clusters, distributed

from emerald_jax import __version__
from emerald_jax.agent.state import RunError
from emerald_jax.config import Config, ConfigError
from emerald_jax.process import INTERRUPTED, StoppedError, leave_at_once
from emerald_jax.run.directory import flat_settings

#: Seconds without a sign of life after which a host counts as lost. JAX itself waits longer: it
#: would abort the process with a trace of its stack.
LOST_S, JAX_LOST_S = 60, 100
#: Seconds that hosts wait for one another to start, and that a failing host waits to be heard.
START_S, LEAVE_S = 300, 10
#: Seconds until a shared file system shows a file that another host has written.
SEEN_S = 30
_VARIABLES = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
_LOOPBACK = ("localhost", "127.", "[::1]")
_FOR_EVER_MS = 2**31 - 1


class Hosts:
    """This process among those that train one run; all call :meth:`exchange` in the same order.

    Attributes:
        index: number of this process, from 0.
        count: number of processes.
    """

    def __init__(self, index: int = 0, count: int = 1) -> None:
        self.index, self.count = index, count
        self._round, self._heard, self._left = 0, False, False
        self._closed = threading.Event()

    @property
    def first(self) -> bool:
        """Whether this process logs, evaluates and writes checkpoints."""
        return self.index == 0

    def exchange(self, value: Any) -> list[Any]:
        """The values of all hosts, by number; they are JSON values where there are several hosts.

        StoppedError if a signal has ended another host, RunError if an error has.
        """
        if self.count == 1:
            return [value]
        try:
            values = self._all({"value": value}, _FOR_EVER_MS)
        except jax.errors.JaxRuntimeError as error:
            self.lost(error)
        for index, found in enumerate(values):
            if "value" not in found:
                self._heard = True
                if "stopped" in found:
                    raise StoppedError(found["stopped"])
                raise RunError(f"host {index} has failed: {found['failed']}")
        return [found["value"] for found in values]

    def leave(self, error: BaseException) -> None:
        """Report an error that ends this host to the others, which end too."""
        if self.count == 1 or self._left:
            return
        self._left = True
        kind = "stopped" if isinstance(error, StoppedError) else "failed"
        try:
            if not self._heard:
                self._all({kind: str(error)}, 1000 * LEAVE_S)
        except jax.errors.JaxRuntimeError:  # they wait for the device, and for us
            sys.stderr.write(f"emerald-jax: {error}\n")
            sys.stderr.flush()
            leave_at_once(INTERRUPTED if kind == "stopped" else 2)
        self._closed.set()
        jax.distributed.shutdown()

    def check_shared(self, path: Path) -> None:
        """Refuse a run directory of this host's own: ``path`` is there on the first host."""
        deadline = time.monotonic() + SEEN_S
        while not path.exists():
            if time.monotonic() > deadline:
                raise ConfigError(
                    f"host {self.index} does not see {path}, which host 0 has written: choose a "
                    "--logdir on a file system that all hosts share"
                )
            time.sleep(0.1)

    def watch(self) -> None:
        """Body of a thread: show a sign of life, and end this process where another shows none."""
        client, before = distributed.global_state.client, time.monotonic()
        # The newest sign of every host and when it came, also of one that never shows any.
        seen = dict.fromkeys(range(self.count), ("", before))
        while not self._closed.wait(LOST_S / 20):
            try:
                client.key_value_increment(f"emerald-alive/{self.index}", 1)
                found = client.key_value_dir_get("emerald-alive/")
            except jax.errors.JaxRuntimeError as error:
                if not self._closed.is_set():
                    self.lost(error)
                return
            now = time.monotonic()
            if now - before > LOST_S / 4:  # this process was paused, and maybe the others were too
                seen = dict.fromkeys(seen, ("", now))
            for name, sign in found:
                index = int(name.rpartition("/")[2])
                if seen[index][0] != sign:
                    seen[index] = sign, now
            silent = [str(index) for index, (_, at) in seen.items() if now - at > LOST_S]
            if silent and not self._closed.is_set():
                self.lost(RunError(f"no sign of life from host {', '.join(silent)}"))
            before = now

    def lost(self, error: Exception) -> NoReturn:
        """End this process at once, because another one has ended or cannot be reached."""
        reason = str(error).strip().partition("\n")[0][:160]
        sys.stderr.write(
            f"emerald-jax: host {self.index} ends, since another host has ended or cannot be "
            f"reached ({reason}); the same command on all hosts continues from the last "
            "checkpoint\n"
        )
        sys.stderr.flush()
        leave_at_once(INTERRUPTED)

    def agree(self, config: Config, **more: Any) -> None:
        """Refuse to train where hosts differ in settings, versions or ``more``: ConfigError."""
        machine = {"emerald_jax": __version__, "jax": jax.__version__, "python": _python()}
        mine = {**machine, **more, **flat_settings(config)}
        first, *others = self.exchange(mine)
        for index, other in enumerate(others, 1):
            names = [name for name in first if other.get(name) != first[name]]
            if names:
                values = ", ".join(f"{n} {other.get(n)!r}, not {first[n]!r}" for n in names)
                raise ConfigError(
                    f"host {index} differs from host 0: {values}; start all hosts with the same "
                    "command, or independent runs with --distributed off"
                )

    def part(self, config: Config) -> Config:
        """The settings of this host's part: environments, replay and batch."""
        if self.count == 1:
            return config
        envs, replay = config.envs, config.replay
        for name, value in (("envs.count", envs.count), ("replay.batch", replay.batch)):
            if value % self.count:
                raise ConfigError(f"{name} {value} does not divide over {self.count} hosts")
        if config.data:
            raise ConfigError("--data is for one host: start one process, or --distributed off")
        envs = dataclasses.replace(envs, count=envs.count // self.count)
        capacity = replay.capacity // config.envs.count * envs.count
        batch = replay.batch // self.count
        if replay.best_of > 1 and batch < 4:
            raise ConfigError(
                f"replay.best_of applies to every fourth sequence, and each of {self.count} hosts "
                f"has {batch}: choose a larger --replay.batch, or --replay.best-of 1"
            )
        replay = dataclasses.replace(replay, batch=batch, capacity=capacity)
        return dataclasses.replace(config, envs=envs, replay=replay)

    def mine(self, tree: Any) -> Any:
        """This host's part of arrays `[all, ...]`: `[all / count, ...]`."""
        if self.count == 1:
            return tree

        def one(x: Any) -> Any:
            each = x.shape[0] // self.count
            return x[self.index * each : (self.index + 1) * each]

        return jax.tree.map(one, tree)

    def seed(self, seed: int) -> int:
        """A seed of this host's own, below 2**63; on the first host it is ``seed``."""
        if self.first:
            return seed
        return int(np.random.SeedSequence([seed, self.index]).generate_state(1, np.uint64)[0] >> 1)

    def close(self) -> None:
        """Wait for all hosts, also for a final evaluation on the first one, and disconnect."""
        if self.count > 1 and not self._left:
            with contextlib.suppress(StoppedError):  # it was stopped; all is saved
                self.exchange(None)
            self._closed.set()
            jax.distributed.shutdown()

    def _all(self, value: dict[str, Any], timeout_ms: int) -> list[dict[str, Any]]:
        """The next value of every host, once all have given theirs."""
        client, number, self._round = distributed.global_state.client, self._round, self._round + 1
        text = json.dumps(value, default=lambda x: x.tolist()).encode()
        client.key_value_set_bytes(f"emerald/{number}/{self.index:06d}", text)
        client.wait_at_barrier(f"emerald-{number}", timeout_ms)
        found = sorted(client.key_value_dir_get_bytes(f"emerald/{number}/"))
        if number:  # all have read it
            client.key_value_delete(f"emerald/{number - 1}/{self.index:06d}")
        return [json.loads(text) for _, text in found]


#: A run on one host.
ALONE = Hosts()


def connect(config: Config) -> Hosts:
    """Connect the processes that were started for one run; :data:`ALONE` where there is one.

    Call it before the first computation, and before signal handlers are set.

    Raises:
        ConfigError: the other processes cannot be reached, or the variables are incomplete.
    """
    count = cluster_size() if config.distributed == "auto" else 1
    if count == 1:
        return ALONE
    address, given = os.environ.get(_VARIABLES[0]), all(map(os.environ.get, _VARIABLES))
    index = int(os.environ[_VARIABLES[2]]) if given else None
    # JAX would take SIGTERM for itself.
    jax.config.update("jax_enable_preemption_service", False)
    # Nothing may be reached from other machines unless they were asked for.
    bind = address if address and address.startswith(_LOOPBACK) else None
    try:
        jax.distributed.initialize(
            *(address, count if given else None, index),
            initialization_timeout=START_S,
            heartbeat_timeout_seconds=JAX_LOST_S,
            coordinator_bind_address=bind,
        )
    except (RuntimeError, ValueError) as error:
        first = str(error).strip().partition("\n")[0]
        raise ConfigError(
            f"the {count} hosts of this run cannot be connected ({first}): start all of them, or "
            "give --distributed off for a run on this one alone"
        ) from error
    hosts = Hosts(distributed.global_state.process_id, distributed.global_state.num_processes)
    threading.Thread(target=hosts.watch, daemon=True, name="hosts").start()
    return hosts


def cluster_size() -> int:
    """Processes that a scheduler, or the variables of the module docstring, name; else 1."""
    values = [os.environ.get(name) for name in _VARIABLES]
    if any(values[1:]):
        if not all(values):
            raise ConfigError(f"set all of {', '.join(_VARIABLES)}, or none")
        _, count, index = values
        if not (count.isdecimal() and index.isdecimal() and int(index) < int(count)):
            raise ConfigError(f"{_VARIABLES[2]} {index} is no process of {count}")
        return int(count)
    with warnings.catch_warnings(action="ignore"):  # Kubernetes without its Python package
        for kind in clusters.ClusterEnv._cluster_types:
            if not kind.opt_in_only_method and kind.is_env_present():
                return kind.get_process_count()
    return 1


def _python() -> str:
    return ".".join(platform.python_version_tuple()[:2])
