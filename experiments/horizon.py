"""How far can the world model dream, and does a decoder that sees h_t help or harm it?

Source: EMERALD, arXiv 2507.04075, section 4: the agent learns from 15 imagined steps. The paper's
    decoder sees z_t and h_t, so its errors also train h_t (see memory.py). The measure is our own.
Command: python -m experiments.horizon --scale smoke|cpu|minatar|paper [--out DIR] [--data DIR]
Time: cpu 9 minutes for three seeds with the --worlds of decoding_steps.py; minatar 12, one seed.
Result: results/horizon: not shown on Crafter; results/horizon_minatar: 15 steps, best with z.
"""

from __future__ import annotations

import sys

from experiments.study.plan import DREAM_METRICS, Study, Variant
from experiments.study.run import main

VARIANTS = (
    Variant(label="decoder sees z, h"),
    Variant(label="decoder sees z", changes={"model.decoder_input": "z"}),
)
METRICS = {"pixel_error": "reconstruction error", "token_accuracy": "token accuracy"}

STUDY = Study(
    name="horizon",
    claim=__doc__.splitlines()[0],
    variants=lambda scale: VARIANTS,
    metrics=METRICS | DREAM_METRICS,
    against=VARIANTS[0].label,
)

if __name__ == "__main__":
    sys.exit(main(STUDY))
