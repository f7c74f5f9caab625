"""Episodes in the format of Crafter's own recorder: ``stats.jsonl``, one JSON object per line.

A line has ``length``, ``reward`` (the return, rounded to one decimal as Crafter does where there
are achievements) and ``achievement_NAME`` (times unlocked) of one whole episode, in the order in
which they ended; the benchmark's published analysis scripts read it as it is. An episode that a
fault cut short is no whole one and is left out.

TensorBoard's writer, made to outlive a full disk.

tensorboardX writes from a thread of its own. An error ends that thread, and as nobody takes events
out of its queue any more, the run would wait for ever at the next scalar. Here errors end the
events, not the thread: what is lost is drawn nowhere, and metrics.jsonl has every number anyway.

Moving pictures for TensorBoard: a GIF inside an ordinary image summary, which it plays.

tensorboardX' own ``add_video`` needs moviepy; imageio, which writes our films, makes GIFs too.

What a run tells: rows of JSON, TensorBoard, pictures, and a person at a terminal.

:class:`RunLogger` is the one object the loop talks to. It writes into the run directory that
``run/directory.py`` describes, narrates on standard error, and prints only a run's result on
standard output. It imports no JAX: values may be JAX scalars, but the caller decides when to wait
for them.
"""

from __future__ import annotations

import io
import json
import logging
import math
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from io import BytesIO
from pathlib import Path
from typing import Any

import imageio
import numpy as np
import tensorboardX
from PIL import Image
from tensorboardX.proto.summary_pb2 import Summary

from emerald_jax.config import Config
from emerald_jax.run.directory import (
    EPISODES_FILE,
    METRICS_FILE,
    PICTURES_DIR,
    TENSORBOARD_DIR,
    JsonLines,
    read_config,
    write_config,
)
from emerald_jax.run.files import write_atomic
from emerald_jax.run.progress import ProgressView

STATS_FILE = "stats.jsonl"


def is_whole_row(row: Mapping[str, Any]) -> bool:
    """Whether a row of episodes.jsonl is an episode that counts: no fault cut it."""
    return "fault" not in row and "fault" not in row.get("extra", {})


def achievements_of(row: Mapping[str, Any]) -> dict[str, int]:
    """Name -> times unlocked in an episode's row; empty where there are none."""
    return row.get("achievements") or row.get("extra", {}).get("achievements", {})


def stats_row(row: Mapping[str, Any]) -> dict[str, Any]:
    """A line of stats.jsonl.

    Args:
        row: an episode: ``score``, ``length`` and, at its top or inside ``extra``,
            ``achievements``.
    """
    unlocked = achievements_of(row)
    score = float(row["score"])
    return {
        "length": int(row["length"]),
        "reward": round(score, 1) if unlocked else score,
        **{f"achievement_{name}": int(times) for name, times in unlocked.items()},
    }


def stats_rows(rows: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Lines of stats.jsonl for those of ``rows`` that are whole episodes."""
    complete = (row for row in rows if "score" in row and "length" in row)
    return [stats_row(row) for row in complete if is_whole_row(row)]


_log = logging.getLogger(__name__)


def open_tensorboard(logdir: str, purge_step: int | None) -> tensorboardX.SummaryWriter:
    """A SummaryWriter that goes on when the disk is full.

    Args:
        logdir: where its files lie.
        purge_step: points from here on are hidden, as after a resume.

    Raises:
        OSError: if it cannot even begin.
    """
    writer = tensorboardX.SummaryWriter(logdir, purge_step=purge_step, flush_secs=10)
    events = writer.file_writer.event_writer
    forgiving = _Forgiving(events._ev_writer, logdir)
    events._ev_writer = events._worker._record_writer = forgiving
    return writer


class _Forgiving:
    """Passes calls on to tensorboardX's record writer, and its disk errors to the log, once."""

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
                _log.warning("%s cannot be written to (%s): going on", self._logdir, error)
            self._warned = True


def add_animation(
    writer: tensorboardX.SummaryWriter, name: str, frames: np.ndarray, step: int, fps: float = 4.0
) -> None:
    """Add an endless animation to the images of a run.

    Args:
        writer: open writer.
        name: tag, in a group such as ``dream/animated``.
        frames: `[T, height, width, 3]` uint8.
        step: environment steps so far.
        fps: frames a second.

    Raises:
        ValueError: when ``frames`` is no such film.
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


__all__ = ["RunLogger", "read_config", "write_config"]

#: Episodes averaged into the return that progress and results speak of.
RECENT_EPISODES = 100
#: One row per continuation: host environments cannot be saved, so their open episodes end there.
RESUMES_FILE = "resumes.jsonl"


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
            logdir: the run directory; made when it is first written in.
            config: the run's settings; ``log.quiet`` and ``max_minutes`` are heeded here.
            total_steps: environment steps at which the run ends.
            clock: seconds from some fixed point; tests bring their own.
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

    def __enter__(self) -> RunLogger:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    @property
    def mean_score(self) -> float:
        """Mean return of the last 100 finished episodes; NaN before the first."""
        return float(np.mean(self._scores)) if self._scores else math.nan

    def rewind(self, step: int) -> None:
        """Forget what lies after ``step``: the run continues from a checkpoint of that step.

        Call it before anything is logged. Rows of metrics.jsonl and episodes.jsonl whose step is
        later go, pictures of later steps too, and TensorBoard hides later points. stats.jsonl,
        whose format knows no step, is written anew from the episodes that stay.
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

        One that a fault cut short is in episodes.jsonl alone: its return does not count.

        Args:
            step: environment steps so far.
            record: JSON values; ``score`` (the return) must be there, ``length``, ``fault`` and
                ``achievements`` (name to times unlocked; both also inside ``extra``) are
                understood.
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
            name: what it shows; a slash in it becomes a hyphen in the file's name.
            array: `[height, width, 3]` uint8.

        Returns:
            Where the picture lies.

        Raises:
            ValueError: when ``array`` is no such image.
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
        """Show a film, `[T, height, width, 3]` uint8, among TensorBoard's images."""
        add_animation(self._tensorboard(), name, frames, step)

    def progress(self, step: int, updates: int) -> None:
        """Show how far the run is; cheap enough to call at every vector step.

        Args:
            step: environment steps so far.
            updates: gradient updates so far.
        """
        self._view.update(step, updates, self.mean_score)

    def say(self, text: str) -> None:
        """Narrate one line, above the progress bar; silent under ``log.quiet``."""
        self._view.say(text)

    def result(self, text: str) -> None:
        """End the progress bar and print a result on standard output, even under ``log.quiet``."""
        self._view.result(text)

    def close(self) -> None:
        """End the progress bar and flush every file; safe to call twice."""
        self._view.close()
        for rows in (self._metrics, self._episodes, self._stats, self._resumes):
            rows.close()
        self._close_writer()

    def _remember(self, record: Mapping[str, Any]) -> list[str]:
        """Count an episode in; the achievements that no earlier one unlocked."""
        if isinstance(record.get("score"), int | float) and is_whole_row(record):
            self._scores.append(float(record["score"]))
        achievements = achievements_of(record)
        new = [k for k, times in achievements.items() if times and k not in self._unlocked]
        self._unlocked.update(new)
        return new

    def _tensorboard(self) -> tensorboardX.SummaryWriter:
        if self._writer is None:
            self._writer = open_tensorboard(str(self.logdir / TENSORBOARD_DIR), self._purge_step)
            # Hyper-parameters once; Markdown shows an indented block as it is.
            text = json.dumps(self._config.to_dict(), indent=2)
            self._writer.add_text("config", "    " + text.replace("\n", "\n    "), 0)
        return self._writer

    def _close_writer(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None


def encode_png(array: np.ndarray) -> bytes:
    """``array``, `[height, width, 3]` uint8, as the bytes of a PNG file."""
    buffer = BytesIO()
    Image.fromarray(array).save(buffer, format="PNG")
    return buffer.getvalue()


def _now() -> float:
    """Wall time in seconds since 1970, to the millisecond."""
    return round(time.time(), 3)
