"""Are three MaskGIT decoding steps enough? The linear head and S = 1 ... 16 on the same weights.

Claim: S = 3 decodes as well as more steps; one parallel sample and the linear head do worse.
Source: EMERALD, arXiv 2507.04075, ablation on decoding steps: Crafter score 51.6 % with the linear
    head, 53.8 % with S = 1, 58.1 % with S = 3 (agents; here the world model alone).
Command: python experiments/decoding_steps.py --scale smoke|cpu|minatar|paper
    [--out DIR] [--data DIR]
    Other environments: record them with emerald-jax collect, name them with --data.
Cost: smoke one to four minutes, nearly all of it compiling; cpu 36 minutes for three seeds on
    a busy machine of 2 cores (measured); paper hours on one GPU (estimated).
Result: table.md, result.json, curves.png, points.png in --out
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from experiments.study.plan import DREAM_CURVES, Scale, Study, Variant, standard_scales
from experiments.study.study import main

STEPS = (0, 1, 2, 3, 5, 8, 16)
SCALES = standard_scales()


def variants(scale: Scale) -> Sequence[Variant]:
    """One world model, read with every S."""
    steps = STEPS if scale.preset != "tiny" else (0, 1, 3)
    names = {s: f"S = {s}" if s else "linear head" for s in steps}
    return [Variant(label="", readings={names[s]: {"behavior.decode_steps": s} for s in steps})]


STUDY = Study(
    name="decoding_steps",
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
    against="S = 3",
)

if __name__ == "__main__":
    sys.exit(main(STUDY))
