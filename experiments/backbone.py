"""Does a transformer predict better than a GRU? Both, crossed with the latent.

Source: EMERALD, arXiv 2507.04075, ablations (transformer against RSSM); it leaves two cells of the
    2 x 2 with the latent open. memory.py measures memory alone.
Command: python -m experiments.backbone --scale smoke|cpu|minatar|paper [--out DIR] [--data DIR]
Time: two seeds on 2 cores, cpu 7 minutes, minatar 50; paper two days on one GPU (estimated).
Result: results/backbone: undecided on Crafter; results/backbone_minatar: no, the GRU is better.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from experiments.study.plan import DREAM_METRICS, Scale, Study, Variant, latent_changes
from experiments.study.run import main


def variants(scale: Scale) -> Sequence[Variant]:
    """The 2 x 2; half of it at smoke, and at ``minatar`` a GRU whose posterior sees no h_t."""
    latents = ("spatial",) if scale.preset == "tiny" else ("spatial", "vector")
    found = []
    for sequence in ("tssm", "rssm"):
        for latent in latents:
            changes = {"model.sequence": sequence, **latent_changes(scale, latent)}
            found.append(Variant(label=f"{sequence} {latent}", changes=changes))
    if scale.preset == "minatar":
        # DreamerV3's posterior sees h_t, EMERALD's does not: here only the recurrence differs.
        changes = {"model.sequence": "rssm", "model.posterior": "o", "model.latent": "spatial"}
        found.append(Variant(label="rssm spatial, posterior of the image", changes=changes))
    return found


STUDY = Study(
    name="backbone",
    claim=__doc__.splitlines()[0],
    variants=variants,
    metrics={"token_accuracy": "token accuracy", **DREAM_METRICS},
    points={"dream_error": "dream error", "token_accuracy": "token accuracy"},
    against="tssm spatial",
)

if __name__ == "__main__":
    sys.exit(main(STUDY))
