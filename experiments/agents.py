"""What is each part of EMERALD worth to the agent? Complete runs with one part exchanged.

Claim: a spatial latent, a transformer and a MaskGIT in three steps each help the agent.
Source: EMERALD, arXiv 2507.04075, ablations on Crafter after 10 M steps: score 51.6 % with the
    linear head, 53.8 % with S = 1, 58.1 % with S = 3; with an RSSM 34.9 % with a vector latent and
    40.4 % with a spatial one. Here returns are measured; emerald-jax report scores Crafter runs.
Command: python -m experiments.agents --scale smoke|cpu|paper [--out DIR] [--seeds N]
Hardware and time: cpu six variants of Catch, 3 to 8 minutes a run on one busy core; smoke minutes,
    nearly all compilation; paper six Crafter runs a seed on GPUs (not run).
Seeds: cpu 2 (the committed result has 1), paper 3. The runs themselves are in OUT/runs.
Result: results/agents: Catch is too easy; five variants learn it, the vector latent does not.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from experiments.study.plan import PAPER, SMOKE, Scale, Study, Variant
from experiments.study.run import main

SCALES = {
    "smoke": replace(SMOKE, agent_preset="tiny", agent_changes={"devices": 1}),
    "cpu": replace(SMOKE, agent_preset="quickstart", seeds=2),
    "paper": replace(PAPER, agent_preset="crafter"),
}
#: The exchanged part, and the settings that exchange it.
PARTS: dict[str, dict[str, Any]] = {
    "EMERALD, S = 3": {},
    "S = 1": {"behavior.decode_steps": 1},
    "linear head": {"model.prior": "linear"},
    "autoregressive": {"model.prior": "autoregressive"},
    "vector latent": {"model.latent": "vector"},
    "RSSM": {"model.sequence": "rssm"},
}


def variants(scale: Scale) -> Sequence[Variant]:
    """EMERALD and five variants of it; the first three at ``smoke``."""
    found = [Variant(label=k, changes=changes, agent=True) for k, changes in PARTS.items()]
    return found[:3] if scale.agent_preset == "tiny" else found


STUDY = Study(
    name="agents",
    claim=__doc__.splitlines()[0],
    scales=SCALES,
    variants=variants,
    metrics={
        "score": "return, last 100 episodes",
        "score_over_run": "return, complete training",
    },
    points={"score": "last 100 episodes", "score_over_run": "complete training"},
    samples="training episodes",
)

if __name__ == "__main__":
    sys.exit(main(STUDY))
