"""When the next checkpoint and the next update are due."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

from emerald_jax.config import Config

#: Seconds until the next attempt after a save that failed, for example on a full disk.
RETRY_S = 60.0
#: Share of the interval that the first save is expected to take; later ones are measured.
EXPECTED = 0.1


class SaveClock:
    """Keeps checkpoints on disk at most one interval apart.

    A checkpoint counts from the moment its writing has ended, but its content is as old as the
    start of the writing. So the next one starts earlier by the time that the last one took to
    write, but by half the interval at most, or a slow disk would be written to without pause.
    """

    def __init__(self, interval_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        """The first checkpoint is to be on disk ``interval_s`` seconds from now."""
        self._interval, self._clock = interval_s, clock
        self._took = EXPECTED * interval_s
        self.begun()

    def begun(self) -> None:
        """A save begins now."""
        self._begun = self._clock()
        self._due = self._begun + self._interval - min(self._took, self._interval / 2)

    def ended(self, well: bool) -> None:
        """The last save has ended, successfully or not."""
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
    """Number of updates that ``train_ratio`` requires for the environment steps taken.

    The ratio counts from a point, at first the end of prefill. A run that is resumed with another
    ratio counts from there: updates missing or spared at the old ratio are not made up for.
    """

    def __init__(self, config: Config) -> None:
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
