"""What a run logs while it trains: start-up lines, metrics, episodes and pictures.

A log that cannot be written, as on a full disk, is a warning: training continues without it.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import jax
import numpy as np

from emerald_jax.agent.state import count_parameters
from emerald_jax.config import Config
from emerald_jax.envs.base import EnvSpec, VectorStep
from emerald_jax.envs.playing import endless_notice
from emerald_jax.replay import Replay, ReplayError, WindowSampler
from emerald_jax.run.evaluations import EvalReport
from emerald_jax.run.log import RunLogger
from emerald_jax.run.pictures import report_strip, side_by_side
from emerald_jax.training.devices import TrainingAgent, picture_shape

_log = logging.getLogger(__name__)

#: Wall time by part: waiting for environments, waiting for the device (which also steps device-side
#: environments), copying batches from the replay. The remainder is host overhead.
PARTS = ("env_wait", "device_wait", "replay")
#: Newest records of real play that a row of metrics summarises.
RECENT_RECORDS = 2000
#: Grey level of frames after an episode's end, in every row of a picture.
BLANK = 230
#: Windows drawn for a picture; those that stay longest within one episode are shown.
CANDIDATES = 32


class Narrator:
    """Turns the loop's events into log rows, pictures and lines on the terminal."""

    def __init__(self, log: RunLogger, config: Config, replay: Replay) -> None:
        self.logdir, self.say, self.progress = log.logdir, log.say, log.progress
        self.rewind = log.rewind
        self._logger, self._config, self._replay = log, config, replay
        # Recorded data are never divided over hosts.
        self._hosts = 1 if config.data else config.envs.count // replay.num_envs
        self.begin(0, 0)

    def introduce(self, agent: TrainingAgent, spec: EnvSpec) -> None:
        """Print what will be trained, on which devices, and the size of networks and replay."""
        config, devices = self._config, agent.devices
        where = f"{len(devices)} x {devices[0].device_kind}"
        where += f" on {self._hosts} hosts" if self._hosts > 1 else ""
        played = f"{config.env}, {config.steps:,} steps"
        recorded = f"{config.data}, {config.total_updates:,} updates"
        self.say(f"run {self.logdir}: {recorded if config.data else played}, {where}")
        counts = count_parameters(agent.shapes().params)
        parts = ", ".join(f"{name} {count:,}" for name, count in counts.items() if name != "total")
        self.say(f"{counts['total']:,} parameters: {parts}")
        if not config.data and (notice := endless_notice(spec)):
            self.say(notice)
        rows, compress = self._replay.rows, config.replay.compress
        # Data fill the replay; without them it may have up to E - 1 records less than its capacity.
        records = rows * self._replay.num_envs if config.data else config.replay.capacity
        size = (records, self._replay.num_envs, spec.image_shape, spec.action_sizes)
        plain = Replay.nbytes_needed(*size)
        text = f"{plain / 1e9:.2f} GB when full"
        if compress:
            expected = Replay.nbytes_needed(*size, compress=True)
            text = f"about {expected / 1e9:.2f} GB when full, compressed ({plain / 1e9:.2f} plain)"
        self.say(f"replay of {records:,} records, {text}")

    def compiled(self, seconds: float, temporaries: int) -> None:
        """Print the compile time in seconds and the working memory of an update in bytes."""
        memory = f"{temporaries / 2**20:,.0f} MiB of working memory"
        self.say(f"compiled in {seconds:.0f} s; an update needs {memory}")

    def begin(self, env_steps: int, updates: int) -> None:
        """Training starts now: rates are counted from here."""
        self._mark = (time.monotonic(), updates, env_steps)
        self._spent = dict.fromkeys(PARTS, 0.0)

    @contextmanager
    def timed(self, part: str) -> Iterator[None]:
        """Count the wall time of a block as one of :data:`PARTS`."""
        began = time.monotonic()
        yield
        self._spent[part] += time.monotonic() - began

    def metrics(self, env_steps: int, updates: int, metrics: dict[str, Any], spec: EnvSpec) -> None:
        """One row of metrics, which are on the device; waits for the update in flight."""
        now, (then, before, steps), spent = time.monotonic(), self._mark, self._spent
        # The wait that follows belongs to the next row, as do all seconds after ``now``.
        self.begin(env_steps, updates)
        self._mark = (now, updates, env_steps)
        with self.timed("device_wait"):
            values = {name: float(x) for name, x in jax.device_get(metrics).items()}
        seconds = max(now - then, 1e-9)
        values |= {
            "speed/updates_per_s": (updates - before) / seconds,
            "speed/env_steps_per_s": (env_steps - steps) / seconds,
            **{f"speed/{part}_share": part_s / seconds for part, part_s in spent.items()},
            "replay/records": float(self._hosts * len(self._replay)),
            **self._compressed(),
            "train/updates": float(updates),
            **real_play(self._replay, spec),
        }
        self._write(self._logger.scalars, env_steps, values)

    def _compressed(self) -> dict[str, float]:
        """The memory of compressed images; empty where they are plain."""
        image = self._replay.columns["image"]
        return {} if isinstance(image, np.ndarray) else {"replay/image_bytes": float(image.nbytes)}

    def evaluation(self, env_steps: int, report: EvalReport) -> None:
        """The row of a run's final evaluation."""
        row = {"return": report.score, "return_error": report.error, "length": report.length}
        row |= {"episodes": len(report.episodes), "crafter_score": report.crafter_score}
        known = {f"eval/{name}": value for name, value in row.items() if value is not None}
        self._write(self._logger.scalars, env_steps, known)

    def episodes(self, env_steps: int, record: VectorStep) -> None:
        """One row per episode that ended with ``record``."""
        for episode in record.episodes:
            row = {name: getattr(episode, name) for name in ("score", "length", "env", "terminal")}
            self._write(self._logger.episode, env_steps, {**row, **episode.extra})

    def picture(self, env_steps: int, agent: TrainingAgent, number: int) -> None:
        """A picture and a film of open-loop dreams, if the replay holds enough."""
        drawn = draw_dreams(agent, self._replay, number)
        if drawn is not None:
            self._write(self._logger.image, env_steps, "dream", drawn[0])
            self._write(self._logger.animation, env_steps, "dream_animated", drawn[1])

    def _write(self, log: Callable[..., Any], *row: Any) -> None:
        try:
            log(*row)
        except OSError as error:
            why = error.strerror
            _log.warning("%s cannot be written to (%s): training continues", self.logdir, why)


def draw_dreams(
    agent: TrainingAgent, replay: Replay, number: int
) -> tuple[np.ndarray, np.ndarray] | None:
    """Real frames, reconstructions and dreams as a picture and as a film.

    Open loops of a few recorded sequences; None while the replay holds too little. ``number``, the
    updates so far, decides windows and dreams. `[height, width, 3]` and `[T, …]`, uint8.
    """
    rows, length, context = picture_shape(agent.learner.config)
    try:
        batch = WindowSampler(replay, CANDIDATES, length, number).sample()
    except ReplayError:
        return None
    inside = np.array([_steps_inside(row) for row in batch.reset])
    best = np.argsort(-inside, kind="stable")[:rows]
    chosen = jax.tree.map(lambda x: x[best], batch)
    seen = agent.picture(chosen, number)
    shown = [chosen.image.copy()]
    shown += [np.round(255 * x).astype(np.uint8) for x in (seen.recon, seen.dream)]
    for row, steps in enumerate(inside[best]):
        for frames in shown:
            frames[row, steps:] = BLANK
    longest = max(int(inside[best].max()), context + 1)
    shown = [x[:, :longest] for x in shown]
    return report_strip(*shown, context), side_by_side(*shown, context)


def _steps_inside(reset: np.ndarray) -> int:
    """Frames of a window before it leaves the episode in which it starts."""
    borders = np.flatnonzero(reset[1:])
    return int(borders[0]) + 1 if borders.size else len(reset)


def real_play(replay: Replay, spec: EnvSpec) -> dict[str, float]:
    """Statistics of the newest records of real play, to compare with imagined ones.

    Computed from the replay, so that resumed and uninterrupted runs log identical values.
    ``play/reward`` is the mean reward of a step, ``actions/NAME`` the share of every action; of a
    vector, the mean (and deviation) of a number, and the share of every class of a category. The
    result is empty while there is no step.
    """
    start, stop = (replay.spans() or [(0, 0)])[-1]
    start = max(start, stop - max(1, RECENT_RECORDS // replay.num_envs))
    index = np.arange(start, stop) % replay.rows
    action, reward = (replay.columns[name][index] for name in ("action", "reward"))
    stepped = ~replay.columns["is_first"][index]
    if not stepped.any():
        return {}
    found = {"play/reward": float(reward[stepped].mean())}
    shares = iter(spec.actions.shares(action[stepped]))
    if spec.actions.discrete:
        names = spec.action_names or [str(i) for i in range(spec.num_actions)]
        named = zip(names, next(shares), strict=True)
        return found | {f"actions/{name}": float(share) for name, share in named}
    names = spec.action_names or [str(i) for i in range(len(spec.action_sizes))]
    for name, size, taken in zip(names, spec.action_sizes, action[stepped].T, strict=True):
        if size:
            found |= {f"actions/{name}/{k}": float(x) for k, x in enumerate(next(shares))}
        else:
            found[f"actions/{name}"] = float(taken.mean())
            found[f"actions/{name}/deviation"] = float(taken.std())
    return found
