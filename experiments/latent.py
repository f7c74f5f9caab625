"""Do spatial latents keep details that a vector loses?

Claim: a grid of categoricals reconstructs what a vector of categoricals blurs.
Source: EMERALD, arXiv 2507.04075: pixel error 0.000522 with a vector, about 0.00024 with a spatial
    latent, and a Crafter score of 34.9 against 40.4 % (both with an RSSM).
Command: python experiments/latent.py --scale smoke|cpu|crafter64|minatar|paper [--out DIR]
    [--data DIR]
Cost: smoke one to four minutes, nearly all of it compiling; cpu 16 minutes for two seeds on a
    busy machine of 2 cores, the spatial models taken from decoding_steps.py (measured); crafter64
    68 minutes on a busy core (measured), and it needs a recording of 64 pixels; minatar 18 minutes
    a seed on one (measured); paper a day on one GPU (estimated).
Result: table.md, result.json, curves.png, points.png in --out
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from experiments.study.plan import (
    CPU_WORLD,
    DREAM_CURVES,
    Scale,
    Study,
    Variant,
    config_of,
    cpu_scale,
    latent_changes,
    standard_scales,
)
from experiments.study.study import main

SCALES = {
    **standard_scales(),
    # Crafter's own 64 pixels, where an item of the inventory has seven and can be read; one seed.
    "crafter64": cpu_scale(
        updates=3000,
        seeds=1,
        windows=64,
        changes={**CPU_WORLD, "envs.image_size": 64, "loss.image": 1.0},
    ),
}


def variants(scale: Scale) -> Sequence[Variant]:
    """The two latents; at ``minatar`` and ``crafter64`` also a vector at the grid's price."""
    found = [Variant(label=k, changes=latent_changes(scale, k)) for k in ("spatial", "vector")]
    if scale.preset == "minatar" or scale.changes.get("envs.image_size") == 64:
        changes = {**latent_changes(scale, "vector"), **price_of_the_grid(scale)}
        found.append(Variant(label="vector, nats at the grid's price", changes=changes))
    return found


def price_of_the_grid(scale: Scale) -> dict[str, float]:
    """KL weights and floors with which a vector pays as much for a nat as a grid of P positions.

    The loss takes a mean over positions, of which a vector has one: against the image its nats are
    P times as dear. That is the paper's comparison; this one leaves the price alone.
    """
    grid = config_of(scale, Variant(label="grid"))
    loss, positions = grid.loss, grid.model.positions
    return {
        **{f"loss.{name}": getattr(loss, name) / positions for name in ("dyn", "rep", "mask")},
        "loss.free_nats": loss.free_nats * positions,
        "loss.mask_free_nats": loss.mask_free_nats * positions,
    }


STUDY = Study(
    name="latent",
    claim=__doc__.splitlines()[0],
    scales=SCALES,
    variants=variants,
    metrics={
        "pixel_error": "reconstruction error",
        "tile_accuracy": "map tiles read back",
        "item_accuracy": "inventory read back",
        "dream_error": "dream error",
        "moved": "moved pixels dreamt right",
        "reward_error": "reward error",
    },
    curves=DREAM_CURVES,
    points={"pixel_error": "reconstruction error"},
    against="spatial",
)

if __name__ == "__main__":
    sys.exit(main(STUDY))
