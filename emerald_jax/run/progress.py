"""Progress of a run: a live bar on a terminal, one line every ten seconds elsewhere."""

from __future__ import annotations

import math
import sys
import time
from collections import deque
from collections.abc import Callable
from typing import NamedTuple

import psutil
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from emerald_jax.process import SafeStream

#: Rates are averages over this many seconds.
RATE_WINDOW_S = 20.0
#: Seconds between two samples, and between two changes of the bar.
SAMPLE_EVERY_S = 0.25
#: Seconds between two lines when the output is not a terminal.
PLAIN_LINE_EVERY_S = 10.0


class _Sample(NamedTuple):
    time: float
    step: int
    updates: int


class ProgressView:
    """Shows progress on standard error and results on standard output.

    It computes rates, time left and memory from steps, updates and the clock.
    """

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

        Args:
            total_steps: environment steps at which the run ends.
            max_seconds: wall seconds after which the run ends; 0 is no limit.
            quiet: show results only.
            clock: seconds from some fixed point.
            console: for progress and narration; standard error when None.
        """
        self._total = total_steps
        self._quiet = quiet
        self._clock = clock
        self._console = console or Console(
            file=SafeStream(sys.stderr), highlight=False, soft_wrap=True
        )
        self._deadline = clock() + max_seconds if max_seconds > 0 else math.inf
        self._samples: deque[_Sample] = deque()
        self._newest = (_Sample(clock(), 0, 0), math.nan)
        self._last_line = -math.inf
        self._process = psutil.Process()
        self._bar: Progress | None = None

    def update(self, step: int, updates: int, score: float) -> None:
        """Record the progress, and show it if enough time has passed.

        Args:
            step: environment steps so far.
            updates: gradient updates so far.
            score: mean return of recent episodes; NaN when there is none.
        """
        now = self._clock()
        self._newest = (_Sample(now, step, updates), score)
        if self._quiet or (self._samples and now - self._samples[-1].time < SAMPLE_EVERY_S):
            return
        self._show(*self._newest)

    def say(self, text: str) -> None:
        """Print one line, above the bar if there is one."""
        if not self._quiet:
            # Without markup, so that a path in brackets is not taken for a style.
            self._console.print(text, markup=False)

    def result(self, text: str) -> None:
        """End the bar and print a line on standard output."""
        self.close()
        out = SafeStream(sys.stdout)
        out.write(text + "\n")
        out.flush()

    def close(self) -> None:
        """Draw the bar a last time and release the terminal; safe to call twice."""
        if self._bar is not None:
            self._show(*self._newest)
            self._bar.stop()
            self._bar = None

    def _show(self, sample: _Sample, score: float) -> None:
        now, step, _ = sample
        self._samples.append(sample)
        while now - self._samples[0].time > RATE_WINDOW_S and len(self._samples) > 2:
            self._samples.popleft()
        if self._console.is_terminal:
            self._draw(step, score)
        elif now - self._last_line >= PLAIN_LINE_EVERY_S:
            self._last_line = now
            share = 100 * step / self._total
            self.say(
                f"{step:,} / {self._total:,} steps ({share:.0f} %)  "
                + "  ".join(self._parts(score))
            )

    def _draw(self, step: int, score: float) -> None:
        if self._bar is None:
            self._bar = Progress(
                TextColumn("{task.completed:>,.0f} / {task.total:,.0f}"),
                BarColumn(bar_width=None),
                TextColumn("{task.percentage:.0f} %"),
                TextColumn("{task.fields[parts]}", markup=False),
                console=self._console,
                refresh_per_second=4,
                expand=True,
            )
            self._bar.add_task("", total=self._total, parts="")
            self._bar.start()
        parts = "  ".join(self._parts(score))
        self._bar.update(self._bar.task_ids[0], completed=step, parts=parts)

    def _parts(self, score: float) -> list[str]:
        """Return, updates/s, time left and memory, as far as they are known."""
        first, last = self._samples[0], self._samples[-1]
        seconds = last.time - first.time
        parts = [] if math.isnan(score) else [f"return {score:.2f}"]
        if seconds > 0 and last.updates > first.updates:
            parts.append(f"{(last.updates - first.updates) / seconds:.3g} updates/s")
        left = self._deadline - last.time
        if seconds > 0 and last.step > first.step:
            left = min(left, (self._total - last.step) * seconds / (last.step - first.step))
        if math.isfinite(left):
            parts.append(f"{format_seconds(left)} left")
        parts.append(format_bytes(self._process.memory_info().rss))
        return parts


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
