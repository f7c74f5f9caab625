"""Imagination: rollouts inside the world model, and MaskGIT decoding of each imagined latent.

Two pure functions, both meant to be compiled whole:

* :func:`decode` draws z_t from h_t in S rounds of cosine-scheduled re-masking (section 4);
* :func:`imagine` runs H steps in one ``lax.scan``: act, advance the transformer, decode
  (section 5).

``imagine`` knows neither network: it takes any policy and any step function, so a test passes a
six-line fake and a user their own model. :func:`world_model_step` builds EMERALD's step.
No gradient flows through a rollout (REINFORCE); losses evaluate heads on the finished trajectory.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from emerald_jax.models.sequence import OwnMemory, empty_own_memory
from emerald_jax.models.world_model import Pass, WorldModel
from emerald_jax.ops.distributions import choose, gumbel, sample_categorical, take_class
from emerald_jax.ops.maskgit import lowest_confidence, mask_counts
from emerald_jax.types import (
    Array,
    Key,
    LogitsFn,
    Params,
    PolicyFn,
    Starts,
    State,
    StepFn,
    Trajectory,
)


class Decoded(NamedTuple):
    """A decoded latent and how sure the model was.

    Attributes:
        z: `[..., P, G]` int32 class indices.
        log_prob: `[..., P, G]` float32, of each token under the prediction it was drawn from.
        masked: S arrays `[..., P, G]` bool, the tokens that were MASK at the start of each step.
    """

    z: Array
    log_prob: Array
    masked: tuple[Array, ...]


def maskgit_decode(log_probs_fn: LogitsFn, key: Key, *, steps: int, shape: tuple) -> Decoded:
    """S-step MaskGIT decoding for any predictor (EMERALD; MaskGIT, arXiv 2202.04200).

    Step 0 samples every token from the all-MASK prediction. Each later step masks the n_s least
    confident of the tokens predicted last, predicts again and redraws those alone. Confidence is
    log p(drawn class) + Gumbel noise; tokens once kept stay kept.

    Args:
        log_probs_fn: tokens `[..., P, G]` int32, or None for all MASK -> `[..., P, G, K]`
            normalised float32 log-probabilities.
        key: consumed.
        steps: S >= 1.
        shape: `(..., P, G)`; MASK is the class index K, that of ``log_probs``' last axis.

    Returns:
        :class:`Decoded`.
    """
    counts = mask_counts(shape[-2] * shape[-1], steps)
    # All random numbers in one draw: a call of the generator costs more than its numbers do.
    u = jax.random.uniform(key, (2 * steps - 1, *shape))
    log_probs = log_probs_fn(None)
    z = choose(u[0], log_probs)
    sure = take_class(log_probs, z)
    masked = jnp.ones(shape, bool)
    history = [masked]
    flat = (*shape[:-2], shape[-2] * shape[-1])
    for s in range(1, steps):
        noisy = sure + gumbel(u[2 * s - 1])
        masked = lowest_confidence(noisy.reshape(flat), masked.reshape(flat), counts[s])
        masked = masked.reshape(shape)
        log_probs = log_probs_fn(jnp.where(masked, log_probs.shape[-1], z))
        drawn = choose(u[2 * s], log_probs)
        z = jnp.where(masked, drawn, z)
        sure = jnp.where(masked, take_class(log_probs, drawn), sure)
        history.append(masked)
    return Decoded(z, sure, tuple(history))


def decode(params: Params, h: Array, key: Key, *, model: WorldModel, steps: int) -> Decoded:
    """Draw z_t ~ p(z_t | h_t).

    Args:
        params: the world model's parameters.
        h: `[..., D]`.
        key: consumed; the same key gives the same tokens.
        model: the world model.
        steps: S; 1 is one parallel sample, 0 samples the linear dynamics head instead.

    Returns:
        :class:`Decoded` with leading dimensions of ``h``.
    """
    variables = {"params": params}
    features = model.apply(variables, h, method=WorldModel.prior_features)
    if steps == 0:
        log_probs = model.apply(variables, features, method=WorldModel.dynamics)
        z = sample_categorical(key, log_probs)
        return Decoded(z, take_class(log_probs, z), (jnp.ones(z.shape, bool),))

    def log_probs_fn(tokens: Array | None) -> Array:
        return model.apply(variables, features, tokens, method=WorldModel.masked_prior)

    shape = (*h.shape[:-1], model.config.grid**2, model.config.groups)
    return maskgit_decode(log_probs_fn, key, steps=steps, shape=shape)


def imagine(
    params: Params,
    state: State,
    carry: Any,
    key: Key,
    *,
    policy: PolicyFn,
    step: StepFn,
    horizon: int,
) -> Trajectory:
    """Roll n states H steps forward: one ``lax.scan``, whatever the policy and the model.

    Args:
        params: handed to ``policy`` and ``step`` untouched.
        state: :class:`State` `[n]`, where the rollouts start.
        carry: the step function's own memory (any pytree).
        key: consumed; one key per imagined step is split from it.
        policy: see :data:`emerald_jax.types.PolicyFn`.
        step: see :data:`emerald_jax.types.StepFn`.
        horizon: H.

    Returns:
        :class:`Trajectory` of `[H + 1, n]` states and `[H, n]` actions.
    """

    def body(loop: tuple[State, Any], inputs: tuple[Array, Key]) -> tuple:
        state, carry = loop
        index, step_key = inputs
        act_key, model_key = jax.random.split(step_key)
        action = policy(params, state, index, act_key)
        carry, next_state = step(params, carry, state, action, index, model_key)
        return (next_state, carry), (next_state, action)

    inputs = (jnp.arange(horizon), jax.random.split(key, horizon))
    _, (states, actions) = jax.lax.scan(body, (state, carry), inputs)
    states = jax.tree.map(lambda first, rest: jnp.concatenate([first[None], rest]), state, states)
    return Trajectory(states, actions)


def world_model_step(
    model: WorldModel, starts: Starts, *, decode_steps: int, horizon: int
) -> tuple[OwnMemory, StepFn]:
    """EMERALD's step function: cached transformer, then MaskGIT.

    Args:
        model: the world model.
        starts: :class:`Starts`; every rollout attends to its own past in the shared prefix.
        decode_steps: S.
        horizon: H, the imagined tokens there must be room for.

    Returns:
        the empty memory to start from, and the step. Its ``params`` are a dict whose
        ``"world_model"`` entry is used.
    """
    n = starts.position.shape[0]

    def step(
        params: Params, own: OwnMemory, state: State, action: Array, index: Array, key: Key
    ) -> tuple[OwnMemory, State]:
        h, own = model.apply(
            {"params": params["world_model"]},
            state,
            action,
            index,
            starts,
            own,
            method=WorldModel.imagine_step,
        )
        decoded = decode(params["world_model"], h, key, model=model, steps=decode_steps)
        return own, State(decoded.z, h)

    return empty_own_memory(model.config, n, horizon, starts.prefix.keys.dtype), step


def starts_from(passed: Pass, positions: Array) -> Starts:
    """Starts at given steps of one real sequence, sharing that sequence's keys and values.

    The keys, values, latents and h_t are those of the world-model loss' own forward pass; nothing
    is computed twice and no gradient flows back.

    Args:
        passed: the forward pass over the sequence.
        positions: `[n]` steps in [0, L).

    Returns:
        :class:`Starts`.
    """
    passed = jax.lax.stop_gradient(passed)
    context = passed.memory.keys.shape[1] - passed.state.h.shape[0]
    state = jax.tree.map(lambda x: x[positions], passed.state)
    return Starts(state, positions + context, passed.memory, passed.visible[positions])
