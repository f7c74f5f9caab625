"""The pictures a run draws of itself: what it saw, what it made of it, what it dreamt instead."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import numpy as np

from emerald_jax.replay import Replay, ReplayError, WindowSampler
from emerald_jax.training.program import (
    PICTURE_SEQUENCES,
    Programs,
    picture_length,
    put_index,
)
from emerald_jax.training.state import Learner, init_carry
from emerald_jax.types import Batch, Key
from emerald_jax.viz.strips import report_strip, side_by_side

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
