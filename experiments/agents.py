"""What is each part of EMERALD worth to the agent? Whole runs with one part exchanged.

Claim: a spatial latent, a transformer and a MaskGIT in three steps each help the agent.
Source: EMERALD, arXiv 2507.04075, ablations on Crafter after 10 M steps: a score of 51.6 % with the
    linear head, 53.8 % with S = 1, 58.1 % with S = 3; with an RSSM, 34.9 % with a vector latent and
    40.4 % with a spatial one. Measured here are returns; emerald-jax report scores Crafter's runs.
Command: python experiments/agents.py --scale smoke|cpu|paper [--out DIR] [--seeds N]
Cost: smoke some minutes, nearly all of it compiling; cpu six variants of Catch, three to eight
    minutes each and seed on a busy core (measured); paper six Crafter runs of 10 M steps a seed on
    GPUs.
Result: table.md, result.json, points.png in --out; the runs themselves in --out/runs
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

from experiments.study.plan import Scale, Study, Variant, paper_scale, smoke_scale
from experiments.study.study import main

SCALES = {
    "smoke": smoke_scale(agent_preset="tiny", agent_changes={"devices": 1}),
    "cpu": smoke_scale(agent_preset="quickstart", seeds=2),
    "paper": paper_scale(agent_preset="crafter"),
}
#: What is exchanged, by the settings that do it.
PARTS: dict[str, dict[str, Any]] = {
    "EMERALD, S = 3": {},
    "S = 1": {"behavior.decode_steps": 1},
    "linear head": {"model.prior": "linear"},
    "autoregressive": {"model.prior": "autoregressive"},
    "vector latent": {"model.latent": "vector"},
    "RSSM": {"model.sequence": "rssm"},
}


def variants(scale: Scale) -> Sequence[Variant]:
    """EMERALD and its five neighbours; the first three at smoke."""
    found = [Variant(label=k, changes=changes, agent=True) for k, changes in PARTS.items()]
    return found[:3] if scale.agent_preset == "tiny" else found


STUDY = Study(
    name="agents",
    claim=__doc__.splitlines()[0],
    scales=SCALES,
    variants=variants,
    metrics={
        "score": "return, last 100 episodes",
        "score_over_run": "return, whole training",
    },
    points={"score": "last 100 episodes", "score_over_run": "whole training"},
    samples="training episodes",
)

if __name__ == "__main__":
    sys.exit(main(STUDY))
