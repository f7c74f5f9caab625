"""Does a prior that also sees the last latent, around each position, dream better?

Source: own choice; in EMERALD, arXiv 2507.04075, the priors see the past only in h_t.
Command: emerald-jax collect --policy pretrained/breakout --steps 100000 --out runs/breakout
    python -m experiments.prior_input --scale minatar --data runs/breakout [--out DIR]
Time: minatar 8 minutes for each of four models on one core.
Result: results/prior_input_minatar: the first imagined frames are better, the rewards worse.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace

from experiments.study.plan import DECODING, MINATAR, SCALES, Scale, Study, Variant
from experiments.study.run import main


def variants(scale: Scale) -> Sequence[Variant]:
    """MaskGIT with h_t alone, or with z_{t-1} and the action too; centred images or not."""
    del scale
    return [
        Variant(
            label=name + (", centred" if center else ""),
            changes={"model.prior_input": kind, "model.center": center},
        )
        for center in (False, True)
        for kind, name in {"h": "h", "hz": "h and z"}.items()
    ]


#: The preset of today, except that every sequence is drawn in the same way.
_TODAY = replace(MINATAR, updates=2500, changes={"replay.best_of": 1})

STUDY = Study(
    name="prior_input",
    claim=__doc__.splitlines()[0],
    scales={**SCALES, "minatar": _TODAY},
    variants=variants,
    **DECODING,
    against="h",
)

if __name__ == "__main__":
    sys.exit(main(STUDY))
