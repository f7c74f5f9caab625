"""What is each part of EMERALD worth to the agent? Complete runs with one part exchanged.

Source: EMERALD, arXiv 2507.04075, ablations, Crafter score after 10 M steps: linear head 51.6 %,
    S = 1 53.8 %, S = 3 58.1 %; RSSM with a vector latent 34.9 %, with a spatial one 40.4 %.
Command: python -m experiments.agents --scale smoke|cpu|paper [--out DIR] [--seeds N]
Time: cpu six variants of Catch, 3 to 8 minutes a run on one busy core; paper on GPUs (not run).
Result: results/agents, 1 seed: Catch is too easy; all but the vector latent learn it.
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


POINTS = {"score": "return, last 100 episodes", "score_over_run": "return, complete training"}
STUDY = Study(
    name="agents",
    claim=__doc__.splitlines()[0],
    scales=SCALES,
    variants=variants,
    metrics=POINTS,
    points=POINTS,
    samples="training episodes",
)

if __name__ == "__main__":
    sys.exit(main(STUDY))
