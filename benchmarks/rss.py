"""Memory of a run's process over twenty thousand updates after its replay is full: is it flat?

The smallest run that there is trains in a process of its own; its resident memory is read from
outside. The slope is that of a line through the means of successive stretches, which are nearly
independent; its 95 % interval comes from how they scatter about the line.

Command: python benchmarks/rss.py                     (minutes on one CPU core)
Result:  benchmarks/results/rss.json
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import psutil

#: Two-sided 95 % points of Student's t, by degrees of freedom from 18 on.
T_95 = 2.1
STRETCHES = 20


def start(run: Path) -> subprocess.Popen:
    """The smallest run, its replay full after two hundred rows."""
    # 4 x 8 records an update, 128 replayed records a step: four updates a step, 16 a vector step.
    settings = {
        "--logdir": run,
        "--steps": 10**9,
        "--train-ratio": 128,
        "--replay.capacity": 800,
        "--model.blocks": 1,
        "--model.head-layers": 1,
        "--model.context": 2,
        "--behavior.horizon": 1,
        "--behavior.decode-steps": 1,
        "--log.every": 200,
        "--log.pictures": 5000,
        "--log.checkpoint-minutes": 1,
    }
    words = [str(word) for pair in settings.items() for word in pair]
    command = [sys.executable, "-m", "emerald_jax", "train", "tiny", "--quiet", *words]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL)


def last_row(run: Path) -> dict:
    """The newest row of metrics."""
    path = run / "metrics.jsonl"
    lines = path.read_bytes()[-4000:].splitlines() if path.exists() else []
    return json.loads(lines[-1]) if lines and lines[-1].endswith(b"}") else {}


def watch(process: subprocess.Popen, run: Path, updates: int) -> list[tuple[int, float]]:
    """(updates, MiB) twice a second, from a full replay until ``updates`` later."""
    memory, samples, first = psutil.Process(process.pid), [], None
    while process.poll() is None:
        time.sleep(0.5)
        row = last_row(run)
        if first is None and row.get("replay/records", 0) >= 800 and row["train/updates"] >= 1000:
            first = row["train/updates"]  # a thousand updates on, what is kept once is there
        if first is not None:
            samples.append((int(row["train/updates"]), memory.memory_info().rss / 2**20))
            if row["train/updates"] >= first + updates:
                return samples
    raise SystemExit(f"the run ended by itself with exit code {process.returncode}")


def slope(samples: list[tuple[int, float]]) -> tuple[float, float]:
    """MiB per thousand updates, and half the width of its 95 % interval."""
    x, y = (np.array(column, float) for column in zip(*samples, strict=True))
    parts = np.array_split(np.arange(len(x)), STRETCHES)
    x, y = (np.array([column[part].mean() for part in parts]) for column in (x / 1000, y))
    away = x - x.mean()
    found = float((away * y).sum() / (away**2).sum())
    left = y - y.mean() - found * away
    error = math.sqrt((left**2).sum() / (STRETCHES - 2) / (away**2).sum())
    return found, T_95 * error


def main() -> None:
    """Train, watch, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--updates", type=int, default=20_000)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results/rss.json")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        run, began = Path(folder) / "run", time.monotonic()
        process = start(run)
        try:
            samples = watch(process, run, options.updates)
        finally:
            process.terminate()
            code = process.wait()
        seconds = time.monotonic() - began
    found, half = slope(samples)
    values = [mib for _, mib in samples]
    result = {
        "updates": samples[-1][0] - samples[0][0],
        "seconds": round(seconds, 1),
        "exit_code_after_sigterm": code,
        "mib_at_first": round(values[0], 1),
        "mib_at_last": round(values[-1], 1),
        "mib_range": [round(min(values), 1), round(max(values), 1)],
        "slope_mib_per_1000_updates": round(found, 4),
        "slope_95_percent": [round(found - half, 4), round(found + half, 4)],
        "machine": f"{platform.machine()}, {len(os.sched_getaffinity(0))} cores",
        "samples": [[u, round(mib, 2)] for u, mib in samples[:: max(1, len(samples) // 200)]],
    }
    options.out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps({key: value for key, value in result.items() if key != "samples"}, indent=1))


if __name__ == "__main__":
    main()
