"""Fifty times kill -9 at random moments of a small run: what is lost, and what comes back.

Every second kill waits until a checkpoint is being written. Nothing is cleaned up in between.

Command: python benchmarks/kills.py                   (fifteen minutes on one CPU core)
Result:  benchmarks/results/kills.json
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

#: Exit code of a run that was asked to leave and has saved.
INTERRUPTED = 75
EMERALD = [sys.executable, "-m", "emerald_jax"]
CONTINUES = re.compile(r"continues after [\d,]+ steps and ([\d,]+) updates")


def start(run: Path, interval_s: float, said: Path) -> subprocess.Popen:
    """One sitting of the run, its narration in ``said``."""
    settings = {
        "--logdir": run,
        "--steps": 10**9,
        "--log.checkpoint-minutes": interval_s / 60,
        # As little to trace as there can be, so that a start takes seconds.
        "--model.blocks": 1,
        "--model.head-layers": 1,
        "--behavior.horizon": 1,
        "--behavior.decode-steps": 1,
        "--log.every": 1,
        "--log.pictures": 0,
        "--log.eval-episodes": 0,
    }
    words = [str(word) for pair in settings.items() for word in pair]
    with said.open("w") as file:
        return subprocess.Popen([*EMERALD, "train", "tiny", *words], stderr=file, stdout=file)


def rows(run: Path) -> dict[int, float]:
    """Updates that are in the log -> wall time."""
    path, found = run / "metrics.jsonl", {}
    for line in path.read_text().splitlines() if path.exists() else []:
        if line.endswith("}"):  # a kill may leave half a line
            row = json.loads(line)
            found[int(row["train/updates"])] = row["time"]
    return found


def halves(run: Path) -> set[int]:
    """Checkpoints that are being written, or were when the run was killed, by inode."""
    found = set()
    for path in (run / "checkpoints").glob("*.orbax-checkpoint-tmp*"):
        with contextlib.suppress(OSError):  # it has just become whole
            found.add(path.stat().st_ino)
    return found


def continued(said: Path) -> int | None:
    """Updates from which a sitting went on; None when it did not get so far."""
    found = CONTINUES.search(said.read_text())
    return int(found[1].replace(",", "")) if found else None


def kill_once(
    run: Path, said: Path, wait_s: float, aim: bool, interval_s: float
) -> tuple[dict, dict[int, float]]:
    """Start, wait, kill; what happened, and the updates that were in the log then."""
    began, before = time.monotonic(), halves(run)
    process = start(run, interval_s, said)
    time.sleep(wait_s)
    deadline = time.monotonic() + 20 + 3 * interval_s
    while aim and halves(run) <= before and time.monotonic() < deadline:
        time.sleep(0.002)
    process.kill()
    code = process.wait()
    facts = {
        "alive_s": round(time.monotonic() - began, 2),
        "exit_code": code,
        "mid_save": not halves(run) <= before,
        "continued_from": continued(said),
    }
    return facts, rows(run)


def lost_since(reached: dict[int, float], point: int) -> dict:
    """Updates and seconds of training between a point and the last update in the log."""
    if not reached:
        return {"lost_updates": 0, "lost_s": 0.0}
    # From the update after the point: the point's own row may be of an earlier sitting, and what
    # lay between the two was a start, not work.
    begin = reached.get(point + 1, min(reached.values()))
    last = max(reached)
    return {"lost_updates": last - point, "lost_s": round(reached[last] - begin, 2)}


def kill_often(run: Path, kills: int, interval_s: float, startup_s: float) -> list[dict]:
    """The table: one row per kill; a loss stands with the sitting that went on after it."""
    table, reached, said, rng = [], {}, run.with_suffix(".txt"), random.Random(0)
    for number in range(kills):
        wait = rng.uniform(0, startup_s + 3 * interval_s)
        facts, now = kill_once(run, said, wait, number % 2 == 1, interval_s)
        if facts["continued_from"] is not None:
            facts |= lost_since(reached, facts["continued_from"])
        # A sitting that was killed before it went on has left the log as it was.
        reached, facts["reached"] = now, max(now, default=0)
        table.append({"kill": number + 1, **facts})
        print(" ".join(f"{key} {value}" for key, value in table[-1].items()), flush=True)
    return table


def warm_up(run: Path, interval_s: float) -> float:
    """Two polite sittings before the kills; seconds that a start takes once programs are cached.

    Compiled programs come from the compilation cache in every start but a machine's first, which
    takes longer than any sitting here lasts.
    """
    said, seconds = run.with_suffix(".txt"), 0.0
    for _ in range(2):
        before, began = len(rows(run)), time.monotonic()
        process = start(run, interval_s, said)
        while len(rows(run)) <= before and process.poll() is None:
            time.sleep(0.1)
        seconds = time.monotonic() - began
        process.send_signal(signal.SIGTERM)
        if process.wait() != INTERRUPTED:
            raise SystemExit(f"the run ended by itself: {said.read_text()}")
    return seconds


def last_sitting(run: Path, interval_s: float) -> dict:
    """Go on once more, stop politely, and look at every checkpoint."""
    said, began = run.with_suffix(".txt"), time.monotonic()
    process = start(run, interval_s, said)
    while continued(said) is None and process.poll() is None:
        time.sleep(0.05)
    restart = time.monotonic() - began
    time.sleep(1)
    process.send_signal(signal.SIGTERM)
    code = process.wait()
    health = subprocess.run([*EMERALD, "checkpoints", str(run)], capture_output=True, text=True)
    print(health.stdout)
    return {
        "restart_s": round(restart, 1),
        "exit_code_after_sigterm": code,
        "checkpoints_sound": health.returncode == 0,
        "left_over": sorted(p.name for p in run.rglob("*tmp*")),
        "replay_files": len(list((run / "replay").glob("*.npz"))),
    }


def main() -> None:
    """Kill, tell, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--interval", type=float, default=3.0, help="of checkpoints, seconds")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results/kills.json")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        startup = warm_up(run, options.interval)
        table = kill_often(run, options.kills, options.interval, startup)
        end = last_sitting(run, options.interval)
    losses = [row for row in table if "lost_s" in row]
    result = {
        "kills": len(table),
        "killed_by_us": sum(row["exit_code"] == -signal.SIGKILL for row in table),
        "mid_save": sum(row["mid_save"] for row in table),
        "before_it_went_on": sum(row["continued_from"] is None for row in table),
        "interval_s": options.interval,
        "startup_s": round(startup, 1),
        "most_lost_s": max(row["lost_s"] for row in losses),
        "most_lost_updates": max(row["lost_updates"] for row in losses),
        **end,
        "machine": f"{platform.machine()}, {len(os.sched_getaffinity(0))} cores, shared",
        "table": table,
    }
    options.out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps({key: value for key, value in result.items() if key != "table"}, indent=1))


if __name__ == "__main__":
    main()
