"""Data sets: recorded play, so that all models that are compared train on the same bytes.

A data set is a directory: ``dataset.json`` (where the play came from, and a manifest of chunks with
their SHA-256) and the chunks in the replay's own on-disk format, readable with ``numpy.load``.
Rows are vector steps, aligned as in ``replay/store.py``. The manifest is written last: a directory
without it is not a data set.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from emerald_jax.config import Config
from emerald_jax.envs.base import VectorStep
from emerald_jax.envs.playing import random_policy
from emerald_jax.envs.registry import make_vector_env, spec_of
from emerald_jax.replay import COLUMNS, Replay, ReplayError
from emerald_jax.run.files import write_atomic
from emerald_jax.run.replay_files import ReplayFiles

DATASET_FILE = "dataset.json"
FORMAT = 1
#: Seeds of recorded play lie far from those that training and evaluation count up from.
_FAR = 2_000_003

#: Newest records -> actions `[E]` int32.
Policy = Callable[[VectorStep], np.ndarray]


class DataSet(NamedTuple):
    """Recorded play in memory: ``facts`` of :func:`facts_of` as JSON values, and the records."""

    facts: dict[str, Any]
    replay: Replay


def record(config: Config, steps: int, seed: int, policy: Policy | None = None) -> Replay:
    """Play at least ``steps`` environment steps, all together, and store every record.

    ``seed`` is that of the environments, and of the actions where ``policy`` is None, random play.
    """
    count = config.envs.count
    with closing(make_vector_env(config.env, config.envs, seed=seed + _FAR)) as env:
        policy = policy or random_policy(env.spec.num_actions, count, seed)
        # An episode of one step is two records: no play has more than two records a step.
        replay = Replay(2 * (steps + 2 * count), count, env.spec.image_shape)
        step, played = env.reset(), 0
        replay.append(step)
        while played < steps:
            step = env.step(policy(step))
            replay.append(step)
            played += step.env_steps
        return replay


def facts_of(config: Config, policy: str, seed: int, steps: int) -> dict[str, Any]:
    """:attr:`DataSet.facts` of a recording; arguments as :func:`record`."""
    spec = spec_of(config.env, config.envs)
    return {
        "env": config.env,
        "policy": policy,
        "seed": seed,
        "steps": steps,
        "num_actions": spec.num_actions,
        "image_shape": list(spec.image_shape),
    }


def write_dataset(folder: str | Path, replay: Replay, facts: dict[str, Any]) -> Path:
    """Write a data set into a new directory; returns its manifest's path.

    Raises ReplayError where there is one already, or where it cannot be written.
    """
    folder = Path(folder)
    refuse_dataset(folder)
    with closing(ReplayFiles(folder)) as files:
        chunks = files.save(replay)
    if chunks is None:
        raise ReplayError(f"the data set cannot be written to {folder}: is the disk full?")
    text = json.dumps({"format": FORMAT, **facts, "replay": chunks}, indent=1) + "\n"
    write_atomic(folder / DATASET_FILE, text.encode())
    return folder / DATASET_FILE


def refuse_dataset(folder: Path) -> None:
    """Raise ReplayError rather than write over a data set or into a file."""
    if (folder / DATASET_FILE).exists():
        raise ReplayError(f"{folder} already holds a data set: choose another --out")
    if folder.exists() and not folder.is_dir():
        raise ReplayError(f"{folder} is a file: choose another --out")


def read_dataset(folder: str | Path) -> DataSet:
    """Load a data set; every chunk is checked against its digest.

    Raises ReplayError if there is none, another version wrote it, or a chunk is missing or changed.
    """
    folder = Path(folder)
    try:
        facts = json.loads((folder / DATASET_FILE).read_text(encoding="utf-8"))
        found, manifest = facts.pop("format"), facts.pop("replay")
        count, rows = manifest["num_envs"], manifest["written"] - manifest["oldest"]
    except FileNotFoundError as error:
        raise ReplayError(f"{folder} is not a data set: it has no {DATASET_FILE}") from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ReplayError(f"{folder / DATASET_FILE} cannot be read: {error}") from error
    if found != FORMAT:
        raise ReplayError(f"{folder} is a data set of format {found}, this version reads {FORMAT}")
    replay = Replay(rows * count, count, manifest["image_shape"])
    with closing(ReplayFiles(folder)) as files:
        lost = files.load(manifest, replay)
    if lost:
        raise ReplayError(f"{folder} is damaged ({lost[0]}): record or copy it again")
    return DataSet(facts, replay)


def split(replay: Replay, held_out: float) -> tuple[Replay, Replay]:
    """The older rows to train on, and the newest ``held_out`` in (0, 1) of them to test on."""
    rows = replay.written - replay.oldest
    border = replay.oldest + max(1, min(rows - 1, round((1 - held_out) * rows)))
    return _rows(replay, replay.oldest, border), _rows(replay, border, replay.written)


def _rows(replay: Replay, start: int, stop: int) -> Replay:
    part = Replay((stop - start) * replay.num_envs, replay.num_envs, replay.image_shape)
    index = np.arange(start, stop) % replay.rows
    for name in COLUMNS:
        part.columns[name][:] = replay.columns[name][index]
    part.restore(written=stop - start, oldest=0, holes=())
    return part
