"""Does a transformer remember more than a GRU? Both, crossed with the latent, and a memory probe.

Claim: a transformer with a cache predicts better than a GRU, and recalls over longer delays.
Source: EMERALD, arXiv 2507.04075, ablations (transformer against RSSM); the 2 x 2 with the latent
    is left open there. The probe is our own: a cue shown once, asked for k frames later.
Command: python experiments/backbone.py --scale smoke|cpu|paper [--out DIR] [--data DIR]
Cost: smoke one to four minutes, nearly all of it compiling; estimated, not yet run: cpu under an
    hour on 2 cores, paper two days on one GPU.
Result: table.md, result.json, curves.png, points.png in --out
"""

from __future__ import annotations

from collections.abc import Sequence

from emerald_jax.studies.plan import (
    PROBE,
    Scale,
    Study,
    Variant,
    cpu_scale,
    paper_scale,
    smoke_scale,
)
from emerald_jax.studies.study import main

SCALES = {"smoke": smoke_scale(), "cpu": cpu_scale(), "paper": paper_scale()}
DELAYS = {"smoke": (4,), "cpu": (4, 8, 16, 32, 64, 128), "paper": (4, 8, 16, 32, 64, 128)}


def variants(scale: Scale) -> Sequence[Variant]:
    """The 2 x 2 on the data set (half of it at smoke), then the spatial ones on the probe."""
    name = next(name for name, found in SCALES.items() if found == scale)
    latents = ("spatial",) if name == "smoke" else ("spatial", "vector")
    found = [
        Variant(
            label=f"{sequence} {latent}",
            changes={"model.sequence": sequence, "model.latent": latent},
        )
        for sequence in ("tssm", "rssm")
        for latent in latents
    ]
    return found + [
        Variant(
            label=f"{sequence}, k = {delay}",
            changes={"model.sequence": sequence},
            data=f"{PROBE}{delay}",
        )
        for delay in DELAYS[name]
        for sequence in ("tssm", "rssm")
    ]


STUDY = Study(
    name="backbone",
    claim=__doc__.splitlines()[0],
    scales=SCALES,
    variants=variants,
    metrics={
        "token_accuracy": "token accuracy",
        "dream_error": "dream error",
        "reward_error": "reward error",
        "recall": "cue recalled",
    },
    curves={"dream_error": "squared pixel error of the dream", "reward_error": "reward error"},
    points={"recall": "cue recalled (chance 0.5)"},
)

if __name__ == "__main__":
    main(STUDY)
