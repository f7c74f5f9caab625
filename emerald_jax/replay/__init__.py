"""Experience in host memory: the store (``store``) and its two samplers (``samplers``).

The docstring of ``store`` defines the alignment of actions and rewards, and episode boundaries.
"""

from emerald_jax.replay.samplers import Sampler, StreamSampler, WindowSampler, make_sampler
from emerald_jax.replay.store import COLUMNS, Replay, ReplayError

__all__ = [
    "COLUMNS",
    "Replay",
    "ReplayError",
    "Sampler",
    "StreamSampler",
    "WindowSampler",
    "make_sampler",
]
