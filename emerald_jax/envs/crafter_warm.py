"""Imported once by the fork server of worker processes: loads Crafter's compiled noise for all.

numba needs half a second to load it. Workers inherit the result; done in each of sixteen workers,
it would cost seconds before the first frame.
"""

from __future__ import annotations

from emerald_jax.envs.crafter import CrafterEnv

CrafterEnv().reset(seed=0)
