"""How long does the model remember a cue? A transformer with its cache, without it, and a GRU.

Source: EMERALD, arXiv 2507.04075, argues that a transformer remembers more than an RSSM, whose
    gradient ends with the chunk of L steps. The probe (study/probe.py) is our own.
Command: python -m experiments.memory --scale smoke|cpu|paper [--out DIR]
Time: cpu 16 models of 2 to 5 minutes on 2 busy cores, one seed; smoke 1 minute; paper not run.
Result: results/memory: yes, up to C = 32 steps; with the paper's decoder of z and h not even 4.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace

from experiments.study.plan import PAPER, PROBE, SMOKE, Scale, Study, Variant
from experiments.study.run import main

#: Otherwise the decoder's errors train h_t to be the same whatever the past, before it is needed.
_DECODER = {"model.decoder_input": "z"}
#: L = 16 and C = 32: for k = 16 or less the cue is often in the same chunk; for k = 32 only in the
#: cache; for k = 64 a step in between must pass it on (two blocks reach 2 C steps back). At the
#: quickstart's learning rate h_t becomes a constant.
_WORLD = {
    "envs.image_size": 8,
    "model.context": 32,
    **_DECODER,
    "model.dropout": 0.0,
    "loss.image": 32.0,
    "optim.model_lr": 1e-3,
    "replay.length": 16,
    "replay.batch": 16,
}
_SIZES = dict(records=20_000, updates=1000, windows=128, context=1, horizon=1)
SCALES = {
    "smoke": replace(SMOKE, windows=32, changes=_DECODER),
    "cpu": replace(SMOKE, preset="quickstart", changes=_WORLD, **_SIZES),
    "paper": replace(PAPER, changes=_DECODER),
}
#: Kinds of memory, and their settings.
MEMORIES = {
    "transformer": {},
    "transformer, no cache": {"replay.sampler": "windows"},
    "transformer, decoder sees h": {"model.decoder_input": "zh"},
    "GRU": {"model.sequence": "rssm"},
}


def variants(scale: Scale) -> Sequence[Variant]:
    """Every kind of memory at every delay."""
    delays = (4,) if scale.preset == "tiny" else (4, 16, 32, 64)
    return [
        Variant(label=f"{name}, k = {delay}", changes=changes, data=f"{PROBE}{delay}")
        for delay in delays
        for name, changes in MEMORIES.items()
    ]


STUDY = Study(
    name="memory",
    claim=__doc__.splitlines()[0],
    scales=SCALES,
    variants=variants,
    metrics={"recall": "sign of the reward", "recall_pixels": "colour of the frame"},
    points={"recall": "cue recalled (chance 0.5)"},
    swept="k",
)

if __name__ == "__main__":
    sys.exit(main(STUDY))
