"""A memory probe: a cue is shown once and asked for k frames later.

An episode is k + 1 frames. The first is the cue, one of two colours; then come grey frames of
random shades under random actions, which tell nothing; the last is white and brings the reward: +1
for one cue, -1 for the other. So the reward of the last frame can be foretold by who remembers the
first, and by nobody else.
"""

from __future__ import annotations

import numpy as np

from emerald_jax.replay import Replay

NUM_ACTIONS = 2
_CUES = np.array([[220, 40, 40], [40, 40, 220]], np.uint8)


def probe_replay(delay: int, steps: int, image_size: int, seed: int, envs: int = 8) -> Replay:
    """Recorded episodes of the probe.

    Args:
        delay: frames k between cue and question, at least 2.
        steps: steps to record, over all environments; a few more are.
        image_size: height and width of the images, in pixels.
        seed: of cues, shades and actions.
        envs: environments side by side; all are in step.
    """
    rng = np.random.default_rng(seed)
    episodes = -(-steps // (delay * envs))
    rows = episodes * (delay + 1)
    replay = Replay(rows * envs, envs, (image_size, image_size, 3))
    for _ in range(episodes):
        cue = rng.integers(0, 2, envs)
        for age in range(delay + 1):
            replay.append(_row(rng, cue, age, delay, replay.image_shape))
    return replay


class _Row:
    """One record of every environment, as ``replay.Record`` wants it."""

    def __init__(self, **columns: np.ndarray) -> None:
        self.__dict__.update(columns)


def _row(
    rng: np.random.Generator, cue: np.ndarray, age: int, delay: int, shape: tuple[int, ...]
) -> _Row:
    """Row ``age`` of an episode of every environment."""
    envs, last = len(cue), age == delay
    shade = rng.integers(30, 200, (envs, 1, 1, 1)) if not last else np.full((envs, 1, 1, 1), 255)
    image = np.broadcast_to(shade, (envs, *shape)).astype(np.uint8)
    if age == 0:
        image = np.broadcast_to(_CUES[cue][:, None, None], (envs, *shape)).copy()
    flag = np.full(envs, last)
    return _Row(
        image=image,
        action=np.full(envs, -1, np.int32)
        if age == 0
        else rng.integers(0, NUM_ACTIONS, envs).astype(np.int32),
        reward=(np.where(cue == 0, 1.0, -1.0) * last).astype(np.float32),
        is_first=np.full(envs, age == 0),
        is_last=flag,
        is_terminal=flag,
    )
