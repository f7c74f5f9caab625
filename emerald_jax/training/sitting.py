"""Around the hot loop: building a run's parts, continuing from a checkpoint, writing the next one.

``loop.py`` steps; this file sets up, and knows what of a run decides its future.
"""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path
from typing import Any, Self

import jax
import numpy as np

from emerald_jax.config import Config
from emerald_jax.envs.base import VectorStep
from emerald_jax.envs.registry import make_vector_env
from emerald_jax.logs.logger import RunLogger
from emerald_jax.replay import Replay, make_sampler
from emerald_jax.saving.continuing import PACE, compare_settings, refuse_other_data
from emerald_jax.saving.durable import CheckpointError
from emerald_jax.saving.rundir import write_config
from emerald_jax.saving.snapshots import Snapshots
from emerald_jax.training.faults import check_updates
from emerald_jax.training.narrator import Narrator
from emerald_jax.training.parallel import (
    join,
    place_shares,
    place_state,
    put_batch,
    split,
)
from emerald_jax.training.picture import PictureMaker
from emerald_jax.training.program import build_programs
from emerald_jax.training.schedule import Pace, SaveClock
from emerald_jax.training.signals import StopSignals
from emerald_jax.training.state import (
    TrainState,
    build_learner,
    init_carry,
    init_state,
)
from emerald_jax.training.weights import start_from
from emerald_jax.types import Params


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
        self.snapshots: Snapshots | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        for part in (self.env, self.snapshots):
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
        self.snapshots = Snapshots(self.logdir, config.log.keep)
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
        facts = {
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
            begun = self.snapshots.save(self.updates, self._tree(), facts, self.replay)
        if not begun:
            self.clock.ended(False)
        return begun

    def begin(self) -> VectorStep:
        """The first records: those of the newest sound checkpoint, or first frames."""
        first = self.env.reset()
        if self.snapshots.steps():
            restored = self.snapshots.restore(self._tree(), self.replay)
            self._take_over(restored.tree, restored.facts)
            if restored.tree["env"]:
                return self.env.set_state(jax.tree.map(np.asarray, restored.tree["env"]))
        else:
            if self.beginning is not None:
                self.state = start_from(self.state, self.beginning)
                self.narrator.say(f"starts from the weights of {self.config.init_from}")
            self._rewind_log()
        self.remember(first)
        return first

    def _take_over(self, tree: dict[str, Any], facts: dict[str, Any]) -> None:
        """Continue from a checkpoint's arrays and counters, with our settings where they differ."""
        before = Config.from_dict(facts["config"])
        differences = compare_settings(before, self.config)
        refuse_other_data(self.logdir, differences)
        self.state, self.acting = tree["state"], tree["acting"]
        self.carry = tree["carry"]
        for name in ("env_steps", "updates", "vector_steps"):
            setattr(self, name, facts[name])
        self.sampler.load_state_dict(facts["sampler"])
        self.random.bit_generator.state = facts["random"]
        if facts["pending"]:
            self.stage(jax.tree.map(np.asarray, tree["pending"]))
        if any(difference.name in PACE for difference in differences):
            self.pace.restart(self.env_steps, self.updates)
        else:
            self.pace.point = tuple(facts.get("paced_from", self.pace.point))
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
        self.snapshots.advance(self.replay)
        self.narrator.episodes(self.env_steps, record)
