"""The log of a run: rows of JSON, TensorBoard, pictures, and progress on the terminal.

:class:`RunLogger` is the only object that the training loop writes to. It writes into the run
directory, narrates on standard error (a live bar on a terminal, one line every ten seconds
elsewhere), and prints only the result on standard output. It imports no JAX: values may be JAX
scalars, and the caller decides when to wait for them.
"""

from __future__ import annotations

import json
import logging
import math
import sys
import time
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import Any

import imageio
import numpy as np
import psutil
import tensorboardX
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn
from tensorboardX.proto.summary_pb2 import Summary

from emerald_jax.config import Config
from emerald_jax.process import SafeStream
from emerald_jax.run.directory import (
    EPISODES_FILE,
    METRICS_FILE,
    PICTURES_DIR,
    RESUMES_FILE,
    STATS_FILE,
    TENSORBOARD_DIR,
    JsonLines,
    write_atomic,
)
from emerald_jax.run.evaluations import achievements_of, is_whole_row, stats_rows
from emerald_jax.run.pictures import encode_png

_log = logging.getLogger(__name__)

#: Episodes in the mean return that progress and results show.
RECENT_EPISODES = 100
#: Rates are averages over this many seconds.
RATE_WINDOW_S = 20.0
#: Seconds between two samples, and between two changes of the bar.
SAMPLE_EVERY_S = 0.25
#: Seconds between two lines when the output is not a terminal.
PLAIN_LINE_EVERY_S = 10.0


class RunLogger(AbstractContextManager):
    """The log of one run; a context manager that closes itself. Steps are environment steps.

    Nothing is written before the first row, picture or scalar. ``say`` and ``result`` are those of
    :class:`ProgressView`.
    """

    def __init__(
        self,
        logdir: str | Path,
        config: Config,
        *,
        total_steps: int,
        beside: RunLogger | None = None,
    ) -> None:
        """Open the log of a run of ``total_steps``; uses ``log.quiet`` and ``max_minutes``.

        A run ``beside`` another one, with another seed, speaks on its terminal; the progress shown
        is that of the run with the fewest steps.
        """
        self.logdir = Path(logdir)
        self._config = config
        names = (METRICS_FILE, EPISODES_FILE, STATS_FILE, RESUMES_FILE)
        self._files = [JsonLines(self.logdir / name) for name in names]
        self._metrics, self._episodes, self._stats, self._resumes = self._files
        self._scores: deque[float] = deque(maxlen=RECENT_EPISODES)
        self._left_out = 0
        self._unlocked: set[str] = set()
        self._writer: tensorboardX.SummaryWriter | None = None
        self._purge_step: int | None = None
        limit, quiet = 60 * config.max_minutes, config.log.quiet
        self._view = ProgressView(total_steps, max_seconds=limit, quiet=quiet)
        self.say, self.result = self._view.say, self._view.result
        #: Newest progress of all runs on this terminal that have not ended, by seed.
        self._running: dict[int, tuple[int, int, float]] = {}
        if beside:
            self._view, self._running = beside._view, beside._running
            self.say = lambda text: beside.say(f"seed {config.seed}: {text}")

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def mean_score(self) -> float:
        """Mean return of the last 100 finished episodes; NaN before the first."""
        return float(np.mean(self._scores)) if self._scores else math.nan

    def rewind(self, step: int) -> None:
        """Drop everything logged after ``step``, to resume from a checkpoint of that step.

        Call it first. Later rows and pictures are deleted, and TensorBoard hides later points.
        stats.jsonl, whose format has no step, is rewritten from the remaining episodes.
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
        """Log one row of numbers to metrics.jsonl (NaN and infinity are null) and TensorBoard.

        Names stand in groups, such as ``loss/image``.
        """
        numbers = {name: float(value) for name, value in values.items()}
        self._metrics.append({"step": int(step), "time": _now(), **numbers})
        for name, value in numbers.items():
            if math.isfinite(value):
                self._tensorboard().add_scalar(name, value, step)

    def episode(self, step: int, record: Mapping[str, Any]) -> None:
        """Log one finished episode to episodes.jsonl, stats.jsonl and TensorBoard.

        ``record`` has JSON values: ``score`` (the return), optionally ``length``, ``fault`` and
        ``achievements`` (name to times unlocked); the last two also inside ``extra``. An episode
        that a fault cut short is in episodes.jsonl only: its return does not count.
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
        """Save a picture, `[height, width, 3]` uint8, to pictures/NAME_STEP.png and TensorBoard.

        A slash in ``name`` becomes a hyphen in the file name. Returns the path. ValueError for
        another shape or type.
        """
        _check_frames("a picture is [height, width, 3]", array)
        path = self.logdir / PICTURES_DIR / f"{name.replace('/', '-')}_{step:09d}.png"
        write_atomic(path, encode_png(array))
        self._tensorboard().add_image(name, array, step, dataformats="HWC")
        return path

    def animation(self, step: int, name: str, frames: np.ndarray) -> None:
        """Add a film, `[T, height, width, 3]` uint8, to the images of TensorBoard."""
        add_animation(self._tensorboard(), name, frames, step)

    def progress(self, step: int, updates: int) -> None:
        """Show the progress; cheap enough to call at every vector step."""
        self._running[self._config.seed] = step, updates, self.mean_score
        self._view.update(*min(list(self._running.values()), key=lambda newest: newest[0]))

    def ended(self) -> None:
        """The run has ended; those beside it may go on."""
        self._running.pop(self._config.seed, None)

    def close(self) -> None:
        """End the progress bar and flush every file; safe to call twice."""
        self._view.close()
        for rows in self._files:
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


class NoLog:
    """The log of a host other than the first: takes everything, writes and shows nothing."""

    mean_score = math.nan

    def __init__(self, logdir: Path) -> None:
        self.logdir = logdir

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *arguments, **options: None


def _now() -> float:
    """Wall time in seconds since 1970, to the millisecond."""
    return round(time.time(), 3)


def open_tensorboard(logdir: str, purge_step: int | None) -> tensorboardX.SummaryWriter:
    """A SummaryWriter that survives a full disk; it hides points from ``purge_step`` on.

    tensorboardX writes in a thread of its own. An error ends that thread, then its queue fills and
    the run blocks at the next scalar. Here an error loses events, but not the thread.
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

    def __getattr__(self, name: str) -> Callable[..., None]:
        return partial(self._try, getattr(self._inner, name))

    def _try(self, method: Callable[..., Any], *arguments: Any) -> None:
        try:
            method(*arguments)
        except (OSError, ValueError) as error:  # ValueError: closed after it failed to flush
            if not self._warned:
                _log.warning("%s cannot be written to (%s): continuing", self._logdir, error)
            self._warned = True


def add_animation(
    writer: tensorboardX.SummaryWriter, name: str, frames: np.ndarray, step: int, fps: float = 4.0
) -> None:
    """Add an endless GIF to the images of a run; ``add_video`` of tensorboardX needs moviepy.

    ``frames`` is `[T, height, width, 3]` uint8, ValueError for others; ``name`` is a tag in a
    group, such as ``dream/animated``.
    """
    _check_frames("an animation is [T, height, width, 3]", frames)
    _, height, width, colours = frames.shape
    image = Summary.Image(height=height, width=width, colorspace=colours)
    image.encoded_image_string = encode_gif(frames, fps)
    writer.file_writer.add_summary(Summary(value=[Summary.Value(tag=name, image=image)]), step)


def _check_frames(rule: str, array: np.ndarray) -> None:
    """ValueError if ``array`` has not as many dimensions as ``rule``, three colours and uint8."""
    if array.ndim != rule.count(",") + 1 or array.shape[-1] != 3 or array.dtype != np.uint8:
        raise ValueError(f"{rule} uint8, not {array.shape} {array.dtype}")


def encode_gif(frames: np.ndarray, fps: float) -> bytes:
    """``frames``, `[T, height, width, 3]` uint8, as the bytes of an endless GIF."""
    return imageio.mimwrite("<bytes>", list(frames), format="GIF", duration=1000 / fps, loop=0)


class ProgressView:
    """Shows progress on standard error and results on standard output."""

    def __init__(
        self,
        total_steps: int,
        *,
        max_seconds: float = 0.0,
        quiet: bool = False,
        clock: Callable[[], float] = time.monotonic,
        console: Console | None = None,
    ) -> None:
        """Nothing is shown before the first call.

        ``max_seconds`` is the run's limit of wall time, 0 for none; ``clock`` returns seconds;
        ``console`` is standard error if None; ``quiet`` shows results only.
        """
        self._quiet, self._clock = quiet, clock
        stream = SafeStream(sys.stderr)
        self._console = console or Console(file=stream, highlight=False, soft_wrap=True)
        self._deadline = clock() + max_seconds if max_seconds > 0 else math.inf
        self._newest = (0, 0, math.nan)
        self._next_sample = self._next_line = -math.inf
        self._process = psutil.Process()
        # Without a terminal it draws nothing, but measures the rates.
        self._bar = Progress(
            TextColumn("{task.completed:>,.0f} / {task.total:,.0f}"),
            BarColumn(bar_width=None),
            TextColumn("{task.percentage:.0f} %"),
            TextColumn("{task.fields[parts]}", markup=False),
            console=self._console,
            get_time=clock,
            speed_estimate_period=RATE_WINDOW_S,
            refresh_per_second=4,
            expand=True,
            disable=not self._console.is_terminal,
        )
        self._steps = self._bar.add_task("", total=total_steps, parts="")
        self._updates = self._bar.add_task("", total=None, visible=False)

    def update(self, step: int, updates: int, score: float) -> None:
        """Record the progress, and show it if enough time has passed.

        ``score`` is the mean return of recent episodes; NaN when there is none.
        """
        self._newest = (step, updates, score)
        if not self._quiet and self._clock() >= self._next_sample:
            self._show()

    def say(self, text: str) -> None:
        """Print one line on standard error, above the bar if there is one, unless ``quiet``."""
        if not self._quiet:
            # Without markup, so that a path in brackets is not taken for a style.
            self._console.print(text, markup=False)

    def result(self, text: str) -> None:
        """End the bar and print a line on standard output, also if ``quiet``."""
        self.close()
        print(text, file=SafeStream(sys.stdout), flush=True)

    def close(self) -> None:
        """Draw the bar a last time and release the terminal; safe to call twice."""
        if self._bar.live.is_started:
            self._show()
            self._bar.stop()

    def _show(self) -> None:
        now, (step, updates, score) = self._clock(), self._newest
        self._next_sample = now + SAMPLE_EVERY_S
        self._bar.update(self._updates, completed=updates)
        self._bar.update(self._steps, completed=step)
        if self._console.is_terminal:
            self._bar.update(self._steps, parts=self._parts(score))
            self._bar.start()
        elif now >= self._next_line:
            self._next_line = now + PLAIN_LINE_EVERY_S
            total = self._bar.tasks[self._steps].total
            share = f"{step:,} / {total:,} steps ({100 * step / total:.0f} %)"
            self.say(f"{share}  {self._parts(score)}")

    def _parts(self, score: float) -> str:
        """Return, updates/s, time left and memory, as far as they are known."""
        steps, updates = (self._bar.tasks[task] for task in (self._steps, self._updates))
        parts = [] if math.isnan(score) else [f"return {score:.2f}"]
        if updates.speed:
            parts.append(f"{updates.speed:.3g} updates/s")
        left = self._deadline - self._clock()
        if steps.time_remaining is not None:
            left = min(left, steps.time_remaining)
        if math.isfinite(left):
            parts.append(f"{format_seconds(left)} left")
        return "  ".join([*parts, format_bytes(self._process.memory_info().rss)])


def format_seconds(seconds: float) -> str:
    """A readable duration: ``0:42``, ``12:05``, ``3:07:10``, ``4 d 03 h``."""
    whole = max(0, round(seconds))
    hours, rest = divmod(whole, 3600)
    if hours >= 48:
        return f"{hours // 24} d {hours % 24:02d} h"
    minutes = f"{rest // 60:02d}:{rest % 60:02d}"
    return f"{hours}:{minutes}" if hours else minutes.removeprefix("0")


def format_bytes(count: int) -> str:
    """A readable number of bytes: ``812 MB``, ``3.4 GB``."""
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"
