"""Draw the figures of results again, from their JSON files alone.

Command: python -m experiments.plot [FOLDER ...]
    Without a folder: all of experiments/results. Pictures of one run (strips, decodings,
    seed_N.png) need the run and are left as they are.
Time: half a minute for all.
"""

from __future__ import annotations

import argparse
import importlib
import json
from collections.abc import Sequence
from pathlib import Path

from experiments import evidence, ppo
from experiments.study.page import RESULT_FILE
from experiments.study.results import draw_study

RESULTS = Path(__file__).resolve().parent / "results"


def redraw(folder: Path) -> list[Path]:
    """Write the figures of one folder of results; returns them, none if it has no numbers."""
    if folder.name == "ppo":
        return [ppo.draw(folder)]
    if (folder / "curve.png").is_file() and any(folder.glob("seed_*.json")):
        return [evidence.draw(_run_of(folder), folder)]
    path = folder / RESULT_FILE
    content = json.loads(path.read_text()) if path.is_file() else {}
    if "means" not in content:
        return []
    study = importlib.import_module(f"experiments.{content['study']}").STUDY
    return draw_study(study, content["means"], folder)


def _run_of(folder: Path) -> evidence.Run:
    """The run whose name the folder's begins with, such as minatar of minatar_stages."""
    names = [name for name in evidence.RUNS if folder.name.startswith(name)]
    if not names:
        known = ", ".join(evidence.RUNS)
        evidence.refuse(f"{folder}: its name must begin with that of a run ({known})", "plot")
    return evidence.RUNS[max(names, key=len)]


def main(arguments: Sequence[str] | None = None) -> None:
    """Draw the figures of all folders named, and print their paths."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folders", type=Path, nargs="*", metavar="FOLDER")
    folders = parser.parse_args(arguments).folders or sorted(RESULTS.iterdir())
    for folder in folders:
        if not folder.is_dir():
            evidence.refuse(f"{folder} is no folder: name one of experiments/results", "plot")
        for path in redraw(folder):
            print(path)


if __name__ == "__main__":
    main()
