"""Memory of a run's process over twenty thousand updates after its replay is full: is it flat?

The slope is that of a line through the means of successive stretches, which are nearly independent;
its 95 % interval comes from their scatter about the line.

Command: python -m benchmarks.rss                     (minutes on one CPU core)
Result:  benchmarks/results/rss.json
"""

from __future__ import annotations

import math
import subprocess
import tempfile
import time
from pathlib import Path

import numpy as np
import psutil

from benchmarks.suite.harness import run_script, start_small_run
from emerald_jax.run.directory import read_rows

#: Two-sided 95 % point of Student's t at 18 degrees of freedom.
T_95 = 2.1
STRETCHES = 20
CAPACITY = 800
#: 4 x 8 records per update, 128 replayed records per step: 4 updates per step.
SETTINGS = {"train-ratio": 128, "replay.capacity": CAPACITY, "model.context": 2}
SETTINGS |= {"log.every": 200, "log.pictures": 5000, "log.checkpoint-minutes": 1}


def watch(process: subprocess.Popen, run: Path, updates: int) -> list[tuple[int, float]]:
    """(updates, MiB) twice a second, from a full replay until ``updates`` later."""
    memory, samples, first = psutil.Process(process.pid), [], None
    while process.poll() is None:
        time.sleep(0.5)
        row = (read_rows(run / "metrics.jsonl") or [{}])[-1]
        full = row.get("replay/records", 0) >= CAPACITY and row["train/updates"] >= 1000
        if first is None and full:  # after 1000 updates all one-time allocations have been made
            first = row["train/updates"]
        if first is not None and row:
            samples.append((int(row["train/updates"]), memory.memory_info().rss / 2**20))
            if row["train/updates"] >= first + updates:
                return samples
    raise SystemExit(f"the run ended by itself with exit code {process.returncode}")


def slope(samples: list[tuple[int, float]]) -> tuple[float, float]:
    """MiB per thousand updates, and half the width of its 95 % interval."""
    x, y = np.array(samples, float).T
    parts = np.array_split(np.arange(len(x)), STRETCHES)
    x, y = (np.array([column[part].mean() for part in parts]) for column in (x / 1000, y))
    (found, _), covariance = np.polyfit(x, y, 1, cov=True)
    return float(found), T_95 * math.sqrt(covariance[0, 0])


def measure(updates: int = 20_000) -> dict:
    """Train and watch the memory over ``updates`` once the replay is full."""
    with tempfile.TemporaryDirectory() as folder:
        run, began = Path(folder) / "run", time.monotonic()
        with (Path(folder) / "log.txt").open("w") as log:
            process = start_small_run(run, SETTINGS, stdout=subprocess.DEVNULL, stderr=log)
        try:
            samples = watch(process, run, updates)
        finally:
            process.terminate()
            code = process.wait()
        seconds = time.monotonic() - began
    (found, half), values = slope(samples), [round(mib, 1) for _, mib in samples]
    return {
        "updates": samples[-1][0] - samples[0][0],
        "seconds": round(seconds, 1),
        "exit_code_after_sigterm": code,
        "mib_at_first": values[0],
        "mib_at_last": values[-1],
        "mib_range": [min(values), max(values)],
        "slope_mib_per_1000_updates": round(found, 4),
        "slope_95_percent": [round(found - half, 4), round(found + half, 4)],
        "samples": [[u, round(mib, 2)] for u, mib in samples[:: max(1, len(samples) // 200)]],
    }


if __name__ == "__main__":
    run_script(measure, "rss", long="samples")
