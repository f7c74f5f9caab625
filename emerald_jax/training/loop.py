"""One run: act, step environments while the device trains, remember, log, save, go on.

The loop is single-threaded and its order is fixed, so a seed decides everything. One vector step:

1. act on the newest records (this waits for the update in flight, whose parameters it uses);
2. send the actions to the environments;
3. start the updates that ``train_ratio`` owes, each on a batch that was already put on the device,
   and fetch the next batch while they compute;
4. take the environments' answers, remember and log them.

Everything that decides the future is in a checkpoint; keys are derived from counters.
"""

from __future__ import annotations

import math
import signal
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np

from emerald_jax.config import Config
from emerald_jax.envs.base import VectorStep
from emerald_jax.envs.registry import make_vector_env, spec_of
from emerald_jax.replay import Replay, make_sampler
from emerald_jax.training.acting import Observation
from emerald_jax.training.faults import RunError, check_updates
from emerald_jax.training.lock import RunLock
from emerald_jax.training.logger import RunLogger
from emerald_jax.training.parallel import (
    join,
    local_devices,
    on_first_device,
    place_shares,
    place_state,
    put_batch,
    split,
)
from emerald_jax.training.picture import PictureMaker
from emerald_jax.training.program import (
    build_programs,
    prepare_jax,
    put_index,
)
from emerald_jax.training.result import INTERRUPTED, RunResult, closing_words
from emerald_jax.training.rundir import check_run_dir, write_config
from emerald_jax.training.snapshots import Snapshots
from emerald_jax.training.state import (
    TrainState,
    build_learner,
    count_parameters,
    init_carry,
    init_state,
)

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
        RunError: updates were not finite several times in a row.
    """
    prepare_jax()
    devices = local_devices(config.devices)
    config.validate(len(devices))
    logdir = check_run_dir(config)
    spec = spec_of(config.env, config.envs)
    replay = Replay(config.replay.capacity, config.envs.count, spec.image_shape)
    with RunLock(logdir), RunLogger(logdir, config, total_steps=config.steps) as logger:
        write_config(logdir, config)
        with Run(config, logdir, logger, replay, devices) as run:
            return run.run()


class Run:
    """The moving parts of one sitting of a run; see the module docstring for their order."""

    def __init__(
        self,
        config: Config,
        logdir: Path,
        logger: RunLogger,
        replay: Replay,
        devices: list[jax.Device],
    ) -> None:
        """Build everything, restore the newest checkpoint if there is one, compile.

        Args:
            config: all settings, validated.
            logdir: the run directory, locked.
            logger: open log of the run.
            replay: empty store.
            devices: what the batch is split over.
        """
        self.config, self.logdir, self.logger, self.replay = config, logdir, logger, replay
        self.devices, self.began = devices, time.monotonic()
        self.signal: str | None = None
        self._handlers = {s: signal.signal(s, self._on_signal) for s in _SIGNALS}
        kind = devices[0].device_kind
        logger.say(f"run {logdir}: {config.env}, {config.steps:,} steps, {len(devices)} x {kind}")
        self.snapshots = Snapshots(logdir, config.log.keep)
        self.env = make_vector_env(config.env, config.envs, seed=config.seed)
        self.learner = build_learner(config, self.env.spec.num_actions)
        self.sampler = make_sampler(
            config.replay.sampler, replay, config.replay.batch, config.replay.length, config.seed
        )
        self.random = np.random.default_rng(config.seed)
        root = jax.random.key(config.seed)
        init_key, self.update_key, self.act_key, picture_key = jax.random.split(root, 4)
        self.state: TrainState = jax.jit(lambda key: init_state(self.learner, key))(init_key)
        self.carry = init_carry(self.learner, config.replay.batch)
        self.acting = init_carry(self.learner, config.envs.count)
        self.env_steps = self.updates = self.vector_steps = 0
        self.waiting = 0.0
        self.metrics: dict[str, Any] | None = None
        self.unchecked: list[dict[str, Any]] = []
        self.pending = self.on_device = self.record = None
        self._introduce()
        self.programs = build_programs(self.learner, self.state, self.env.spec, devices)
        self.pictures = PictureMaker(self.learner, self.programs, replay, picture_key)
        logger.say(
            f"compiled in {self.programs.seconds:.0f} s; an update needs "
            f"{self.programs.temporaries / 2**20:,.0f} MiB of working memory"
        )
        self.record = self._begin()
        self.state = place_state(self.state, devices)
        self.carry = place_shares(split(self.carry, len(devices)), devices)
        self.saved = time.monotonic()
        self.log_mark = (time.monotonic(), self.updates, self.env_steps)

    def __enter__(self) -> Run:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.env.close()
        self.snapshots.close()
        for number, handler in self._handlers.items():
            signal.signal(number, handler)

    def run(self) -> RunResult:
        """Go on until the steps are done, the minutes are over, or a signal asks to stop."""
        with jax.transfer_guard("disallow"):
            while (stopped := self._stopped()) is None:
                self.vector_step()
        if self.metrics is not None:
            self._log()
        self._picture()
        self.save()
        self.snapshots.wait()
        result = RunResult(
            self.logdir,
            self.logger.mean_score,
            self.env_steps,
            self.updates,
            time.monotonic() - self.began,
            stopped,
        )
        self.logger.result(closing_words(result))
        return result

    def vector_step(self) -> None:
        """One step of all environments and the updates that go with it."""
        self.env.step_async(self._actions())
        while self._update_is_due():
            self._update()
        waited = time.monotonic()
        self.record = self.env.step_wait()
        self.waiting += time.monotonic() - waited
        self.vector_steps += 1
        self.env_steps += self.record.env_steps
        self._remember(self.record)
        self.logger.progress(self.env_steps, self.updates)
        if time.monotonic() - self.saved > 60 * self.config.log.checkpoint_minutes:
            self.save()

    def save(self) -> None:
        """Write a checkpoint of this very point; a full disk is a warning, not an end."""
        self._check()
        facts = {
            "env_steps": self.env_steps,
            "updates": self.updates,
            "vector_steps": self.vector_steps,
            "sampler": self.sampler.state_dict(),
            "random": self.random.bit_generator.state,
            "pending": self.pending is not None,
            "config": self.config.to_dict(),
        }
        # A checkpoint is meant to leave the device; the hot loop's guard is against accidents.
        with jax.transfer_guard("allow"):
            self.snapshots.save(self.updates, self._tree(), facts, self.replay)
        self.saved = time.monotonic()

    def _begin(self) -> VectorStep:
        """The first records: those of the newest sound checkpoint, or first frames."""
        first = self.env.reset()
        if self.snapshots.steps():
            restored = self.snapshots.restore(self._tree(), self.replay)
            self._take_over(restored.tree, restored.facts)
            if restored.tree["env"]:
                return self.env.set_state(jax.tree.map(np.asarray, restored.tree["env"]))
        else:
            self.logger.rewind(0)
        self._remember(first)
        return first

    def _take_over(self, tree: dict[str, Any], facts: dict[str, Any]) -> None:
        """Continue from a checkpoint's arrays and counters."""
        self.state, self.acting = tree["state"], tree["acting"]
        self.carry = tree["carry"]
        for name in ("env_steps", "updates", "vector_steps"):
            setattr(self, name, facts[name])
        self.sampler.load_state_dict(facts["sampler"])
        self.random.bit_generator.state = facts["random"]
        if facts["pending"]:
            self._stage(jax.tree.map(np.asarray, tree["pending"]))
        self.logger.rewind(self.env_steps)
        self.logger.say(f"continues after {self.env_steps:,} steps and {self.updates:,} updates")

    def _tree(self) -> dict[str, Any]:
        """Every array that decides the future, whatever the number of devices."""
        return {
            "state": self.state,
            "carry": self.carry if self.record is None else join(self.carry, len(self.devices)),
            "acting": self.acting,
            "pending": self.pending or self.pictures.blank_batch(),
            "env": self.env.get_state() or {},
        }

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
            put_index(self.vector_steps),
        )
        self.acting = acted.carry
        action, finite = jax.device_get((acted.action, acted.finite))
        self._check()
        if not finite:
            raise RunError(
                f"the policy is not finite after {self.updates} updates; the last checkpoint in "
                f"{self.logdir} is sound: continue with smaller learning rates"
            )
        return action

    def _update_is_due(self) -> bool:
        """Whether ``train_ratio`` owes another update for the steps since prefill."""
        steps = self.env_steps - self.config.replay.prefill
        per_update = self.config.replay.batch * self.config.replay.length
        return steps > 0 and self.updates < math.floor(steps * self.config.train_ratio / per_update)

    def _update(self) -> None:
        """Start one update and, while it computes, prepare the batch of the next."""
        if self.pending is None:
            self._stage(self.sampler.sample())
        keys = self.programs.update_keys(self.update_key, put_index(self.updates))
        batch = self.on_device._replace(carry=self.carry)
        keys = place_shares(keys, self.devices)
        self.state, self.carry, self.metrics = self.programs.train(self.state, batch, keys)
        self.unchecked.append({"update": self.updates, "batch": self.pending, **self.metrics})
        self.updates += 1
        self._stage(self.sampler.sample())
        if self.updates % self.config.log.every == 0:
            self._log()
        every = self.config.log.pictures
        if every and self.updates % every == 0:
            self._picture()

    def _stage(self, batch: Any) -> None:
        """Keep a batch for the next update and start copying it to the devices."""
        self.pending, self.on_device = batch, put_batch(batch, self.devices)

    def _check(self) -> None:
        """Look at the updates that have finished: were they finite?"""
        checked, self.unchecked = self.unchecked, []
        limit = self.config.log.max_bad_updates
        for message in check_updates(checked, self.state, self.logdir, limit):
            self.logger.say(message)

    def _remember(self, record: VectorStep) -> None:
        """Put records into the replay and finished episodes into the log."""
        self.replay.append(record)
        self.snapshots.advance(self.replay)
        for episode in record.episodes:
            facts = {"score": episode.score, "length": episode.length, "env": episode.env}
            self.logger.episode(
                self.env_steps, {**facts, "terminal": episode.terminal, **episode.extra}
            )

    def _log(self) -> None:
        """One row of metrics; waits for the update in flight."""
        now = time.monotonic()
        then, updates, steps = self.log_mark
        values = {name: float(x) for name, x in jax.device_get(self.metrics).items()}
        seconds = max(now - then, 1e-9)
        values |= {
            "speed/updates_per_s": (self.updates - updates) / seconds,
            "speed/env_steps_per_s": (self.env_steps - steps) / seconds,
            "speed/env_wait_share": self.waiting / seconds,
            "replay/records": float(len(self.replay)),
            "train/updates": float(self.updates),
            "train/skipped": float(jax.device_get(self.state.skipped)),
        }
        self.log_mark, self.waiting = (now, self.updates, self.env_steps), 0.0
        self.logger.scalars(self.env_steps, values)

    def _picture(self) -> None:
        """Draw real frames, reconstructions and dreams."""
        if self.config.log.pictures and self.updates:
            params = on_first_device(self.state.params, self.devices)
            image = self.pictures.draw(params, self.updates)
            if image is not None:
                self.logger.image(self.env_steps, "dream", image)

    def _stopped(self) -> str | None:
        """Why to stop now, or None."""
        if self.signal:
            return self.signal
        if self.env_steps >= self.config.steps:
            return "steps"
        minutes = self.config.max_minutes
        return "minutes" if minutes and time.monotonic() - self.began > 60 * minutes else None

    def _on_signal(self, number: int, frame: Any) -> None:
        """First signal: finish the update in hand, save, leave. Second: leave at once."""
        del frame
        if self.signal:
            raise SystemExit(128 + number)
        self.signal = signal.Signals(number).name
        self.logger.say(f"{self.signal}: saving, then leaving; once more leaves at once")

    def _introduce(self) -> None:
        """Say what is about to be trained."""
        counts = count_parameters(self.state.params)
        parts = ", ".join(f"{name} {count:,}" for name, count in counts.items() if name != "total")
        self.logger.say(f"{counts['total']:,} parameters: {parts}")
        size = Replay.nbytes_needed(
            self.config.replay.capacity, self.config.envs.count, self.env.spec.image_shape
        )
        self.logger.say(
            f"replay of {self.config.replay.capacity:,} records, {size / 1e9:.2f} GB when full"
        )


_SIGNALS = (signal.SIGTERM, signal.SIGINT)
