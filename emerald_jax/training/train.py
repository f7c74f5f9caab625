"""Training from settings to a result: one run, or the runs of several seeds together."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from pathlib import Path

import jax

from emerald_jax.config import Config, ConfigError
from emerald_jax.envs.base import EnvSpec, check_same_spec
from emerald_jax.envs.registry import make_vector_env
from emerald_jax.process import INTERRUPTED, StoppedError, StopSignals
from emerald_jax.replay.store import check_fits
from emerald_jax.run.checkpoint import Store
from emerald_jax.run.data import experience, with_data
from emerald_jax.run.directory import (
    CONFIG_FILE,
    DamagedError,
    RunLock,
    check_run_dir,
    run_dir,
    saved_steps,
    write_config,
    writing_in,
)
from emerald_jax.run.evaluations import EvalReport
from emerald_jax.run.hosts import ALONE, Hosts, cluster_size, connect
from emerald_jax.run.log import NoLog, RunLogger
from emerald_jax.run.machine import prepare_jax
from emerald_jax.run.weights import read_weights
from emerald_jax.training.devices import TrainingAgent, training_devices
from emerald_jax.training.faults import is_out_of_memory, out_of_memory
from emerald_jax.training.loop import Loop
from emerald_jax.training.narrator import Narrator
from emerald_jax.training.seeds import Group, SeedAgent


@dataclasses.dataclass(frozen=True)
class RunResult:
    """How a run ended.

    Attributes:
        logdir: the run directory.
        score: mean return of the last 100 training episodes; NaN when none ended.
        env_steps: environment steps since the run began, resumed parts included.
        updates: gradient updates since the run began.
        seconds: wall time of this process' part of the run.
        stopped: ``steps``, ``minutes`` or the name of the signal.
        evaluation: the final evaluation, or None.
        data: the recorded data that the run trained on; empty where it played.
    """

    logdir: Path
    score: float
    env_steps: int
    updates: int
    seconds: float
    stopped: str
    evaluation: EvalReport | None = None
    data: str = ""

    @property
    def exit_code(self) -> int:
        """0 when the run is complete, :data:`INTERRUPTED` when a signal stopped it."""
        return 0 if self.stopped in ("steps", "minutes") else INTERRUPTED

    def __str__(self) -> str:
        score = "no episode ended" if math.isnan(self.score) else f"return {self.score:.2f}"
        played = f"{score} (mean of the last 100 training episodes) after {self.env_steps:,} steps"
        head = f"trained on {self.data}:" if self.data else played
        head += f"{'' if self.data else ' and'} {self.updates:,} updates in {self.seconds:.0f} s"
        if self.evaluation is not None:
            score, error = self.evaluation.score, self.evaluation.error
            count = len(self.evaluation.episodes)
            head += "\nevaluation with the final weights: "
            head += f"return {score:.2f} ± {error:.2f} over {count} episodes"
        if self.exit_code:
            return f"{head}\nstopped by {self.stopped}; the same command continues the run"
        dream = f"dream {self.logdir} --out dream.mp4"
        command = dream if self.data and self.evaluation is None else f"eval {self.logdir}"
        return f"{head}\nthe run is in {self.logdir}\ntry next: emerald-jax {command}"


def train(config: Config) -> RunResult:
    """Train, or continue, the run of ``config.logdir``.

    Args:
        config: all settings.

    Returns:
        :class:`RunResult`.

    Raises:
        ConfigError: settings that cannot work, data or a run directory that are not ours.
        EnvError: the environment is unknown, missing or broken.
        ReplayError: the replay does not fit into memory.
        CheckpointError: the run directory is in use, unwritable, or its checkpoints do not fit.
        RunError: updates were not finite several times in a row, or a device has no more memory.
    """
    prepare_jax()
    hosts = connect(config)
    try:
        with StopSignals() as signals:
            hosts.agree(config)
            result = _train(config, hosts, signals)
            hosts.close()
            return result
    except jax.errors.JaxRuntimeError as error:
        if hosts.count > 1 and not is_out_of_memory(error):
            hosts.lost(error)
        raise
    except Exception as error:
        hosts.leave(error)
        raise


def _train(config: Config, hosts: Hosts, signals: StopSignals) -> RunResult:
    """One run, on this host's part of the devices and environments."""
    with ExitStack() as parts:
        devices = training_devices(config)
        run = _Run(config, len(devices), signals, hosts)
        agent = TrainingAgent(run.config, run.spec, devices)
        run.open(agent, parts)
        run.narrator.introduce(agent, run.spec)
        result = run.train(agent)
        run.log.result(str(result))
        return result


def train_seeds(config: Config, seeds: int) -> list[RunResult]:
    """Train, or continue, the runs of several seeds together; see ``training/seeds.py``.

    Args:
        config: all settings. The seeds are ``config.seed`` and those that follow. Each has the run
            directory that it would have alone, or ``config.logdir``-SEED.
        seeds: their number.

    Returns:
        :class:`RunResult` of every seed that has not failed. A seed that fails does not stop the
        others. When all have ended, the first failure is raised, unless a signal stopped others:
        then the same command has to be given again.
    """
    if seeds < 1:
        raise ConfigError(f"--seeds is {seeds}: it must be at least 1")
    if config.distributed == "auto" and (count := cluster_size()) > 1:
        raise ConfigError(
            f"--seeds trains on one host, and {count} were started: give each its own --seed and "
            "--distributed off"
        )
    prepare_jax()
    with StopSignals() as signals, ExitStack() as parts:
        runs = [_Run(one, 1, signals) for one in configs_of(config, seeds)]
        devices = training_devices(runs[0].config)
        replay, options = runs[0].replay, {"compress": config.replay.compress, "stores": seeds}
        size = (replay.rows * replay.num_envs, replay.num_envs)
        check_fits(*size, replay.image_shape, replay.action_sizes, **options)
        group = Group([run.config for run in runs], runs[0].spec, devices)
        for run, agent in zip(runs, group.agents, strict=True):
            run.open(agent, parts, beside=runs[0] if run is not runs[0] else None)
        first, last = runs[0], runs[-1]
        first.log.say(f"{seeds} seeds together: {first.logdir} to {last.logdir}")
        first.narrator.introduce(group.agents[0], first.spec)
        with _memory_errors(config, group):
            group.compile(signals)
        if group.programs:
            first.narrator.compiled(group.seconds, group.temporaries)
        with ThreadPoolExecutor(seeds) as pool:
            found = list(pool.map(_train_one, runs, group.agents))
        results = [end for end in found if isinstance(end, RunResult)]
        failures = [end for end in found if isinstance(end, Exception)]
        raised = failures[0] if failures and not any(r.exit_code for r in results) else None
        for run, end in zip(runs, found, strict=True):
            if end is not raised:
                first.log.result(f"seed {run.config.seed}: {end}")
        if raised:
            raise raised
        return results


def configs_of(config: Config, seeds: int) -> list[Config]:
    """The settings of every seed's run."""
    numbered = [dataclasses.replace(config, seed=config.seed + i) for i in range(seeds)]
    if not config.logdir:
        return numbered
    folder = run_dir(config).absolute()
    if not folder.name or folder.name == "..":
        raise ConfigError(f"--logdir {config.logdir} has no name that -SEED could follow")
    return [
        dataclasses.replace(one, logdir=str(folder.with_name(f"{folder.name}-{one.seed}")))
        for one in numbered
    ]


def _train_one(run: _Run, agent: SeedAgent) -> RunResult | Exception:
    """Train one seed in its own thread; returns what ends it."""
    try:
        return run.train(agent)
    except Exception as error:  # raised when the other seeds have ended
        run.log.say(f"{run.logdir} has failed: {error}")
        return error
    finally:
        agent.leave()
        run.log.ended()


@contextlib.contextmanager
def _memory_errors(config: Config, agent: TrainingAgent | SeedAgent | Group) -> Iterator[None]:
    """Context: a device without enough memory is a RunError that names the way out."""
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if not is_out_of_memory(error):
            raise
        several = not isinstance(agent, TrainingAgent)
        raise out_of_memory(config, agent.devices[0], agent.memory, several) from error


class _Run:
    """One run but its agent: settings, data, directory, log.

    Attributes:
        config: its settings.
        logdir: its directory.
        spec: its environment's spec.
        replay: its replay.
        log: its log; from :meth:`open` on.
    """

    def __init__(
        self, config: Config, devices: int, signals: StopSignals, hosts: Hosts = ALONE
    ) -> None:
        """Check settings, data and directory, and make the replay; nothing is written."""
        self._began, self._signals, self._hosts = time.monotonic(), signals, hosts
        self.config = with_data(config)
        self.config.validate(devices)
        #: The settings of this host's environments, replay and batches.
        self._part = hosts.part(self.config)
        self.logdir = check_run_dir(self.config)
        self.spec, self.replay, self._recorded = experience(self._part, self.logdir)

    def open(
        self, agent: TrainingAgent | SeedAgent, parts: ExitStack, beside: _Run | None = None
    ) -> None:
        """Lock the directory and begin the log, which ``parts`` closes.

        A run ``beside`` another one shares its terminal.
        """
        config, self._weights = self.config, None
        if config.init_from and not saved_steps(self.logdir):
            # Before anything is written or compiled: the weights may not fit.
            self._weights = read_weights(config.init_from, agent.learner)[0]
        if not self._hosts.first:
            self._hosts.exchange(None)
            self._hosts.check_shared(self.logdir / CONFIG_FILE)
            self.log = NoLog(self.logdir)
            self.narrator = Narrator(self.log, config, self.replay)
            return
        parts.enter_context(RunLock(self.logdir))
        options = {"total_steps": config.steps, "beside": beside.log if beside else None}
        self.log = parts.enter_context(RunLogger(self.logdir, config, **options))
        if not beside:
            how = "saving, then stopping; a second signal stops at once"
            self._signals.tell = lambda name: self.log.say(f"{name}: {how}")
        if not saved_steps(self.logdir):  # a resumed run changes only after its restore
            with writing_in(self.logdir):
                write_config(self.logdir, config)
        self._hosts.exchange(None)  # the others read what is there only now
        self.narrator = Narrator(self.log, config, self.replay)

    def train(self, agent: TrainingAgent | SeedAgent) -> RunResult:
        """Train to the end, to a signal or to an error."""
        config, loop, evaluation = self.config, None, None
        with ExitStack() as parts:
            try:
                with _memory_errors(config, agent):
                    loop = self._begin(agent, parts)
                    stopped = loop.run()
                    if stopped in ("steps", "minutes"):
                        evaluation = loop.evaluate()
            except StoppedError as stop:  # raised only where everything is already saved
                stopped = str(stop)
                self._hosts.leave(stop)
            steps, updates = (loop.env_steps, loop.updates) if loop else (0, 0)
            seconds = time.monotonic() - self._began
            counts = (self.logdir, self.log.mean_score, steps, updates, seconds)
            return RunResult(*counts, stopped, evaluation, config.data)

    def _begin(self, agent: TrainingAgent | SeedAgent, parts: ExitStack) -> Loop:
        """Read the data, make the environments, compile, and restore; ``parts`` closes."""
        config, check = self.config, self._signals.check
        for _ in self._recorded:
            check()
        check()
        hosts = self._hosts
        store = parts.enter_context(Store(self.logdir, config.log.keep, hosts=hosts))
        generation = hosts.exchange(_generation(store, self.spec))[0]
        seeds = {"seed": hosts.seed(config.seed), "generation": generation}
        env = None if config.data else make_vector_env(config.env, self._part.envs, **seeds)
        if env:
            parts.enter_context(closing(env))
        check()
        programs = agent.programs()
        for name, trace in programs.items():
            agent.compile(name, trace())
            check()
        agent.start(self._weights)
        if programs:
            self.narrator.compiled(agent.seconds, agent.temporaries)
        check()
        if hosts.count > 1:
            hosts.agree(config, checkpoints=store.steps(), parameters=agent.digest())
        made = (config, agent, env, self.replay, self.narrator, store, self._signals)
        return Loop(*made, self._began, seeds["generation"])


def _generation(store: Store, spec: EnvSpec) -> int:
    """Number of this process' part of the run: 0 for a new run, one more at every resume.

    Environments that cannot be saved are seeded with it, so that no resume repeats their episodes.
    Raises EnvError where the environment is not the one that the run was trained in.
    """
    for step in reversed(store.steps()):
        with contextlib.suppress(DamagedError):
            saved = store.metadata(step)["run"]
            if "spec" in saved:
                check_same_spec(dataclasses.replace(spec, **saved["spec"]), spec)
            return saved.get("generation", 0) + 1
    return 0
