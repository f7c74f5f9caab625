"""The page of a study: ``README.md`` in its folder of results.

``python -m experiments.study.page FOLDER ...`` writes pages again from their ``result.json``.
"""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from emerald_jax.reports.runs import Table
from emerald_jax.run.directory import write_atomic
from experiments.study.plan import BASELINES, DREAM_METRICS

RESULT_FILE, PAGE_FILE = "result.json", "README.md"
#: Headings. What stands between them is written by hand, and kept when the page is written again.
READING, NUMBERS = "## Reading", "## Numbers"
#: Pictures shown on the page; it links to the others.
_SHOWN = ("curve.png", "curves.png", "points.png")
#: Imagined steps in the table of the dream error.
_STEPS = (1, 5, 10, 15, 16, 50)
_SIZES = ("records", "updates", "seeds", "windows", "context", "horizon")


def write_page(folder: Path, about: str, numbers: Sequence[str]) -> Path:
    """Write the page of a folder of results; the section "Reading" of an old page is kept.

    ``about`` is the command and the claim, ``numbers`` are paragraphs in Markdown.
    """
    path = folder / PAGE_FILE
    old = path.read_text() if path.is_file() else ""
    reading = old[old.index(READING) : old.index(NUMBERS)] if READING in old else ""
    pictures = sorted(p.name for p in folder.glob("*.png"))
    shown = [f"![{name}]({name})" for name in _SHOWN if name in pictures]
    others = ", ".join(f"[{name}]({name})" for name in pictures if name not in _SHOWN)
    more = f"More pictures: {others}" if others else ""
    parts = (f"# {folder.name}", about, reading, NUMBERS, *numbers, *shown, more)
    text = "\n\n".join(part.strip() for part in parts if part)
    write_atomic(path, f"{text}\n".encode())
    return path


def write_study_page(folder: Path) -> Path:
    """Write the page of a study from its ``result.json``; returns the page's path."""
    content = json.loads((folder / RESULT_FILE).read_text())
    study, scale, machine = content["study"], content["scale"], content["machine"]
    claim = content.get("claim")
    if claim is None:  # a result written before results had their claim
        claim = importlib.import_module(f"experiments.{study}").STUDY.claim
    agents = scale["agent_preset"]
    sizes = ", ".join(f"{k} {scale[k]:,}" for k in (("seeds",) if agents else _SIZES))
    changes = [f"`{k}` {v}" for k, v in {**scale["changes"], **scale["agent_changes"]}.items()]
    lines = [
        f"- preset `{agents or scale['preset']}`, {sizes}",
        f"- changed settings: {', '.join(changes) or 'none'}",
        f"- wall time of all cells: {content['seconds']:,.0f} s",
        *(f"- machine: {m}" for m in ([machine] if isinstance(machine, str) else machine)),
    ]
    tables = [Table(**found) for found in content["tables"]]
    tables += _more_tables(content)
    about = f"[`python -m experiments.{study}`](../../{study}.py): {claim}"
    return write_page(folder, about, [*(t.markdown() for t in tables), "\n".join(lines)])


def _more_tables(content: dict[str, Any]) -> Iterator[Table]:
    """Numbers without a model, dream errors over imagined steps, and the training."""
    means = content["means"]
    first = next(iter(means.values()))
    simple = [
        (label, DREAM_METRICS[name], f"{np.mean(first[other]['mean']):.4f}")
        for name, (other, label, _) in BASELINES.items()
        if other in first
    ]
    if simple:
        columns = ("without a model", "measure", "mean over steps")
        yield Table(columns=columns, rows=simple)
        length = len(first["dream_error"]["mean"])
        steps = [step for step in _STEPS if step <= length]
        errors = {label: row["dream_error"] for label, row in means.items()}
        errors["the last frame read"] = first["still_error"]
        rows = [(k, *(f"{e['mean'][step - 1]:.4g}" for step in steps)) for k, e in errors.items()]
        columns = ("dream error", *(f"step {step}" for step in steps))
        yield Table(columns=columns, rows=rows)
    rows = []
    for trained in content["training"]:
        name, error = trained["variant"], trained["last"]["model/pixel_error"]
        counts = (str(trained["seed"]), str(trained["updates"]))
        more = (f"{content['parameters'][name]:,}", f"{error:.3g}")
        label, seconds = name or content["study"], f"{trained['seconds_per_update']:.3f}"
        rows.append((label, *counts, seconds, *more))
    if rows:
        columns = ("trained model", "seed", "updates", "s/update", "parameters", "last pixel error")
        note = "The last pixel error is that of the last training batch, whose memory reaches back."
        yield Table(columns=columns, rows=rows, notes=(note,))


if __name__ == "__main__":
    for argument in sys.argv[1:]:
        print(write_study_page(Path(argument)))
