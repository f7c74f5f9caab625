"""The pictures a run draws of itself: what it saw, what it made of it, what it dreamt instead.

What a run tells while it goes: how it begins, metrics, episodes, pictures.

A log that cannot be written, as on a full disk, is a warning: the run goes on without it.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import jax
import numpy as np

from emerald_jax.agent.state import Learner, TrainState, count_parameters, init_carry
from emerald_jax.config import Config
from emerald_jax.envs.base import EnvSpec, VectorStep
from emerald_jax.replay import Replay, ReplayError, WindowSampler
from emerald_jax.run.log import RunLogger
from emerald_jax.run.pictures import report_strip, side_by_side
from emerald_jax.training.devices import PICTURE_SEQUENCES, Programs, picture_length, put_index
from emerald_jax.types import Batch, Key

#: What frames after an episode's end are painted with, in every row.
BLANK = 230
#: Windows drawn for a picture; those that stay longest within one episode are shown.
CANDIDATES = 32


class Drawing(NamedTuple):
    """One look at what a model makes of recorded sequences.

    Attributes:
        strip: `[height, width, 3]` uint8, all of it in one picture.
        frames: `[T, height, width, 3]` uint8, the same as a film.
    """

    strip: np.ndarray
    frames: np.ndarray


class PictureMaker:
    """Draws open-loop predictions on sequences from the replay, by random numbers of its own."""

    def __init__(self, learner: Learner, programs: Programs, replay: Replay, key: Key) -> None:
        """Prepare.

        Args:
            learner: networks and settings.
            programs: compiled programs.
            replay: where sequences come from.
            key: base key of the dreams.
        """
        self.learner, self.programs, self.replay, self.key = learner, programs, replay, key
        self.length, self.context = picture_length(learner.config)
        self.rows = min(PICTURE_SEQUENCES, learner.config.replay.batch)
        self.carry = init_carry(learner, self.rows)

    def draw(self, params: Any, update: int) -> Drawing | None:
        """A picture and a film of a few sequences; None while the replay holds too little.

        Args:
            params: the trained parameters.
            update: number of updates so far; decides windows and dreams.

        Returns:
            :class:`Drawing`.
        """
        sampler = WindowSampler(self.replay, CANDIDATES, self.length, update)
        try:
            batch = sampler.sample()
        except ReplayError:
            return None
        inside = np.array([_steps_inside(row) for row in batch.reset])
        best = np.argsort(-inside, kind="stable")[: self.rows]
        chosen = Batch(*(x[best] for x in batch[:-1]))
        on_device = jax.device_put(chosen)._replace(carry=self.carry)
        seen = self.programs.picture(params, on_device, self.key, put_index(update))
        recon, dream = (
            np.round(255 * np.asarray(jax.device_get(x))).astype(np.uint8)
            for x in (seen.recon, seen.dream)
        )
        real = chosen.image.copy()
        for row, steps in enumerate(inside[best]):
            for frames in (real, recon, dream):
                frames[row, steps:] = BLANK
        longest = max(int(inside[best].max()), self.context + 1)
        shown = [x[:, :longest] for x in (real, recon, dream)]
        return Drawing(report_strip(*shown, self.context), side_by_side(*shown, self.context))

    def blank_batch(self) -> Batch:
        """A training batch of zeros, the shape of one that is saved in a checkpoint."""
        config = self.learner.config.replay
        shape = (config.batch, config.length)
        flag = np.zeros(shape, np.bool_)
        return Batch(
            image=np.zeros((*shape, *self.replay.image_shape), np.uint8),
            action=np.zeros(shape, np.int32),
            reward=np.zeros(shape, np.float32),
            is_first=flag,
            is_last=flag,
            is_terminal=flag,
            reset=flag,
        )


def _steps_inside(reset: np.ndarray) -> int:
    """Frames of a window before it leaves the episode it began in."""
    borders = np.flatnonzero(reset[1:])
    return int(borders[0]) + 1 if borders.size else len(reset)


_log = logging.getLogger(__name__)

#: What the loop spends its time on: waiting for environments, waiting for the device (which steps
#: them meanwhile, where they live there), and copying batches out of the replay; the rest is ours.
PARTS = ("env_wait", "device_wait", "replay")
#: Newest records of real play that a row of metrics tells of.
RECENT_RECORDS = 2000


class Narrator:
    """Turns what the loop does into rows, pictures and sentences."""

    def __init__(self, logger: RunLogger, config: Config, replay: Replay) -> None:
        """Prepare.

        Args:
            logger: open log of the run.
            config: all settings.
            replay: the run's store.
        """
        self.say, self.progress = logger.say, logger.progress
        self._logger, self._config, self._replay = logger, config, replay
        self._spent = dict.fromkeys(PARTS, 0.0)
        self._mark = (time.monotonic(), 0, 0)

    def introduce(self, devices: list[jax.Device]) -> None:
        """Say what is about to be done, and on what."""
        config = self._config
        self.say(
            f"run {self._logger.logdir}: {config.env}, {config.steps:,} steps, "
            f"{len(devices)} x {devices[0].device_kind}"
        )

    def introduce_sizes(self, state: TrainState, spec: EnvSpec) -> None:
        """Say how large the networks and the replay are."""
        counts = count_parameters(state.params)
        parts = ", ".join(f"{name} {count:,}" for name, count in counts.items() if name != "total")
        self.say(f"{counts['total']:,} parameters: {parts}")
        capacity, count = self._config.replay.capacity, self._config.envs.count
        size = Replay.nbytes_needed(capacity, count, spec.image_shape)
        self.say(f"replay of {capacity:,} records, {size / 1e9:.2f} GB when full")

    def begin(self, env_steps: int, updates: int) -> None:
        """The loop begins now: rates are counted from here."""
        self._mark = (time.monotonic(), updates, env_steps)
        self._spent = dict.fromkeys(PARTS, 0.0)

    @contextmanager
    def timed(self, part: str) -> Iterator[None]:
        """Count the time of a block as one of :data:`PARTS`."""
        began = time.monotonic()
        yield
        self._spent[part] += time.monotonic() - began

    def metrics(
        self,
        env_steps: int,
        updates: int,
        metrics: dict[str, Any],
        skipped: jax.Array,
        spec: EnvSpec,
    ) -> None:
        """One row of metrics; waits for the update in flight.

        Args:
            env_steps: so far.
            updates: so far.
            metrics: of the last update, on the device.
            skipped: `[]` updates skipped so far.
            spec: of the environment; names its actions.
        """
        now, (then, before, steps), spent = time.monotonic(), self._mark, self._spent
        # The wait that follows belongs to the next row, as do all seconds after ``now``.
        self._mark, self._spent = (now, updates, env_steps), dict.fromkeys(PARTS, 0.0)
        with self.timed("device_wait"):
            values = {name: float(x) for name, x in jax.device_get(metrics).items()}
        seconds = max(now - then, 1e-9)
        values |= {
            "speed/updates_per_s": (updates - before) / seconds,
            "speed/env_steps_per_s": (env_steps - steps) / seconds,
            **{f"speed/{part}_share": part_s / seconds for part, part_s in spent.items()},
            "replay/records": float(len(self._replay)),
            "train/updates": float(updates),
            "train/skipped": float(jax.device_get(skipped)),
            **real_play(self._replay, spec),
        }
        self.numbers(env_steps, values)

    def numbers(self, env_steps: int, values: dict[str, float]) -> None:
        """One row of numbers."""
        with self._although_disk_is_full():
            self._logger.scalars(env_steps, values)

    def episodes(self, env_steps: int, record: VectorStep) -> None:
        """One row per episode that ended with ``record``."""
        for episode in record.episodes:
            facts = {"score": episode.score, "length": episode.length, "env": episode.env}
            with self._although_disk_is_full():
                self._logger.episode(
                    env_steps, {**facts, "terminal": episode.terminal, **episode.extra}
                )

    def picture(self, env_steps: int, drawn: Drawing | None) -> None:
        """A picture and a film of dreams, if there is one."""
        if drawn is not None:
            with self._although_disk_is_full():
                self._logger.image(env_steps, "dream", drawn.strip)
                self._logger.animation(env_steps, "dream_animated", drawn.frames)

    @contextmanager
    def _although_disk_is_full(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            _log.warning(
                "%s cannot be written to (%s): going on", self._logger.logdir, error.strerror
            )


def real_play(replay: Replay, spec: EnvSpec) -> dict[str, float]:
    """What the newest records of real play were like, to be held against what is imagined.

    Read off the replay, so that a run that was interrupted tells the same as one that was not.

    Args:
        replay: the run's store.
        spec: of the environment.

    Returns:
        ``play/reward``, the mean reward of a step, and ``actions/NAME``, the share of every action;
        nothing while there is no step.
    """
    start, stop = (replay.spans() or [(0, 0)])[-1]
    start = max(start, stop - max(1, RECENT_RECORDS // replay.num_envs))
    index = np.arange(start, stop) % replay.rows
    action, reward = (replay.columns[name][index] for name in ("action", "reward"))
    stepped = ~replay.columns["is_first"][index]
    if not stepped.any():
        return {}
    counts = np.bincount(action[stepped], minlength=spec.num_actions)
    names = spec.action_names or [str(i) for i in range(spec.num_actions)]
    shares = zip(names, counts / counts.sum(), strict=True)
    return {
        "play/reward": float(reward[stepped].mean()),
        **{f"actions/{name}": float(share) for name, share in shares},
    }
