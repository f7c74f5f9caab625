"""Imported once by the fork server of worker processes: warms Crafter up for all of them.

numba takes half a second to load Crafter's compiled noise. Done here, workers inherit the result;
done in each of sixteen workers, it costs seconds before the first frame.
"""

from __future__ import annotations

from emerald_jax.envs.crafter import CrafterEnv

CrafterEnv().reset(seed=0)
