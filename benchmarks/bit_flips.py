"""A hundred single flipped bits in a run's checkpoints and replay: none is restored silently.

Each time: flip one bit, restore as a run would, compare every array and record, flip it back.

Command: python -m benchmarks.bit_flips               (one minute on one CPU core)
Result:  benchmarks/results/bit_flips.json
"""

from __future__ import annotations

import dataclasses
import json
import logging
import shutil
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

import emerald_jax as ej
from benchmarks.suite.harness import run_script, with_changes
from emerald_jax.run.checkpoint import CheckpointError, Store, named_leaves, nest
from emerald_jax.training.train import train


class Point(NamedTuple):
    """A restored run: arrays by name, metadata, the replay, its step, lost replay chunks."""

    leaves: dict[str, np.ndarray]
    metadata: dict[str, Any]
    replay: ej.Replay
    step: int
    lost: tuple[str, ...]


def make_run(run: Path) -> ej.Config:
    """A small run with three checkpoints."""
    config = dataclasses.replace(ej.get_preset("tiny"), logdir=str(run))
    config = with_changes(config, log={"quiet": True, "pictures": 0, "eval_episodes": 0})
    for steps in (120, 200, 280):
        train(dataclasses.replace(config, steps=steps))
    return config


def restore(run: Path, config: ej.Config, names: dict[str, Any], step: int | None = None) -> Point:
    """Restore as a run would: the newest valid checkpoint and its replay."""
    size = config.envs.image_size
    replay = ej.Replay(config.replay.capacity, config.envs.count, (size, size, 3))
    tree = {name: np.zeros(leaf["shape"], jnp.dtype(leaf["dtype"])) for name, leaf in names.items()}
    with Store(run) as store:
        found = store.restore(nest(tree), replay, step)
    leaves = {name: np.asarray(leaf) for name, leaf in named_leaves(found.tree).items()}
    return Point(leaves, found.metadata, replay, found.step, found.lost)


def same(found: Point, truth: Point) -> bool:
    """Whether what came back is what was saved, but for rows that are known to be lost."""
    ours, theirs = (
        (point.metadata, point.leaves.keys(), point.replay.written, point.replay.oldest)
        for point in (found, truth)
    )
    spans = found.replay.spans()
    if ours != theirs or not (found.lost or spans == truth.replay.spans()):
        return False
    pairs = [(found.leaves[name], leaf) for name, leaf in truth.leaves.items()]
    rows = np.concatenate([[], *(np.arange(*span) for span in spans)]).astype(int)
    rows %= found.replay.rows
    # At a lost chunk an episode is cut, which changes is_last: it is not compared.
    for name in found.replay.columns.keys() - {"is_last"}:
        pairs.append(tuple(point.replay.columns[name][rows] for point in (found, truth)))
    return all(a.dtype == b.dtype and a.tobytes() == b.tobytes() for a, b in pairs)


def outcome(run: Path, config: ej.Config, names: Any, truths: dict[int, Point]) -> str:
    """Restore the run as it is now and compare."""
    try:
        found = restore(run, config, names)
    except CheckpointError:
        return "refused"
    if not same(found, truths[found.step]):
        return "silently wrong"
    if found.step != max(truths):
        return "noticed, older checkpoint"
    return "noticed, replay chunk skipped" if found.lost else "harmless"


def flip_bits(run: Path, flips: int, config: ej.Config, seed: int) -> list[dict]:
    """One row per flip; the files take turns, so that small ones are flipped as often."""
    steps = sorted(int(p.name) for p in (run / "checkpoints").iterdir() if p.name.isdecimal())
    names = json.loads((run / f"checkpoints/{steps[-1]}/metadata.json").read_text())["leaves"]
    truths = {step: restore(run, config, names, step) for step in steps}
    folders = [run / f"checkpoints/{steps[-1]}", run / "replay"]
    files = sorted(p for folder in folders for p in folder.rglob("*") if p.is_file())
    rng, table = np.random.default_rng(seed), []
    for number in range(flips):
        path = files[number % len(files)]
        original = path.read_bytes()
        if not original:
            continue
        bit = int(rng.integers(8 * len(original)))
        flipped = bytearray(original)
        flipped[bit // 8] ^= 1 << (bit % 8)
        path.write_bytes(flipped)
        came, name = outcome(run, config, names, truths), str(path.relative_to(run))
        path.write_bytes(original)
        table.append({"file": name, "bit": bit, "outcome": came})
        print(f"{number + 1:3d}  {came:<32}{name} bit {bit}", flush=True)
    assert outcome(run, config, names, truths) == "harmless", "a flip was not undone"
    return table


def measure(flips: int = 100, seed: int = 0, run: Path | None = None) -> dict[str, Any]:
    """Flip ``flips`` bits, drawn with ``seed``, of a copy of ``run`` (default: of a small run)."""
    logging.disable(logging.WARNING)  # every flip logs a warning; the table has it too
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "run"
        if run:
            shutil.copytree(run, copy)
        table = flip_bits(copy, flips, ej.Run(copy).config if run else make_run(copy), seed)
    outcomes = Counter(row["outcome"] for row in table)
    return {
        "flips": len(table),
        "files": len({row["file"] for row in table}),
        "outcomes": dict(outcomes),
        "silently_wrong": outcomes["silently wrong"],
        "table": table,
    }


if __name__ == "__main__":
    run_script(measure, "bit_flips", long="table")
