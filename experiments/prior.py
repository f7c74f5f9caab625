"""Which prior predicts the next latent best? MaskGIT, the linear head, one position after another.

Source: EMERALD, arXiv 2507.04075, ablations (linear head 51.6 %, MaskGIT S = 3 58.1 % on Crafter);
    the autoregressive baseline is our own. All priors get the same compute, in FLOPs.
Command: python -m experiments.prior --scale smoke|cpu|minatar|paper [--out DIR] [--data DIR]
Time: cpu 5 minutes for two seeds on 2 cores with the --worlds of decoding_steps.py; minatar 33.
Result: results/prior: MaskGIT beats the linear head on latents; results/prior_minatar: in rewards.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace

from benchmarks.train import model_flops
from experiments.study.plan import DECODING, Scale, Study, Variant, config_of
from experiments.study.run import main


def variants(scale: Scale) -> Sequence[Variant]:
    """The three priors at equal compute; the MaskGIT with its own S."""
    found, cost = [], []
    for prior in ("maskgit", "linear", "autoregressive"):
        variant = Variant(label=prior, changes={"model.prior": prior})
        cost.append(model_flops(config_of(scale, variant)).useful)
        found.append(replace(variant, updates=round(scale.updates * cost[0] / cost[-1])))
    return found


STUDY = Study(
    name="prior",
    claim=__doc__.splitlines()[0],
    variants=variants,
    **DECODING,
    against="maskgit",
)

if __name__ == "__main__":
    sys.exit(main(STUDY))
