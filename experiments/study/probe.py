"""A memory probe: a cue is shown once and asked for k frames later.

An episode is k + 1 frames. The first is the cue, one of two colours. Then a grey bar starts in the
middle and random actions move it left and right, round the edges; it tells nothing of the cue. The
last frame shows the cue's colour again and brings the reward: +1 for one cue, -1 for the other. So
who has read all frames but the last can imagine that one, and foretell its reward, by remembering
the first, and in no other way.

The last frame is not a mere question: a model is taught its memory by frames that it must predict.
Where only the rare reward asks for the cue, h_t is trained to forget it first.
"""

from __future__ import annotations

import numpy as np

from emerald_jax.replay import Replay

NUM_ACTIONS = 2
#: Grey level of the bar.
_BAR = 160
_CUES = np.array([[220, 40, 40], [40, 40, 220]], np.uint8)


def probe_replay(delay: int, steps: int, image_size: int, seed: int, envs: int = 8) -> Replay:
    """Recorded episodes of the probe.

    Args:
        delay: frames k between cue and question, at least 2.
        steps: steps to record, over all environments; a few more are.
        image_size: height and width of the images, in pixels.
        seed: of cues and actions.
        envs: environments side by side; all are in step.
    """
    rng = np.random.default_rng(seed)
    episodes = -(-steps // (delay * envs))
    rows = episodes * (delay + 1)
    replay = Replay(rows * envs, envs, (image_size, image_size, 3))
    for _ in range(episodes):
        cue, place = rng.integers(0, 2, envs), np.full(envs, image_size // 2)
        for age in range(delay + 1):
            action = rng.integers(0, NUM_ACTIONS, envs).astype(np.int32)
            if age > 1:
                place = (place + 2 * action - 1) % image_size
            images = _images(cue, place, age, delay, image_size)
            replay.append(_row(images, cue, action, age, delay))
    return replay


def _images(cue: np.ndarray, place: np.ndarray, age: int, delay: int, size: int) -> np.ndarray:
    """What the environments show at ``age``: the cue, or the bars at ``place``."""
    shape = (len(cue), size, size, 3)
    if age in (0, delay):
        return np.broadcast_to(_CUES[cue][:, None, None], shape).copy()
    bar = np.arange(size)[None, None, :, None] == place[:, None, None, None]
    return np.broadcast_to(np.where(bar, _BAR, 0).astype(np.uint8), shape).copy()


class _Row:
    """One record of every environment, as ``replay.Record`` wants it."""

    def __init__(self, **columns: np.ndarray) -> None:
        self.__dict__.update(columns)


def _row(images: np.ndarray, cue: np.ndarray, action: np.ndarray, age: int, delay: int) -> _Row:
    """Row ``age`` of an episode of every environment."""
    flag = np.full(len(cue), age == delay)
    return _Row(
        image=images,
        action=action if age else np.full(len(cue), -1, np.int32),
        reward=(np.where(cue == 0, 1.0, -1.0) * flag).astype(np.float32),
        is_first=np.full(len(cue), age == 0),
        is_last=flag,
        is_terminal=flag,
    )
