"""Categorical distributions as plain arrays: mixing, sampling, divergences.

All results are float32 with any compute type: the 8 significant bits of bfloat16 are too few for a
logarithm. The last axis of logits and probabilities holds the K classes.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Float32, Int32

from emerald_jax.ops.random import uniform
from emerald_jax.types import AnyArray, Array, Key


def mixed_probs(logits: Float[AnyArray, "*n K"], unimix: float) -> Float32[Array, "*n K"]:
    """Probabilities of a categorical mixed with the uniform distribution.

    (1 - unimix) * softmax(logits) + unimix / K: no class has probability zero, so no KL is infinite
    (DreamerV3, arXiv 2301.04104, "unimix"). Losses need the logarithm, :func:`mixed_log_probs`.
    """
    probs = jax.nn.softmax(logits.astype(jnp.float32), axis=-1)
    return probs if unimix == 0 else (1.0 - unimix) * probs + unimix / logits.shape[-1]


def mixed_log_probs(logits: Float[AnyArray, "*n K"], unimix: float) -> Float32[Array, "*n K"]:
    """Logarithm of :func:`mixed_probs`; with ``unimix`` 0, the exact log-softmax."""
    if unimix == 0:
        return jax.nn.log_softmax(logits.astype(jnp.float32), axis=-1)
    return jnp.log(mixed_probs(logits, unimix))


def choose(u: Float32[AnyArray, "*n"], probs: Float32[AnyArray, "*n K"]) -> Int32[Array, "*n"]:
    """Class indices in [0, K) by inverting the cumulative distribution at ``u`` in [0, 1).

    This needs one uniform number per sample where ``jax.random.categorical`` needs K Gumbel
    numbers: 512 instead of 16 384 for each decoding step of an imagined state (O). The cumulative
    sum is a product with a triangular matrix, which is fast on every back end.
    """
    classes = probs.shape[-1]
    upper = np.triu(np.ones((classes, classes), np.float32))
    cumulative = jnp.matmul(probs, upper, precision=jax.lax.Precision.HIGHEST)
    # Scaled by the total, rounding cannot select an index past the last class.
    below = cumulative <= (u * cumulative[..., -1])[..., None]
    return jnp.minimum(jnp.sum(below, axis=-1, dtype=jnp.int32), classes - 1)


def sample_categorical(key: Key, log_probs: Float32[AnyArray, "*n K"]) -> Int32[Array, "*n"]:
    """Sample class indices of normalised ``log_probs``; see :func:`choose`.

    ``key`` is consumed: one key, keys of the leading axes, or the numbers u `[...]` themselves.
    """
    return choose(uniform(key, log_probs.shape[key.ndim : -1]), jnp.exp(log_probs))


def gumbel(u: Array) -> Array:
    """Standard Gumbel noise -log(-log u) of u in [0, 1); 0 becomes the smallest normal number."""
    return -jnp.log(-jnp.log(jnp.maximum(u, jnp.finfo(jnp.float32).tiny)))


def straight_through(
    index: Int32[AnyArray, "*n"], log_probs: Float32[AnyArray, "*n K"]
) -> Float32[Array, "*n K"]:
    """One-hot sample whose gradient is that of the probabilities.

    Forward: one_hot(index); backward: d probs (DreamerV2, arXiv 2010.02193, algorithm 1).
    """
    probs = jnp.exp(log_probs)
    hard = jax.nn.one_hot(index, log_probs.shape[-1], dtype=probs.dtype)
    return hard + probs - jax.lax.stop_gradient(probs)


def take_class(
    values: Float32[AnyArray, "*n K"], index: Int32[AnyArray, "*n"]
) -> Float32[Array, "*n"]:
    """Select the entry of each given class: a masked sum, as accelerators gather slowly."""
    classes = jax.lax.broadcasted_iota(index.dtype, values.shape, values.ndim - 1)
    return jnp.sum(jnp.where(classes == index[..., None], values, 0), axis=-1)


def kl_divergence(
    log_p: Float32[AnyArray, "*n K"], log_q: Float32[AnyArray, "*n K"]
) -> Float32[Array, "*n"]:
    """KL(p || q) = sum_k p_k (log p_k - log q_k), in nats, of normalised log-probabilities."""
    return jnp.sum(jnp.exp(log_p) * (log_p - log_q), axis=-1)


def entropy(log_probs: Float32[AnyArray, "*n K"]) -> Float32[Array, "*n"]:
    """Entropy -sum_k p_k log p_k, in nats, of normalised log-probabilities."""
    return -jnp.sum(jnp.exp(log_probs) * log_probs, axis=-1)
