"""Pytrees, function aliases and the dimension key of all docstrings.

Dimensions, with their values in Crafter:
    B, L: sequences per batch, steps per sequence [16, 64]; T: time in general.
    H: imagined steps per rollout [15]; n: imagination starts per sequence [16].
    C: left context of the temporal transformer [64]; D: width of h_t [512]; A: entries of an
    action vector, none for discrete actions.
    P: latent positions, h * w, or 1 in a vector [16]; N: tokens per latent state, P * G [512].
    G, K: categorical groups per position, classes of each [32, 32].

Index convention, everywhere: the action, reward, ``is_last`` and ``is_terminal`` stored at index t
are those that *led into* image t. ``is_first[t]`` marks an episode's first frame: no action led
into it (stored as -1, or NaN in a vector; fed as zeros) and its reward is 0. ``is_terminal`` is
termination by the environment; a time limit is ``is_last`` without ``is_terminal``.

Functions take any leading axes `[...]`, usually the sequences of a batch, with one random key per
sequence, so that results do not depend on the number of devices that share a batch.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

Array = jax.Array
#: A JAX or NumPy array.
AnyArray = jax.Array | np.ndarray
Key = jax.Array
Params = Any


def key_of(seed: int) -> Key:
    """Random key of a seed in 0 … 2**63 - 1, different for every seed.

    ``jax.random.key`` reads only the lowest 32 bits, so the higher ones are folded in.
    """
    key = jax.random.key(np.uint32(seed & 0xFFFFFFFF))
    return jax.random.fold_in(key, seed >> 32) if seed >> 32 else key


class Memory(NamedTuple):
    """Keys and values of past tokens, oldest first.

    Attributes:
        keys: `[blocks, T, heads, D / heads]`.
        values: `[blocks, T, heads, D / heads]`.
        valid: `[T]` bool, True for tokens of the newest token's episode.
    """

    keys: Array
    values: Array
    valid: Array


class Recurrent(NamedTuple):
    """Memory of a GRU.

    Attributes:
        h: `[..., D]` its newest state.
        valid: `[...]` bool, False at the start of a sequence, where ``h`` is undefined.
    """

    h: Array
    valid: Array


class Carry(NamedTuple):
    """State of the world model between two chunks, or two acting steps, of a sequence.

    Attributes:
        memory: :class:`Memory` of the last C tokens, or :class:`Recurrent`; all zeros if empty.
        z: `[P, G]` int32, class indices of the newest latent.
    """

    memory: Any
    z: Array


class State(NamedTuple):
    """The model state s_t = (z_t, h_t), input of the actor, the critic and the other heads.

    Attributes:
        z: `[..., P, G]` int32 class indices.
        h: `[..., D]` output of the sequence model for z_{1:t-1}, a_{1:t-1}.
    """

    z: Array
    h: Array


class Played(NamedTuple):
    """The newest W steps of E training environments, oldest first, for ``behavior.real_weight``.

    Attributes:
        state: :class:`State` `[E, W]` that the agent was in.
        action: `[E, W]` int32 or `[E, W, A]` float32, taken in it.
        log_prob: `[E, W]` float32, of the action when it was taken.
        reward: `[E, W]` float32, the reward that came with the state.
        is_first: `[E, W]` bool, an episode's first frame.
        is_terminal: `[E, W]` bool, termination (never a time limit).
        due: `[E, W]` bool, the policy's own steps that no update has learned from yet.
    """

    state: State
    action: Array
    log_prob: Array
    reward: Array
    is_first: Array
    is_terminal: Array
    due: Array


class Batch(NamedTuple):
    """A training batch from the replay. Without the leading B, one sequence.

    Attributes:
        image: `[B, L, height, width, 3]` uint8.
        action: `[B, L]` int32 or `[B, L, A]` float32, the action that led into the image; -1, or
            NaN, where none did (see ``actions.py``).
        reward: `[B, L]` float32, the reward that came with the image.
        is_first: `[B, L]` bool, an episode's first frame.
        is_last: `[B, L]` bool, an episode's last frame: termination or truncation.
        is_terminal: `[B, L]` bool, termination (never a time limit).
        reset: `[B, L]` bool, forget everything before this frame: True wherever ``is_first`` is,
            and where a sequence starts in the middle of an episode.
        carry: :class:`Carry` `[B]` of each sequence's past, set by the training loop; else None.
        played: :class:`Played`, set by the training loop if ``behavior.real_weight`` is not 0.
    """

    image: Array
    action: Array
    reward: Array
    is_first: Array
    is_last: Array
    is_terminal: Array
    reset: Array
    carry: Carry | None = None
    played: Played | None = None


class Before(NamedTuple):
    """What led into a state; read by the priors if ``model.prior_input`` is ``hz``.

    Attributes:
        z: `[..., P, G]` int32 class indices, or `[..., P, G, K]` float32, z_{t-1}.
        action: `[...]` int32 or `[..., A]` float32, taken in it.
        reset: `[...]` bool, True where z_{t-1} is unknown; None if nowhere.
    """

    z: Array
    action: Array
    reset: Array | None = None


class Starts(NamedTuple):
    """Starts of imagination: n states of one real sequence, and their shared past.

    Attributes:
        state: :class:`State` with leading `[n]`.
        past: context of the sequence model: ``tssm.SharedPast``, or the empty ``sequence.NoPast``.
    """

    state: State
    past: Any


class Trajectory(NamedTuple):
    """An imagined rollout.

    Attributes:
        state: :class:`State` with leading `[H + 1, n]`; index 0 is the start.
        action: `[H, n]` int32 or `[H, n, A]` float32; ``action[k]`` was taken in ``state[k]``.
    """

    state: State
    action: Array


#: ``policy(params, state, step, key) -> [n] or [n, A]`` actions; ``step`` counts from 0.
PolicyFn = Callable[[Params, State, Array, Key], Array]

#: ``step(params, carry, state, action, step, key) -> (carry, state)``: one imagined step.
StepFn = Callable[[Params, Any, State, Array, Array, Key], tuple[Any, State]]

#: ``ordered(previous, place, cache) -> ([..., G, K], cache)``: probabilities of one position's
#: tokens after those of the position before it, `[..., G]`; K stands before the first position.
OrderedFn = Callable[[Array, Array, Any], tuple[Array, Any]]

#: ``flow(tokens, time) -> [..., P, G, K]``: probabilities of every token's class given noisy tokens
#: `[..., P, G]` at a time in [0, 1].
FlowFn = Callable[[Array, float], Array]

#: ``probs(tokens) -> [..., P, G, K]``: probabilities of every token given the unmasked ones;
#: tokens `[..., P, G]` may be MASK (= K); None means that all are.
ProbsFn = Callable[[Array | None], Array]
