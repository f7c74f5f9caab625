"""What finished cells amount to: ``table.md``, ``result.json`` and the figures."""

from __future__ import annotations

import dataclasses
import json
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

import jax
import numpy as np

from emerald_jax import __version__
from emerald_jax.saving.files import write_atomic
from emerald_jax.studies import outcome
from emerald_jax.studies.plan import Scale, Study, Variant

#: Times of decoding, measured apart from the cells.
TIMING_FILE = "timing.json"
#: Directory of this package.
_PACKAGE = Path(__file__).resolve().parents[1]


def write_results(
    study: Study, scale: Scale, rows: list[tuple[Variant, dict[str, Any]]], out: Path
) -> str:
    """Write what finished cells amount to.

    Args:
        study: what was compared.
        scale: how large it was.
        rows: variants with their cells, one per seed.
        out: directory of the results.

    Returns:
        The text of ``table.md``.
    """
    results = collect(rows, out)
    tables = [outcome.table(results, study.metrics, samples=study.samples)]
    if study.against:
        tables.append(outcome.difference_table(results, study.metrics, study.against))
    text = "\n".join([f"{study.claim}\n", *(made.markdown() for made in tables)])
    write_atomic(out / "table.md", text.encode())
    worlds = [(v, c) for v, c in rows if "parameters" in c]
    content = {
        "study": study.name,
        "scale": dataclasses.asdict(scale),
        "tables": [{"columns": t.columns, "rows": t.rows, "notes": t.notes} for t in tables],
        "means": outcome.means(results),
        "parameters": {v.label: c["parameters"]["total"] for v, c in worlds},
        "training": [_training(variant, cell) for variant, cell in worlds],
        "seconds": round(sum(cell["seconds"] for _, cell in rows), 1),
        "machine": sorted({cell["machine"] for _, cell in rows}),
    }
    write_atomic(out / "result.json", (json.dumps(content, indent=1) + "\n").encode())
    if study.curves:
        outcome.step_figure(results, study.curves, out / "curves.png")
    if study.swept:
        outcome.sweep_figure(results, study.points, study.swept, out / "points.png")
    elif study.points:
        outcome.point_figure(results, study.points, out / "points.png")
    return text


def collect(rows: list[tuple[Variant, dict[str, Any]]], out: Path) -> outcome.Results:
    """The numbers of all cells by row of the table, times of decoding with them."""
    results: outcome.Results = {}
    for variant, cell in rows:
        for reading, values in cell["readings"].items():
            label = row_label(variant.label, reading)
            for name, numbers in values.items():
                found = results.setdefault(label, {}).setdefault(name, [])
                found.append(np.array(numbers))
    if (out / TIMING_FILE).is_file():
        times = json.loads((out / TIMING_FILE).read_text())["decode_us"]
        for label, numbers in times.items():
            # Whatever else the machine does only adds to a round: the fastest third is kept.
            results[label]["decode_us"] = [np.sort(numbers)[: max(1, len(numbers) // 3)]]
    return results


def row_label(variant: str, reading: str) -> str:
    """How tables and figures call one reading of a variant."""
    return " ".join(filter(None, (variant, reading)))


def digits(values: np.ndarray) -> Any:
    """Nested lists with five significant digits, which is more than windows agree on."""
    return np.vectorize(lambda x: float(f"{x:.5g}"), otypes=[float])(values).tolist()


def machine() -> str:
    """Where a number was measured, and with which code."""
    device = jax.devices()[0].device_kind
    return (
        f"{platform.machine()}, {os.cpu_count()} cores, {device}, jax {jax.__version__}, "
        f"emerald_jax {__version__}{commit()}"
    )


def commit(package: Path = _PACKAGE) -> str:
    """`` at COMMIT`` where the package is part of its git checkout, ``-dirty`` if it was changed.

    Empty elsewhere: an installed copy may lie below somebody else's checkout, whose commit says
    nothing of it.

    Args:
        package: directory of the package.
    """
    try:
        if _git(package, "rev-parse", "--show-prefix") != f"{package.name}/":
            return ""
        _git(package, "ls-files", "--error-unmatch", "__init__.py")
        found = _git(package, "rev-parse", "--short", "HEAD")
        changed = _git(package, "status", "--porcelain", "--", ".")
    except (OSError, subprocess.CalledProcessError):
        return ""
    return f" at {found}{'-dirty' if changed else ''}"


def _git(folder: Path, *words: str) -> str:
    """What git says in a folder.

    Raises:
        OSError: there is no git.
        subprocess.CalledProcessError: it refuses.
    """
    command = ["git", "-C", str(folder), *words]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def _training(variant: Variant, cell: dict[str, Any]) -> dict[str, Any]:
    """How one world model was trained, and how well it fitted at the end."""
    return {
        "variant": variant.label,
        "seed": cell["settings"]["seed"],
        "data": cell["data"],
        "updates": cell["updates"],
        "seconds_per_update": cell["seconds_per_update"],
        "last": {k: digits(np.array(x)) for k, x in cell["curve"][-1][1].items()},
    }
