"""How far can the world model dream? Open-loop and reward error against imagined steps.

Claim: EMERALD's imagination stays close to reality over the 15 steps that the agent learns from.
Source: EMERALD, arXiv 2507.04075, section 4 (imagined trajectories); the measure is our own.
Command: python experiments/horizon.py --scale smoke|cpu|paper [--out DIR] [--data DIR]
Cost: smoke one to four minutes, nearly all of it compiling; estimated, not yet run: cpu under an
    hour on 2 cores, paper hours on one GPU.
Result: table.md, result.json, curves.png in --out (runs/studies/horizon-SCALE)
"""

from __future__ import annotations

from emerald_jax.studies.study import Scale, Study, Variant, main

SCALES = {
    "smoke": Scale(
        preset="tiny", records=900, updates=30, seeds=1, windows=16, context=3, horizon=5
    ),
    "cpu": Scale(
        preset="crafter-small",
        records=20_000,
        updates=500,
        seeds=2,
        windows=64,
        context=8,
        horizon=50,
    ),
    "paper": Scale(
        preset="crafter",
        records=200_000,
        updates=50_000,
        seeds=3,
        windows=256,
        context=16,
        horizon=50,
    ),
}

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
