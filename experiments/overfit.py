"""Can the world model represent its input? Overfit one sequence of 64 Crafter steps.

Source: EMERALD, arXiv 2507.04075, reaches a mean squared pixel error of 0.000231 on fresh frames;
    the threshold of 0.0005 is our own.
Command: python -m experiments.overfit (17 minutes on one CPU core, 2.2 s an update)
Result: results/overfit: yes, 0.000492 after 480 updates. crafter-small's networks with the paper's
    32 convolution channels, no dropout and ten times the paper's learning rate.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import emerald_jax as ej
from benchmarks.suite.machine import machine_line
from emerald_jax.reports.runs import Table
from emerald_jax.run.directory import write_json
from emerald_jax.run.machine import prepare_jax
from emerald_jax.training.evaluate import record
from experiments.study.page import RESULT_FILE, write_page
from experiments.study.plan import change
from experiments.study.worlds import split, train_world

TARGET, STEPS = 0.0005, 64


def main() -> None:
    """Train on one sequence until the target is reached, and write the result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--preset", default="crafter-small")
    add("--updates", type=int, default=2000, help="give up after this many")
    add("--lr", type=float, default=1e-3)
    add("--channels", type=int, default=32, help="of the first stage")
    add("--dropout", type=float, default=0.0)
    add("--out", type=Path, default=Path(__file__).parent / "results" / "overfit")
    options = parser.parse_args()
    prepare_jax()
    settings = {"envs.count": 1, "envs.workers": "inline", "optim.model_lr": options.lr}
    settings |= {"model.channels": options.channels, "model.dropout": options.dropout}
    settings |= {"replay.sampler": "windows", "replay.batch": 1, "replay.length": STEPS}
    config = change(ej.get_preset(options.preset), settings)
    played = record(config, STEPS, config.seed)
    sequence, _ = split(played, 1 - STEPS / (played.written - played.oldest))

    def stop(number: int, metrics: dict[str, float]) -> bool:
        error = metrics["model/pixel_error"]
        print(f"{number:5d} updates  pixel error {error:.6f}", flush=True)
        return error < TARGET

    sizes = dict(updates=options.updates, seed=config.seed)
    world = train_world(config, sequence, 17, **sizes, every=20, stop=stop)
    curve = [[number, metrics["model/pixel_error"]] for number, metrics in world.curve]
    result = {
        "preset": options.preset,
        "steps": STEPS,
        "channels": options.channels,
        "dropout": options.dropout,
        "learning_rate": options.lr,
        "target": TARGET,
        "reached": curve[-1][1] < TARGET,
        "updates": curve[-1][0],
        "pixel_error": curve[-1][1],
        "seconds": round(world.seconds, 1),
        "machine": machine_line(),
        "curve": curve,
    }
    write_json(options.out / RESULT_FILE, result)
    settings = [(name, str(value)) for name, value in result.items() if name != "curve"]
    points = [(str(number), f"{error:.6f}") for number, error in curve]
    about = f"[`python -m experiments.overfit`](../../overfit.py): {__doc__.splitlines()[0]}"
    tables = ((("", "value"), settings), (("updates", "pixel error"), points))
    numbers = [Table(columns=head, rows=rows).markdown() for head, rows in tables]
    print(write_page(options.out, about, numbers).read_text())


if __name__ == "__main__":
    main()
