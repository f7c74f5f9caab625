"""How far can the world model dream, and does a decoder that sees h_t help or harm it?

Claim: EMERALD's imagination stays close to reality over the 15 steps that the agent learns from.
Source: EMERALD, arXiv 2507.04075, section 4 (imagined trajectories); the measure is our own. The
    paper's decoder sees z_t and h_t; its errors then teach h_t, too (see ``memory.py``).
Command: python experiments/horizon.py --scale smoke|cpu|paper [--out DIR] [--data DIR]
Cost: smoke one to four minutes, nearly all of it compiling; cpu six models, minutes each,
    or three with the --worlds of decoding_steps.py; paper hours on one GPU (estimated).
Result: table.md, result.json, curves.png in --out (runs/studies/horizon-SCALE)
"""

from __future__ import annotations

from emerald_jax.studies.plan import Study, Variant, cpu_scale, paper_scale, smoke_scale
from emerald_jax.studies.study import main

SCALES = {"smoke": smoke_scale(), "cpu": cpu_scale(), "paper": paper_scale()}

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
        "reward_error": "reward error",
    },
    curves={"dream_error": "squared pixel error of the dream", "reward_error": "reward error"},
    against=VARIANTS[0].label,
)

if __name__ == "__main__":
    main(STUDY)
