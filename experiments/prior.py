"""Which prior predicts the next latent best? MaskGIT, the linear head, one position after another.

Claim: a MaskGIT predictor beats a linear head, and comes near a sequential predictor of the same
    size at a fraction of its decoding time.
Source: EMERALD, arXiv 2507.04075, ablations (linear head 51.6 %, MaskGIT S = 3 58.1 % on Crafter);
    the autoregressive baseline is our own.
Command: python -m experiments.prior --scale smoke|cpu|minatar|paper [--out DIR] [--data DIR]
Hardware and time: cpu 5 minutes for two seeds on 2 cores, with the MaskGIT models of
    decoding_steps.py; minatar 33 minutes; smoke 1 to 4 minutes; paper a day on a GPU (estimated).
    All priors get the same compute: the updates are inversely proportional to the FLOPs of one.
Seeds: cpu 2 in the committed result, minatar 1.
Result: results/prior: MaskGIT beats the linear head on the latents; results/prior_minatar: in
    rewards. The autoregressive prior decodes faster than three MaskGIT steps on a CPU.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence

from benchmarks.train import update_flops
from experiments.study.plan import DREAM_METRICS, SCALES, Scale, Study, Variant, config_of
from experiments.study.run import main

#: Crafter's; the work depends on it by far less than one update.
ACTIONS = 17


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
        **DREAM_METRICS,
        "decode_us": "decoding, us per latent",
    },
    points={"token_accuracy": "token accuracy", "nats": "nats per latent"},
    against="maskgit",
)

if __name__ == "__main__":
    sys.exit(main(STUDY))
