"""How far can the world model dream? Open-loop and reward error against imagined steps.

Claim: EMERALD's imagination stays close to reality over the 15 steps that the agent learns from.
Source: EMERALD, arXiv 2507.04075, section 4 (imagined trajectories); the measure is our own.
Command: python experiments/horizon.py --scale smoke|cpu|paper [--out DIR] [--data DIR]
Cost: smoke one to four minutes, nearly all of it compiling; cpu three models, minutes each,
    or none with the --worlds of decoding_steps.py; paper hours on one GPU (estimated).
Result: table.md, result.json, curves.png in --out (runs/studies/horizon-SCALE)
"""

from __future__ import annotations

from emerald_jax.studies.plan import Study, Variant, cpu_scale, paper_scale, smoke_scale
from emerald_jax.studies.study import main

SCALES = {"smoke": smoke_scale(), "cpu": cpu_scale(), "paper": paper_scale()}

STUDY = Study(
    name="horizon",
    claim=__doc__.splitlines()[0],
    scales=SCALES,
    variants=lambda scale: [Variant(label="EMERALD")],
    metrics={
        "pixel_error": "reconstruction error",
        "dream_error": "dream error",
        "reward_error": "reward error",
    },
    curves={"dream_error": "squared pixel error of the dream", "reward_error": "reward error"},
)

if __name__ == "__main__":
    main(STUDY)
