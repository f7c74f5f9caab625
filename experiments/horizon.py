"""How far can the world model dream, and does a decoder that sees h_t help or harm it?

Claim: EMERALD's imagination stays close to reality over the 15 steps that the agent learns from.
Source: EMERALD, arXiv 2507.04075, section 4 (imagined trajectories); the measure is our own. The
    paper's decoder sees z_t and h_t; its errors then teach h_t, too (see ``memory.py``).
Command: python experiments/horizon.py --scale smoke|cpu|minatar|paper [--out DIR] [--data DIR]
Cost: smoke one to four minutes, nearly all of it compiling; cpu six models, minutes each,
    or three with the --worlds of decoding_steps.py; paper hours on one GPU (estimated).
Result: table.md, result.json, curves.png in --out (runs/studies/horizon-SCALE)
"""

from __future__ import annotations

import sys

from experiments.study.plan import DREAM_CURVES, Study, Variant, standard_scales
from experiments.study.study import main

SCALES = standard_scales()

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
        "dream_error": "dream error",
        "moved": "moved pixels dreamt right",
        "reward_error": "reward error",
    },
    curves=DREAM_CURVES,
    against=VARIANTS[0].label,
)

if __name__ == "__main__":
    sys.exit(main(STUDY))
