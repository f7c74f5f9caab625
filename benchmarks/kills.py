"""Fifty times kill -9 at random moments of a small run: how much work is lost.

Every second kill waits until a checkpoint is being written. Nothing is cleaned up in between.

Command: python -m benchmarks.kills                   (fifteen minutes on one CPU core)
Result:  benchmarks/results/kills.json
"""

from __future__ import annotations

import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks.suite.harness import run_script, start_small_run
from emerald_jax.run.directory import read_rows
from emerald_jax.training.train import INTERRUPTED

#: A resumed run logs the updates from which it continues.
RESUMED = re.compile(r"(?:continue|resum)\w* (?:after|from) [\d,]+ steps and ([\d,]+) updates")


def log_of(run: Path) -> Path:
    """The output of the run's newest process."""
    return run.with_suffix(".txt")


def start(run: Path, interval_s: float) -> subprocess.Popen:
    """Start or resume the run."""
    settings = {"log.every": 1, "log.pictures": 0, "log.eval-episodes": 0}
    settings["log.checkpoint-minutes"] = interval_s / 60
    with log_of(run).open("w") as file:
        return start_small_run(run, settings, stderr=file, stdout=file)


def rows(run: Path) -> dict[int, float]:
    """Updates in the run's metrics -> wall time."""
    return {int(row["train/updates"]): row["time"] for row in read_rows(run / "metrics.jsonl")}


def unfinished(run: Path) -> set[int]:
    """Inodes of checkpoints that are being written, or were when the run was killed."""
    with os.scandir(run / "checkpoints") as entries:
        return {entry.inode() for entry in entries if ".orbax-checkpoint-tmp" in entry.name}


def resumed(run: Path) -> int | None:
    """Updates from which a process resumed; None when it was killed before."""
    found = RESUMED.search(log_of(run).read_text())
    return int(found[1].replace(",", "")) if found else None


def kill_once(run: Path, wait_s: float, aim: bool, interval_s: float) -> dict:
    """Start, wait, kill; with ``aim``, wait further until a checkpoint is being written."""
    began, before = time.monotonic(), unfinished(run)
    process = start(run, interval_s)
    time.sleep(wait_s)
    deadline = time.monotonic() + 20 + 3 * interval_s
    while aim and unfinished(run) <= before and time.monotonic() < deadline:
        time.sleep(0.002)
    process.kill()
    code = process.wait()
    return {
        "alive_s": round(time.monotonic() - began, 2),
        "exit_code": code,
        "mid_save": not unfinished(run) <= before,
        "continued_from": resumed(run),
    }


def lost_since(reached: dict[int, float], point: int) -> dict:
    """Updates and seconds of training between a point and the last update in the metrics."""
    if not reached:
        return {"lost_updates": 0, "lost_s": 0.0}
    # Begin at the update after the point: the point's own row may come from an earlier process, and
    # the time between the two was a start, not work.
    begin = reached.get(point + 1, min(reached.values()))
    last = max(reached)
    return {"lost_updates": last - point, "lost_s": round(reached[last] - begin, 2)}


def kill_often(run: Path, kills: int, interval_s: float, startup_s: float) -> list[dict]:
    """One row per kill; a loss is in the row of the process that resumed after it."""
    table, reached, rng = [], {}, random.Random(0)
    for number in range(kills):
        wait = rng.uniform(0, startup_s + 3 * interval_s)
        happened = kill_once(run, wait, number % 2 == 1, interval_s)
        if happened["continued_from"] is not None:
            happened |= lost_since(reached, happened["continued_from"])
        # A process that was killed before it resumed has not changed the metrics.
        reached = rows(run)
        happened["reached"] = max(reached, default=0)
        table.append({"kill": number + 1, **happened})
        print(" ".join(f"{key} {value}" for key, value in table[-1].items()), flush=True)
    return table


def run_until(
    ready: Callable[[], object], run: Path, interval_s: float, then_s: float = 0
) -> tuple[float, int]:
    """Start and, ``then_s`` after ``ready()``, stop by SIGTERM; seconds until then, exit code."""
    began = time.monotonic()
    process = start(run, interval_s)
    while not ready() and process.poll() is None:
        time.sleep(0.05)
    seconds = time.monotonic() - began
    time.sleep(then_s)
    process.send_signal(signal.SIGTERM)
    return seconds, process.wait()


def warm_up(run: Path, interval_s: float) -> float:
    """Seconds of a start; the second, as the first compiles longer than any process here lives."""
    for _ in range(2):
        before = len(rows(run))
        seconds, code = run_until(lambda n=before: len(rows(run)) > n, run, interval_s)
        if code != INTERRUPTED:
            raise SystemExit(f"the run ended by itself: {log_of(run).read_text()}")
    return seconds


def last_process(run: Path, interval_s: float) -> dict:
    """Resume once more, stop by SIGTERM, and check every checkpoint."""
    restart, code = run_until(lambda: resumed(run) is not None, run, interval_s, then_s=1)
    command = [sys.executable, "-m", "emerald_jax", "checkpoints", str(run)]
    health = subprocess.run(command, capture_output=True, text=True)
    print(health.stdout)
    return {
        "restart_s": round(restart, 1),
        "exit_code_after_sigterm": code,
        "checkpoints_sound": health.returncode == 0,
        "left_over": sorted(p.name for p in run.rglob("*tmp*")),
        "replay_files": len(list((run / "replay").glob("*.npz"))),
    }


def measure(kills: int = 50, interval: float = 3.0) -> dict:
    """Kill a run ``kills`` times, with ``interval`` seconds between checkpoints."""
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        startup = warm_up(run, interval)
        table = kill_often(run, kills, interval, startup)
        end = last_process(run, interval)
    return {
        "kills": len(table),
        "killed_by_us": sum(row["exit_code"] == -signal.SIGKILL for row in table),
        "mid_save": sum(row["mid_save"] for row in table),
        "before_it_went_on": sum(row["continued_from"] is None for row in table),
        "interval_s": interval,
        "startup_s": round(startup, 1),
        "most_lost_s": max((row.get("lost_s", 0.0) for row in table), default=0.0),
        "most_lost_updates": max((row.get("lost_updates", 0) for row in table), default=0),
        **end,
        "table": table,
    }


if __name__ == "__main__":
    run_script(measure, "kills", long="table")
