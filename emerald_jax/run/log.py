"""The log of a run: rows of JSON, TensorBoard, pictures, and lines on the terminal.

:class:`RunLogger` is the only object that the training loop writes to. It writes into the run
directory, narrates on standard error, and prints only the result on standard output. It imports no
JAX: values may be JAX scalars, and the caller decides when to wait for them.
"""

from __future__ import annotations

import io
import json
import logging
import math
import time
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Self

import imageio
import numpy as np
import tensorboardX
from tensorboardX.proto.summary_pb2 import Summary

from emerald_jax.config import Config
from emerald_jax.run.directory import (
    EPISODES_FILE,
    METRICS_FILE,
    PICTURES_DIR,
    RESUMES_FILE,
    STATS_FILE,
    TENSORBOARD_DIR,
    JsonLines,
)
from emerald_jax.run.evaluations import achievements_of, is_whole_row, stats_rows
from emerald_jax.run.files import write_atomic
from emerald_jax.run.pictures import encode_png
from emerald_jax.run.progress import ProgressView

_log = logging.getLogger(__name__)

#: Episodes in the mean return that progress and results show.
RECENT_EPISODES = 100


class RunLogger:
    """The log of one run; a context manager that closes itself.

    Nothing is written before the first row, picture or scalar. Steps are environment steps.

    Attributes:
        logdir: the run directory.
    """

    def __init__(
        self,
        logdir: str | Path,
        config: Config,
        *,
        total_steps: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Open the log.

        Args:
            logdir: the run directory; made at the first write.
            config: the run's settings; ``log.quiet`` and ``max_minutes`` are used here.
            total_steps: environment steps at which the run ends.
            clock: seconds from some fixed point.
        """
        self.logdir = Path(logdir)
        self._config = config
        self._metrics = JsonLines(self.logdir / METRICS_FILE)
        self._episodes = JsonLines(self.logdir / EPISODES_FILE)
        self._stats = JsonLines(self.logdir / STATS_FILE)
        self._resumes = JsonLines(self.logdir / RESUMES_FILE)
        self._scores: deque[float] = deque(maxlen=RECENT_EPISODES)
        self._left_out = 0
        self._unlocked: set[str] = set()
        self._writer: tensorboardX.SummaryWriter | None = None
        self._purge_step: int | None = None
        self._view = ProgressView(
            total_steps,
            max_seconds=60 * config.max_minutes,
            quiet=config.log.quiet,
            clock=clock,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    @property
    def mean_score(self) -> float:
        """Mean return of the last 100 finished episodes; NaN before the first."""
        return float(np.mean(self._scores)) if self._scores else math.nan

    def rewind(self, step: int) -> None:
        """Drop everything logged after ``step``, to resume from a checkpoint of that step.

        Call it before anything is logged. Later rows of metrics.jsonl and episodes.jsonl and later
        pictures are deleted, and TensorBoard hides later points. stats.jsonl, whose format has no
        step, is rewritten from the remaining episodes.
        """
        self._metrics.rewind(step)
        self._scores.clear()
        kept = self._episodes.rewind(step)
        self._left_out = sum(not is_whole_row(row) for row in kept)
        for row in kept:
            self._remember(row)
        if kept or self._stats.path.exists():
            self._stats.replace(stats_rows(kept))
        self._resumes.rewind(step)
        if step > 0:
            self._resumes.append({"step": int(step), "time": _now()})
        for path in self.logdir.glob(f"{PICTURES_DIR}/*_*.png"):
            suffix = path.stem.rpartition("_")[2]
            if suffix.isdigit() and int(suffix) > step:
                path.unlink()
        self._close_writer()
        self._purge_step = step + 1

    def scalars(self, step: int, values: Mapping[str, Any]) -> None:
        """Log one row of numbers to metrics.jsonl and TensorBoard.

        Args:
            step: environment steps so far.
            values: names in groups, such as ``loss/image``, to numbers. NaN and infinity are null
                in the row and left out of TensorBoard.
        """
        numbers = {name: float(value) for name, value in values.items()}
        self._metrics.append({"step": int(step), "time": _now(), **numbers})
        for name, value in numbers.items():
            if math.isfinite(value):
                self._tensorboard().add_scalar(name, value, step)

    def episode(self, step: int, record: Mapping[str, Any]) -> None:
        """Log one finished episode to episodes.jsonl, stats.jsonl and TensorBoard.

        One that a fault cut short is in episodes.jsonl only: its return does not count.

        Args:
            step: environment steps so far.
            record: JSON values: ``score`` (the return), optionally ``length``, ``fault`` and
                ``achievements`` (name to times unlocked); the last two also inside ``extra``.
        """
        self._episodes.append({"step": int(step), "time": _now(), **record})
        if not is_whole_row(record):
            self._left_out += 1
            self.say(f"a fault cut an episode short: it does not count ({self._left_out} so far)")
            return
        for row in stats_rows([record]):
            self._stats.append(row)
        self._tensorboard().add_scalar("episode/score", float(record["score"]), step)
        if "length" in record:
            self._tensorboard().add_scalar("episode/length", float(record["length"]), step)
        for name in self._remember(record):
            self.say(f"first {name.replace('_', ' ')} after {step:,} steps")

    def image(self, step: int, name: str, array: np.ndarray) -> Path:
        """Save a picture to pictures/NAME_STEP.png and TensorBoard.

        Args:
            step: environment steps so far.
            name: its title; a slash becomes a hyphen in the file name.
            array: `[height, width, 3]` uint8.

        Returns:
            The path of the picture.

        Raises:
            ValueError: when ``array`` has another shape or type.
        """
        array = np.asarray(array)
        if array.ndim != 3 or array.shape[-1] != 3 or array.dtype != np.uint8:
            raise ValueError(
                f"a picture is [height, width, 3] uint8, not {array.shape} {array.dtype}"
            )
        path = self.logdir / PICTURES_DIR / f"{name.replace('/', '-')}_{step:09d}.png"
        write_atomic(path, encode_png(array))
        self._tensorboard().add_image(name, array, step, dataformats="HWC")
        return path

    def animation(self, step: int, name: str, frames: np.ndarray) -> None:
        """Add a film, `[T, height, width, 3]` uint8, to the images of TensorBoard."""
        add_animation(self._tensorboard(), name, frames, step)

    def progress(self, step: int, updates: int) -> None:
        """Show the progress; cheap enough to call at every vector step.

        Args:
            step: environment steps so far.
            updates: gradient updates so far.
        """
        self._view.update(step, updates, self.mean_score)

    def say(self, text: str) -> None:
        """Print one line on standard error, unless ``log.quiet`` is set."""
        self._view.say(text)

    def result(self, text: str) -> None:
        """Print a result on standard output, also if ``log.quiet`` is set."""
        self._view.result(text)

    def close(self) -> None:
        """End the progress bar and flush every file; safe to call twice."""
        self._view.close()
        for rows in (self._metrics, self._episodes, self._stats, self._resumes):
            rows.close()
        self._close_writer()

    def _remember(self, record: Mapping[str, Any]) -> list[str]:
        """Add an episode to the mean return; returns the achievements it is the first to unlock."""
        if isinstance(record.get("score"), int | float) and is_whole_row(record):
            self._scores.append(float(record["score"]))
        achievements = achievements_of(record)
        new = [k for k, times in achievements.items() if times and k not in self._unlocked]
        self._unlocked.update(new)
        return new

    def _tensorboard(self) -> tensorboardX.SummaryWriter:
        if self._writer is None:
            self._writer = open_tensorboard(str(self.logdir / TENSORBOARD_DIR), self._purge_step)
            # Hyper-parameters, once; Markdown shows an indented block verbatim.
            text = json.dumps(self._config.to_dict(), indent=2)
            self._writer.add_text("config", "    " + text.replace("\n", "\n    "), 0)
        return self._writer

    def _close_writer(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None


def _now() -> float:
    """Wall time in seconds since 1970, to the millisecond."""
    return round(time.time(), 3)


def open_tensorboard(logdir: str, purge_step: int | None) -> tensorboardX.SummaryWriter:
    """A SummaryWriter that survives a full disk.

    tensorboardX writes in a thread of its own. An error ends that thread, then its queue fills and
    the run blocks at the next scalar. Here an error loses events, but not the thread.

    Args:
        logdir: directory of its files.
        purge_step: points from here on are hidden, as after a resume.

    Raises:
        OSError: if no file can be opened.
    """
    writer = tensorboardX.SummaryWriter(logdir, purge_step=purge_step, flush_secs=10)
    events = writer.file_writer.event_writer
    forgiving = _Forgiving(events._ev_writer, logdir)
    events._ev_writer = events._worker._record_writer = forgiving
    return writer


class _Forgiving:
    """tensorboardX's record writer; its disk errors become one warning."""

    def __init__(self, inner: Any, logdir: str) -> None:
        self._inner, self._logdir, self._warned = inner, logdir, False

    def write_event(self, event: Any) -> None:
        self._try(self._inner.write_event, event)

    def flush(self) -> None:
        self._try(self._inner.flush)

    def close(self) -> None:
        self._try(self._inner.close)

    def _try(self, action: Any, *args: Any) -> None:
        try:
            action(*args)
        except (OSError, ValueError) as error:  # ValueError: closed after it failed to flush
            if not self._warned:
                _log.warning("%s cannot be written to (%s): continuing", self._logdir, error)
            self._warned = True


def add_animation(
    writer: tensorboardX.SummaryWriter, name: str, frames: np.ndarray, step: int, fps: float = 4.0
) -> None:
    """Add an endless GIF to the images of a run; ``add_video`` of tensorboardX needs moviepy.

    Args:
        writer: open writer.
        name: tag, in a group such as ``dream/animated``.
        frames: `[T, height, width, 3]` uint8.
        step: environment steps so far.
        fps: frames a second.

    Raises:
        ValueError: when ``frames`` has another shape or type.
    """
    frames = np.asarray(frames)
    if frames.ndim != 4 or frames.shape[-1] != 3 or frames.dtype != np.uint8:
        raise ValueError(
            f"an animation is [T, height, width, 3] uint8, not {frames.shape} {frames.dtype}"
        )
    image = Summary.Image(
        height=frames.shape[1],
        width=frames.shape[2],
        colorspace=3,
        encoded_image_string=encode_gif(frames, fps),
    )
    writer.file_writer.add_summary(Summary(value=[Summary.Value(tag=name, image=image)]), step)


def encode_gif(frames: np.ndarray, fps: float) -> bytes:
    """``frames``, `[T, height, width, 3]` uint8, as the bytes of an endless GIF."""
    buffer = io.BytesIO()
    with imageio.get_writer(buffer, format="GIF", duration=1000 / fps, loop=0) as writer:
        for frame in frames:
            writer.append_data(frame)
    return buffer.getvalue()
