"""Which decoder of the MaskGIT gives the most truthful latents? Four, with S = 1 ... 16 each.

Source: EMERALD, arXiv 2507.04075, decodes by confidence in S = 3 steps; MDLM, arXiv 2406.07524;
    ReMDM, 2503.00307; a Halton order, 2503.17076. One world model, the same weights for all.
Command: python -m experiments.decoders --scale smoke|cpu|minatar|paper [--data DIR]
Time: minatar 50 minutes for one seed on two very busy cores, most of it compilation.
Result: results/decoders_space_invaders: maskgit's latents become too typical as S grows, the
    others' do not; its single dreams are nearer to reality all the same.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from experiments.study.plan import DREAM_METRICS, Scale, Study, Variant
from experiments.study.run import main

_JOINT = {"nats": "nats per latent", "pair_score": "pair score", "alike": "too alike"}
_DECODERS = ("maskgit", "mdlm", "remdm", "halton")


def variants(scale: Scale) -> Sequence[Variant]:
    """One world model, measured with every decoder and S."""
    steps = (1, 3) if scale.preset == "tiny" else (1, 2, 3, 4, 8, 16)
    readings = {
        f"{name}, S = {s}": {"behavior.decode_method": name, "behavior.decode_steps": s}
        for name in _DECODERS
        for s in steps
    }
    return [Variant(label="", readings=readings)]


STUDY = Study(
    name="decoders",
    claim=__doc__.splitlines()[0],
    variants=variants,
    metrics={**_JOINT, **DREAM_METRICS, "decode_us": "decoding, us per latent"},
    curves={},
    points={**_JOINT, "reward_error": "reward error"},
    swept="S",
    against="maskgit, S = 3",
)

if __name__ == "__main__":
    sys.exit(main(STUDY))
