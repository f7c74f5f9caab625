"""One run: act, step environments while the device trains, remember, log, save, go on.

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

import time
from pathlib import Path

import jax
import numpy as np

from emerald_jax.config import Config
from emerald_jax.envs.registry import spec_of
from emerald_jax.logs.logger import RunLogger
from emerald_jax.replay import Replay
from emerald_jax.saving.durable import CheckpointError
from emerald_jax.saving.lock import RunLock
from emerald_jax.saving.rundir import (
    check_run_dir,
    clear_drafts,
    has_checkpoints,
    write_config,
)
from emerald_jax.training.acting import Observation
from emerald_jax.training.ending import last_evaluation
from emerald_jax.training.faults import RunError, is_out_of_memory, out_of_memory
from emerald_jax.training.parallel import local_devices, on_first_device, place_shares
from emerald_jax.training.program import prepare_jax, put_index, put_step
from emerald_jax.training.result import INTERRUPTED, Evaluation, RunResult, closing_words
from emerald_jax.training.signals import StoppedError, StopSignals
from emerald_jax.training.sitting import Sitting
from emerald_jax.training.state import build_learner
from emerald_jax.training.weights import read_weights

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
        if not (self.save() and self.snapshots.wait()):
            known = self.snapshots.steps()
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
        ended = self.snapshots.poll()
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
