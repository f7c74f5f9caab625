"""Does a transformer predict better than a GRU? Both, crossed with the latent.

Claim: a transformer with a cache predicts better than a GRU (memory.py asks what it remembers).
Source: EMERALD, arXiv 2507.04075, ablations (transformer against RSSM); the 2 x 2 with the latent
    is left open there.
Command: python experiments/backbone.py --scale smoke|cpu|minatar|paper [--out DIR] [--data DIR]
Cost: smoke one to four minutes, nearly all of it compiling; cpu seven minutes for two seeds on 2
    cores, the transformers taken from other studies (measured); paper two days on one GPU
    (estimated).
Result: table.md, result.json, curves.png, points.png in --out
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from experiments.study.plan import (
    DREAM_CURVES,
    Scale,
    Study,
    Variant,
    latent_changes,
    standard_scales,
)
from experiments.study.study import main

SCALES = standard_scales()


def variants(scale: Scale) -> Sequence[Variant]:
    """The 2 x 2; half of it at smoke, and at ``minatar`` a GRU whose posterior sees no h_t."""
    latents = ("spatial",) if scale.preset == "tiny" else ("spatial", "vector")
    found = [
        Variant(
            label=f"{sequence} {latent}",
            changes={"model.sequence": sequence, **latent_changes(scale, latent)},
        )
        for sequence in ("tssm", "rssm")
        for latent in latents
    ]
    if scale.preset == "minatar":
        # DreamerV3's posterior sees h_t and EMERALD's does not: here the recurrence alone differs.
        changes = {"model.sequence": "rssm", "model.posterior": "o"}
        label = "rssm spatial, posterior of the image"
        found.append(Variant(label=label, changes={**changes, **latent_changes(scale, "spatial")}))
    return found


STUDY = Study(
    name="backbone",
    claim=__doc__.splitlines()[0],
    scales=SCALES,
    variants=variants,
    metrics={
        "token_accuracy": "token accuracy",
        "dream_error": "dream error",
        "moved": "moved pixels dreamt right",
        "reward_error": "reward error",
    },
    curves=DREAM_CURVES,
    points={"dream_error": "dream error", "token_accuracy": "token accuracy"},
    against="tssm spatial",
)

if __name__ == "__main__":
    sys.exit(main(STUDY))
