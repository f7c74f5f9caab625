"""Are three MaskGIT decoding steps enough? The linear head and S = 1 ... 16 on the same weights.

Claim: S = 3 decodes as well as more steps; one parallel sample and the linear head do worse.
Source: EMERALD, arXiv 2507.04075, ablation on decoding steps: Crafter score 51.6 % with the linear
    head, 53.8 % with S = 1, 58.1 % with S = 3 (agents; here the world model alone).
Command: python -m experiments.decoding_steps --scale smoke|cpu|minatar|paper [--out DIR]
    [--data DIR], a data set of another environment if wanted (emerald-jax collect)
Hardware and time: cpu 36 minutes for three seeds on 2 busy cores; minatar 11 minutes; smoke 1 to 4
    minutes; paper hours on one GPU (estimated).
Seeds: cpu 3 (Pong and Space Invaders 1), minatar 1.
Result: results/decoding_steps, _minatar, _pong, _space_invaders: S = 3 beats the linear head and
    S = 1 on the latents; more steps still help a little.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from experiments.study.plan import DREAM_METRICS, SCALES, Scale, Study, Variant
from experiments.study.run import main

STEPS = (0, 1, 2, 3, 5, 8, 16)


def variants(scale: Scale) -> Sequence[Variant]:
    """One world model, measured with every S."""
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
        **DREAM_METRICS,
        "decode_us": "decoding, us per latent",
    },
    points={"token_accuracy": "token accuracy", "nats": "nats per latent"},
    against="S = 3",
)

if __name__ == "__main__":
    sys.exit(main(STUDY))
