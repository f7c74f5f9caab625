"""A memory probe: a cue is shown once and shown again k frames later, with a reward.

The first of k + 1 frames shows the cue, one of two colours. Random actions move a grey bar. The
last frame shows the cue again and brings the reward: +1 for one cue, -1 for the other; both can be
predicted only by remembering the first frame. The cue is shown again because a model learns its
memory from frames that it must predict: the reward alone is too rare.
"""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np

from emerald_jax.replay import Replay

NUM_ACTIONS = 2
#: Grey level of the bar.
_BAR = 160
_CUES = np.array([[220, 40, 40], [40, 40, 220]], np.uint8)


def probe_replay(delay: int, steps: int, image_size: int, seed: int, envs: int = 8) -> Replay:
    """At least ``steps`` steps of episodes, the cue repeated after ``delay`` > 1 frames."""
    rng = np.random.default_rng(seed)
    episodes = -(-steps // (delay * envs))
    replay = Replay(episodes * (delay + 1) * envs, envs, (image_size, image_size, 3))
    for _ in range(episodes):
        cue, place = rng.integers(0, 2, envs), np.full(envs, image_size // 2)
        for age in range(delay + 1):
            action = rng.integers(0, NUM_ACTIONS, envs).astype(np.int32)
            if age > 1:
                place = (place + 2 * action - 1) % image_size
            bar = np.arange(image_size) == place[:, None]
            picture = np.where(bar, _BAR, 0).astype(np.uint8)[:, None, :, None]
            if age in (0, delay):
                picture = _CUES[cue][:, None, None]
            last = np.full(envs, age == delay)
            record = SimpleNamespace(
                image=np.broadcast_to(picture, (envs, image_size, image_size, 3)),
                action=action if age else np.full(envs, -1, np.int32),
                reward=(np.where(cue == 0, 1.0, -1.0) * last).astype(np.float32),
                is_first=np.full(envs, age == 0),
                is_last=last,
                is_terminal=last,
            )
            replay.append(record)
    return replay
