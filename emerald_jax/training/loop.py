"""When the next checkpoint and the next update are due.

Around the hot loop: building a run's parts, continuing from a checkpoint, writing the next one.

``loop.py`` steps; this file sets up, and knows what of a run decides its future.

One run: act, step environments while the device trains, remember, log, save, go on.

The loop is single-threaded and its order is fixed, so a seed decides everything. One vector step:

1. act on the newest records (this waits for the update in flight, whose parameters it uses);
2. send the actions to the environments;
3. start the updates that ``train_ratio`` owes, each on a batch that was already put on the device,
   and fetch the next batch while they compute;
4. take the environments' answers, remember and log them.

Everything that decides the future is in a checkpoint; keys are derived from counters. The last
checkpoint is written before the last evaluation, which leaves no trace in it.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

import jax
import numpy as np

from emerald_jax.agent.acting import Observation, put_step
from emerald_jax.agent.state import TrainState, build_learner, init_carry, init_state
from emerald_jax.config import Config
from emerald_jax.envs.base import VectorStep
from emerald_jax.envs.registry import make_vector_env, spec_of
from emerald_jax.replay import Replay, make_sampler
from emerald_jax.run.checkpoint import Store
from emerald_jax.run.directory import (
    PACE,
    check_run_dir,
    clear_drafts,
    compare_settings,
    has_checkpoints,
    refuse_other_data,
    write_config,
)
from emerald_jax.run.files import CheckpointError, RunLock
from emerald_jax.run.log import RunLogger
from emerald_jax.run.machine import prepare_jax
from emerald_jax.run.weights import read_weights, start_from
from emerald_jax.training.devices import (
    build_programs,
    join,
    local_devices,
    on_first_device,
    place_shares,
    place_state,
    put_batch,
    put_index,
    split,
)
from emerald_jax.training.evaluate import last_evaluation
from emerald_jax.training.faults import (
    INTERRUPTED,
    Evaluation,
    RunError,
    RunResult,
    check_updates,
    closing_words,
    is_out_of_memory,
    out_of_memory,
)
from emerald_jax.training.narrator import Narrator, PictureMaker
from emerald_jax.training.signals import StoppedError, StopSignals
from emerald_jax.types import Params

#: After a save that failed, such as on a full disk, the next is tried this soon.
RETRY_S = 60.0
#: Share of the interval that the first save is expected to take; later ones are measured.
EXPECTED = 0.1


class SaveClock:
    """Keeps checkpoints on disk at most one interval apart.

    A checkpoint counts from the moment its writing has ended, but what it holds is as old as its
    beginning. So the next one begins earlier by what the last one took to write; by half the
    interval at most, or a slow disk would be written to without pause.
    """

    def __init__(self, interval_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        """The first checkpoint is to be on disk one interval from now.

        Args:
            interval_s: seconds.
            clock: seconds from some fixed point.
        """
        self._interval, self._clock = interval_s, clock
        self._begun = clock()
        self._took = EXPECTED * interval_s
        self._due = self._begun + interval_s - self._took

    def begun(self) -> None:
        """A save begins now."""
        self._begun = self._clock()
        self._due = self._begun + self._interval - min(self._took, self._interval / 2)

    def ended(self, well: bool) -> None:
        """The save that was begun has ended."""
        now = self._clock()
        if well:
            self._took = now - self._begun
            self._due = self._begun + self._interval - min(self._took, self._interval / 2)
        else:
            self._due = now + min(self._interval, RETRY_S)

    def due(self) -> bool:
        """Whether a save should begin."""
        return self._clock() > self._due


class Pace:
    """How many updates ``train_ratio`` owes for the environment steps taken.

    The ratio counts from a point, at first the end of prefill. A run that goes on at another pace
    counts from where it goes on: updates that the old pace owed or spared are not made up for.
    """

    def __init__(self, config: Config) -> None:
        """Count from the end of prefill.

        Args:
            config: all settings.
        """
        self._prefill = config.replay.prefill
        self._per_update = config.replay.batch * config.replay.length
        self._ratio = config.train_ratio
        self.point = (config.replay.prefill, 0)

    def owes(self, env_steps: int, updates: int) -> bool:
        """Whether another update is due after so many environment steps and updates."""
        steps, before = self.point
        owed = math.floor((env_steps - steps) * self._ratio / self._per_update)
        return env_steps > steps and updates < before + owed

    def restart(self, env_steps: int, updates: int) -> None:
        """Count from here, or from the end of prefill if that is still to come."""
        self.point = (max(env_steps, self._prefill), updates)


class Sitting:
    """The moving parts of one sitting of a run."""

    def __init__(
        self,
        config: Config,
        logdir: Path,
        logger: RunLogger,
        replay: Replay,
        devices: list[jax.Device],
        signals: StopSignals,
        beginning: dict[str, Params] | None = None,
    ) -> None:
        """Nothing begins before :meth:`set_up`.

        Args:
            config: all settings, validated.
            logdir: the run directory, locked.
            logger: open log of the run.
            replay: empty store.
            devices: what the batch is split over.
            signals: may ask to stop.
            beginning: weights that a new run starts from; None starts from random ones.
        """
        self.config, self.logdir, self.logger, self.replay = config, logdir, logger, replay
        self.devices, self.signals, self.began = devices, signals, time.monotonic()
        self.beginning = beginning
        self.narrator = Narrator(logger, config, replay)
        self.pace = Pace(config)
        self.env_steps = self.updates = self.vector_steps = 0
        #: Of the newest update, until they are logged.
        self.metrics: dict[str, Any] | None = None
        self.unchecked: list[dict[str, Any]] = []
        self.pending = self.on_device = self.record = self.env = self.programs = None
        self.store: Store | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        for part in (self.env, self.store):
            if part is not None:
                part.close()

    def set_up(self) -> None:
        """Build everything, compile, restore the newest checkpoint if there is one.

        Raises:
            StoppedError: a signal has arrived; nothing has happened that would be worth a save.
        """
        config = self.config
        self.narrator.introduce(self.devices)
        self.signals.check()
        self.store = Store(self.logdir, config.log.keep)
        self.env = make_vector_env(config.env, config.envs, seed=config.seed)
        self.learner = build_learner(config, self.env.spec.num_actions)
        self.sampler = make_sampler(
            config.replay.sampler,
            self.replay,
            config.replay.batch,
            config.replay.length,
            config.seed,
            config.replay.best_of,
        )
        self.random = np.random.default_rng(config.seed)
        root = jax.random.key(config.seed)
        init_key, self.update_key, self.act_key, picture_key = jax.random.split(root, 4)
        self.state: TrainState = jax.jit(lambda key: init_state(self.learner, key))(init_key)
        self.carry = init_carry(self.learner, config.replay.batch)
        self.acting = init_carry(self.learner, config.envs.count)
        self.narrator.introduce_sizes(self.state, self.env.spec)
        self.signals.check()
        self.programs = build_programs(self.learner, self.state, self.env.spec, self.devices)
        self.pictures = PictureMaker(self.learner, self.programs, self.replay, picture_key)
        self.narrator.say(
            f"compiled in {self.programs.seconds:.0f} s; an update needs "
            f"{self.programs.temporaries / 2**20:,.0f} MiB of working memory"
        )
        self.signals.check()
        self.record = self.begin()
        self.state = place_state(self.state, self.devices)
        self.carry = place_shares(split(self.carry, len(self.devices)), self.devices)
        self.clock = SaveClock(60 * config.log.checkpoint_minutes)
        self.narrator.begin(self.env_steps, self.updates)

    def save(self) -> bool:
        """Begin to write a checkpoint of this very point; a full disk is a warning, not an end.

        Returns:
            Whether it is on its way.
        """
        self.check()
        metadata = {
            "env_steps": self.env_steps,
            "updates": self.updates,
            "vector_steps": self.vector_steps,
            "sampler": self.sampler.state_dict(),
            "random": self.random.bit_generator.state,
            "pending": self.pending is not None,
            "paced_from": list(self.pace.point),
            "config": self.config.to_dict(),
        }
        self.clock.begun()
        # A checkpoint is meant to leave the device; the hot loop's guard is against accidents.
        with jax.transfer_guard("allow"):
            begun = self.store.save(self.updates, self._tree(), metadata, self.replay)
        if not begun:
            self.clock.ended(False)
        return begun

    def begin(self) -> VectorStep:
        """The first records: those of the newest sound checkpoint, or first frames."""
        first = self.env.reset()
        if self.store.steps():
            restored = self.store.restore(self._tree(), self.replay)
            self._take_over(restored.tree, restored.metadata)
            if restored.tree["env"]:
                return self.env.set_state(jax.tree.map(np.asarray, restored.tree["env"]))
        else:
            if self.beginning is not None:
                self.state = start_from(self.state, self.beginning)
                self.narrator.say(f"starts from the weights of {self.config.init_from}")
            self._rewind_log()
        self.remember(first)
        return first

    def _take_over(self, tree: dict[str, Any], metadata: dict[str, Any]) -> None:
        """Continue from a checkpoint's arrays and counters, with our settings where they differ."""
        before = Config.from_dict(metadata["config"])
        differences = compare_settings(before, self.config)
        refuse_other_data(self.logdir, differences)
        self.state, self.acting = tree["state"], tree["acting"]
        self.carry = tree["carry"]
        for name in ("env_steps", "updates", "vector_steps"):
            setattr(self, name, metadata[name])
        self.sampler.load_state_dict(metadata["sampler"])
        self.random.bit_generator.state = metadata["random"]
        if metadata["pending"]:
            self.stage(jax.tree.map(np.asarray, tree["pending"]))
        if any(difference.name in PACE for difference in differences):
            self.pace.restart(self.env_steps, self.updates)
        else:
            self.pace.point = tuple(metadata.get("paced_from", self.pace.point))
        if before.init_from:  # where a run has begun stays true
            self.config = dataclasses.replace(self.config, init_from=before.init_from)
        self._rewind_log()
        say = self.narrator.say
        say(f"continues after {self.env_steps:,} steps and {self.updates:,} updates")
        for difference in differences:
            say(f"  {difference}")

    def _rewind_log(self) -> None:
        """Forget what the log says of steps that are still to come; ours are the run's settings.

        Raises:
            CheckpointError: if that cannot be written.
        """
        try:
            self.logger.rewind(self.env_steps)
            write_config(self.logdir, self.config)
        except OSError as error:
            raise CheckpointError(
                f"{self.logdir} cannot be written in: {error.strerror}"
            ) from error

    def _tree(self) -> dict[str, Any]:
        """Every array that decides the future, whatever the number of devices."""
        return {
            "state": self.state,
            "carry": self.carry if self.record is None else join(self.carry, len(self.devices)),
            "acting": self.acting,
            "pending": self.pending or self.pictures.blank_batch(),
            "env": self.env.get_state() or {},
        }

    def stage(self, batch: Any) -> None:
        """Keep a batch for the next update and start copying it to the devices."""
        self.pending, self.on_device = batch, put_batch(batch, self.devices)

    def check(self) -> None:
        """Look at the updates that have finished: were they finite?"""
        checked, self.unchecked = self.unchecked, []
        limit = self.config.log.max_bad_updates
        for message in check_updates(checked, self.state, self.logdir, limit):
            self.logger.say(message)

    def remember(self, record: VectorStep) -> None:
        """Put records into the replay and finished episodes into the log."""
        self.replay.append(record)
        self.store.advance(self.replay)
        self.narrator.episodes(self.env_steps, record)


__all__ = ["INTERRUPTED", "RunError", "RunResult", "train"]


def train(config: Config) -> RunResult:
    """Train, or continue, the run of ``config.logdir``.

    Args:
        config: all settings.

    Returns:
        :class:`RunResult`.

    Raises:
        ConfigError: settings that cannot work, or a run directory that is not ours.
        EnvError: the environment is unknown, missing or broken.
        ReplayError: the replay does not fit into memory.
        CheckpointError: the run directory is in use, unwritable, or its checkpoints do not fit.
        RunError: updates were not finite several times in a row, or a device has no more memory.
    """
    prepare_jax()
    with StopSignals() as signals:
        devices = local_devices(config.devices)
        config.validate(len(devices))
        logdir = check_run_dir(config)
        spec = spec_of(config.env, config.envs)
        replay = Replay(config.replay.capacity, config.envs.count, spec.image_shape)
        beginning = None
        if config.init_from and not has_checkpoints(logdir):
            # Before anything is written or compiled: these may not fit.
            beginning = read_weights(config.init_from, build_learner(config, spec.num_actions))[0]
        with RunLock(logdir), RunLogger(logdir, config, total_steps=config.steps) as logger:
            signals.tell = lambda name: logger.say(
                f"{name}: saving, then leaving; once more leaves at once"
            )
            _prepare_directory(logdir, config)
            with Run(config, logdir, logger, replay, devices, signals, beginning) as run:
                result = run.run()
            logger.result(closing_words(result))
            return result


def _prepare_directory(logdir: Path, config: Config) -> None:
    """Make a new run readable from its first moment; one that goes on is touched by its restore.

    Raises:
        CheckpointError: if nothing can be written.
    """
    try:
        clear_drafts(logdir)
        if not has_checkpoints(logdir):
            write_config(logdir, config)
    except OSError as error:
        raise CheckpointError(f"{logdir} cannot be written in: {error.strerror}") from error


class Run(Sitting):
    """One sitting of a run, from its first step to its last word; see the module docstring."""

    def run(self) -> RunResult:
        """Go on until the steps are done, the minutes are over, or a signal asks to stop."""
        stopped, evaluation = "", None
        try:
            self.set_up()
            first = self.vector_steps
            with jax.transfer_guard("disallow"):
                while not (stopped := self._stopped()):
                    self.vector_step()
            self._finish(moved=self.vector_steps > first)
            if stopped in ("steps", "minutes"):
                evaluation = self._evaluate()
        except StoppedError as stop:  # with nothing in hand that is not saved
            stopped = str(stop)
        except jax.errors.JaxRuntimeError as error:
            if not is_out_of_memory(error):
                raise
            memory = self.programs.memory if self.programs else None
            raise out_of_memory(self.config, self.devices[0], memory) from error
        return RunResult(
            self.logdir,
            self.logger.mean_score,
            self.env_steps,
            self.updates,
            time.monotonic() - self.began,
            stopped,
            evaluation,
        )

    def _finish(self, *, moved: bool) -> None:
        """Log, draw and save the last point, unless nothing has happened since the last one.

        Raises:
            CheckpointError: if it cannot be saved.
        """
        if not moved:
            return
        if self.metrics is not None:
            self._log()
        if not self.signals.name:  # who was asked to leave has no time for pictures
            self._picture()
        if not (self.save() and self.store.wait()):
            known = self.store.steps()
            older = f"checkpoint {known[-1]}" if known else "nothing"
            raise CheckpointError(
                f"the last checkpoint cannot be written to {self.logdir}, {older} is kept: make "
                "room and give the same command again"
            )

    def _evaluate(self) -> Evaluation | None:
        """The last evaluation, if there is to be one; its row goes into the log."""
        if not self.config.log.eval_episodes or not self.updates:
            return None
        params = on_first_device(self.state.params, self.devices)
        key = jax.random.fold_in(self.act_key, 2**31 + self.updates)
        result, row = last_evaluation(
            self.learner,
            params,
            self.env,
            key,
            act=self.programs.act,
            check=self.signals.check,
        )
        if row:
            self.narrator.numbers(self.env_steps, row)
        return result

    def vector_step(self) -> None:
        """One step of all environments and the updates that go with it."""
        self.env.step_async(self._actions())
        while self.pace.owes(self.env_steps, self.updates):
            self._update()
        with self.narrator.timed("env_wait"):
            self.record = self.env.step_wait()
        self.vector_steps += 1
        self.env_steps += self.record.env_steps
        self.remember(self.record)
        self.narrator.progress(self.env_steps, self.updates)
        ended = self.store.poll()
        if ended is not None:
            self.clock.ended(ended)
        if self.clock.due():
            self.save()

    def _actions(self) -> np.ndarray:
        """One action per environment: random during prefill, the policy's afterwards."""
        if self.env_steps < self.config.replay.prefill:
            return self.random.integers(
                self.env.spec.num_actions, size=self.env.num_envs, dtype=np.int32
            )
        seen = Observation(self.record.image, self.record.action, self.record.is_first)
        acted = self.programs.act(
            on_first_device(self.state.params, self.devices),
            self.acting,
            jax.device_put(seen),
            self.act_key,
            put_step(self.vector_steps, self.config.behavior.noise_hold),
        )
        self.acting = acted.carry
        with self.narrator.timed("device_wait"):
            action, finite = jax.device_get((acted.action, acted.finite))
        self.check()
        if not finite:
            raise RunError(
                f"the policy is not finite after {self.updates} updates; the last checkpoint in "
                f"{self.logdir} is sound: continue with smaller learning rates"
            )
        return action

    def _update(self) -> None:
        """Start one update and, while it computes, prepare the batch of the next."""
        if self.pending is None:
            self.stage(self.sampler.sample())
        keys = self.programs.update_keys(self.update_key, put_index(self.updates))
        batch = self.on_device._replace(carry=self.carry)
        keys = place_shares(keys, self.devices)
        self.state, self.carry, self.metrics = self.programs.train(self.state, batch, keys)
        self.unchecked.append({"update": self.updates, "batch": self.pending, **self.metrics})
        self.updates += 1
        with self.narrator.timed("replay"):
            self.stage(self.sampler.sample())
        if self.updates % self.config.log.every == 0:
            self._log()
        every = self.config.log.pictures
        if every and self.updates % every == 0:
            self._picture()

    def _log(self) -> None:
        """One row of metrics, each update's at most once; waits for the update in flight."""
        self.narrator.metrics(
            self.env_steps, self.updates, self.metrics, self.state.skipped, self.env.spec
        )
        self.metrics = None

    def _picture(self) -> None:
        """Draw real frames, reconstructions and dreams."""
        if self.config.log.pictures and self.updates:
            params = on_first_device(self.state.params, self.devices)
            self.narrator.picture(self.env_steps, self.pictures.draw(params, self.updates))

    def _stopped(self) -> str:
        """Why to stop now; empty to go on."""
        if self.signals.name:
            return self.signals.name
        if self.env_steps >= self.config.steps:
            return "steps"
        minutes = self.config.max_minutes
        return "minutes" if minutes and time.monotonic() - self.began > 60 * minutes else ""
