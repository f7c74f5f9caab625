"""The dimension key, the pytrees and the function aliases every other room speaks in.

Dimension key, used in every docstring:

====== =========================================== =================
symbol meaning                                     Crafter default
====== =========================================== =================
B, L   sequences per batch, steps per sequence     16, 64
T      time in general                             --
H      imagined steps per rollout                  15
C      left context of the temporal transformer    64
P      latent positions: h * w, or 1 in a vector   4 * 4 = 16
G, K   categorical groups per position, classes    32, 32
N      tokens per latent state, P * G              512
D      width of h_t                                512
A      actions                                     17
n      imagination starts per sequence             16
====== =========================================== =================

Index convention, everywhere: the action, reward, ``is_last`` and ``is_terminal`` stored at index t
are those that *led into* image t. ``is_first[t]`` marks an episode's first frame: no action led
into it (stored as -1, fed as a zero vector) and its reward is 0. ``is_terminal`` means that the
world ended; a time limit is ``is_last`` without ``is_terminal``.

The maths is written for one sequence (no B) and batched by ``jax.vmap``: one random key per
sequence makes results independent of how many devices share the batch.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

Array = jax.Array
#: JAX's arrays or NumPy's, where both may come in.
AnyArray = jax.Array | np.ndarray
Key = jax.Array
Params = Any


class Memory(NamedTuple):
    """Keys and values of past tokens, oldest first.

    Attributes:
        keys: `[blocks, T, heads, D / heads]`.
        values: `[blocks, T, heads, D / heads]`.
        valid: `[T]` bool, belongs to the episode of the newest token.
    """

    keys: Array
    values: Array
    valid: Array


class Recurrent(NamedTuple):
    """What a GRU remembers.

    Attributes:
        h: `[..., D]` its newest state.
        valid: `[...]` bool, False when nothing is known and ``h`` means nothing.
    """

    h: Array
    valid: Array


class Carry(NamedTuple):
    """What the world model hands from one chunk, or one acting step, of a sequence to the next.

    Attributes:
        memory: what the sequence model remembers: :class:`Memory` of the last C tokens, or
            :class:`Recurrent`. All zeros mean that nothing is known.
        z: `[P, G]` int32, class indices of the newest latent.
    """

    memory: Any
    z: Array


class Batch(NamedTuple):
    """What the replay hands to a training step. Shapes without the leading B are one sequence.

    Attributes:
        image: `[B, L, height, width, 3]` uint8.
        action: `[B, L]` int32, the action that led into the image; -1 where none did.
        reward: `[B, L]` float32, the reward that came with the image.
        is_first: `[B, L]` bool, an episode's first frame.
        is_last: `[B, L]` bool, an episode's last frame, for whatever reason.
        is_terminal: `[B, L]` bool, the world ended (never a time limit).
        reset: `[B, L]` bool, the model must forget everything before this frame. True wherever
            ``is_first`` is, and where a sequence is entered in the middle of an episode.
        carry: :class:`Carry` with leading `[B]`, what the model remembers of each sequence's past;
            the replay leaves it None and the training loop fills it in.
    """

    image: Array
    action: Array
    reward: Array
    is_first: Array
    is_last: Array
    is_terminal: Array
    reset: Array
    carry: Carry | None = None


class State(NamedTuple):
    """What the agent sees, s_t = (z_t, h_t).

    Attributes:
        z: `[..., P, G]` int32 class indices.
        h: `[..., D]` what the sequence model knows from z_{1:t-1}, a_{1:t-1}.
    """

    z: Array
    h: Array


class Starts(NamedTuple):
    """Where imagination starts: n states of one real sequence and the past they share.

    Attributes:
        state: :class:`State` with leading `[n]`.
        past: what the sequence model looks back at besides the state: ``models.tssm.SharedPast``,
            or nothing where h is all there is to know.
    """

    state: State
    past: Any


class Trajectory(NamedTuple):
    """An imagined rollout.

    Attributes:
        state: :class:`State` with leading `[H + 1, n]`; index 0 is the start.
        action: `[H, n]` int32; ``action[k]`` was taken in ``state[k]``.
    """

    state: State
    action: Array


#: ``policy(params, state, step, key) -> [n] int32`` actions; ``step`` counts imagined steps from 0.
PolicyFn = Callable[[Params, State, Array, Key], Array]

#: ``step(params, carry, state, action, step, key) -> (carry, state)``: one imagined step.
StepFn = Callable[[Params, Any, State, Array, Array, Key], tuple[Any, State]]

#: ``ordered(previous, place, cache) -> ([..., G, K], cache)``: probabilities of one position's
#: tokens after those of the position before it, `[..., G]`; K stands before the first position.
OrderedFn = Callable[[Array, Array, Any], tuple[Array, Any]]

#: ``probs(tokens) -> [..., P, G, K]``: probabilities of every token given those that are known;
#: tokens `[..., P, G]` may be MASK (= K), and None means that all are.
ProbsFn = Callable[[Array | None], Array]
