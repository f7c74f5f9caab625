"""Are three MaskGIT decoding steps enough? The linear head and S = 1 ... 16 on the same weights.

Source: EMERALD, arXiv 2507.04075, ablation of agents on Crafter: score 51.6 % with the linear head,
    53.8 % with S = 1, 58.1 % with S = 3. Here the world model alone.
Command: python -m experiments.decoding_steps --scale smoke|cpu|minatar|paper [--data DIR]
Time: cpu 36 minutes for three seeds on 2 busy cores; minatar 11 minutes for one seed.
Result: results/decoding_steps*: S = 3 beats the linear head and S = 1 on the latents.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from experiments.study.plan import DECODING, Scale, Study, Variant
from experiments.study.run import main


def variants(scale: Scale) -> Sequence[Variant]:
    """One world model, measured with every S."""
    steps = (0, 1, 3) if scale.preset == "tiny" else (0, 1, 2, 3, 5, 8, 16)
    names = {s: f"S = {s}" if s else "linear head" for s in steps}
    return [Variant(label="", readings={names[s]: {"behavior.decode_steps": s} for s in steps})]


STUDY = Study(
    name="decoding_steps",
    claim=__doc__.splitlines()[0],
    variants=variants,
    **DECODING,
    against="S = 3",
)

if __name__ == "__main__":
    sys.exit(main(STUDY))
