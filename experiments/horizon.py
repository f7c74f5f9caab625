"""How far can the world model dream, and does a decoder that sees h_t help or harm it?

Claim: EMERALD's imagination stays close to reality over the 15 steps that the agent learns from.
Source: EMERALD, arXiv 2507.04075, section 4 (imagined trajectories); the measure is our own. The
    paper's decoder sees z_t and h_t, so its errors also train h_t (see memory.py).
Command: python -m experiments.horizon --scale smoke|cpu|minatar|paper [--out DIR] [--data DIR]
Hardware and time: cpu 9 minutes for three seeds with the --worlds of decoding_steps.py; minatar 12
    minutes; smoke 1 to 4 minutes; paper hours on one GPU (estimated).
Seeds: cpu 3, minatar 1.
Result: results/horizon: not shown on Crafter; results/horizon_minatar: yes, and a decoder of z
    alone is better.
"""

from __future__ import annotations

import sys

from experiments.study.plan import DREAM_METRICS, SCALES, Study, Variant
from experiments.study.run import main

VARIANTS = (
    Variant(label="decoder sees z, h"),
    Variant(label="decoder sees z", changes={"model.decoder_input": "z"}),
)

STUDY = Study(
    name="horizon",
    claim=__doc__.splitlines()[0],
    scales=SCALES,
    variants=lambda scale: VARIANTS,
    metrics={
        "pixel_error": "reconstruction error",
        "token_accuracy": "token accuracy",
        **DREAM_METRICS,
    },
    against=VARIANTS[0].label,
)

if __name__ == "__main__":
    sys.exit(main(STUDY))
