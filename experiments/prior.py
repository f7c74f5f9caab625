"""Which prior predicts the next latent best? MaskGIT, the linear head, one position after another.

Claim: a MaskGIT predictor beats a linear head, and comes near a sequential predictor of the same
    size at a fraction of its decoding time.
Source: EMERALD, arXiv 2507.04075, ablations (linear head 51.6 %, MaskGIT S = 3 58.1 % on Crafter);
    the autoregressive baseline is our own.
Command: python experiments/prior.py --scale smoke|cpu|minatar|paper [--out DIR] [--data DIR]
Cost: smoke one to four minutes, nearly all of it compiling; cpu five minutes for two seeds on 2
    cores, the MaskGIT models taken from decoding_steps.py (measured); paper a day on one GPU
    (estimated).
Result: table.md, result.json, curves.png, points.png in --out. All priors get the same compute:
    updates in inverse proportion to the FLOPs of one, counted from its trace; result.json has
    updates and seconds.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence

from benchmarks.train import update_flops
from experiments.study.plan import DREAM_CURVES, Scale, Study, Variant, config_of, standard_scales
from experiments.study.study import main

#: Crafter's; other games have fewer, which changes the work by far less than one update.
ACTIONS = 17
SCALES = standard_scales()


def variants(scale: Scale) -> Sequence[Variant]:
    """The three priors at equal compute; the MaskGIT with its own S."""
    found = [
        Variant(label=prior, changes={"model.prior": prior})
        for prior in ("maskgit", "linear", "autoregressive")
    ]
    cost = [update_flops(config_of(scale, v), ACTIONS)["world_model"].useful for v in found]
    return [
        dataclasses.replace(variant, updates=round(scale.updates * cost[0] / own))
        for variant, own in zip(found, cost, strict=True)
    ]


STUDY = Study(
    name="prior",
    claim=__doc__.splitlines()[0],
    scales=SCALES,
    variants=variants,
    metrics={
        "token_accuracy": "token accuracy",
        "nats": "nats per latent",
        "dream_error": "dream error",
        "moved": "moved pixels dreamt right",
        "reward_error": "reward error",
        "decode_us": "decoding, us per latent",
    },
    curves=DREAM_CURVES,
    points={"token_accuracy": "token accuracy", "nats": "nats per latent"},
    timed=True,
    against="maskgit",
)

if __name__ == "__main__":
    sys.exit(main(STUDY))
