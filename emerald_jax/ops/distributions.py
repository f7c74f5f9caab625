"""Distributions: categorical ones as plain arrays (mixing, sampling, divergences), policies.

All results are float32 with any compute type: the 8 significant bits of bfloat16 are too few for a
logarithm. The last axis of logits and probabilities holds the K classes.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Float32, Int32

from emerald_jax.actions import ActionSpace
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


def any_class(u: Float32[AnyArray, "*n"], classes: int) -> Int32[Array, "*n"]:
    """Class indices in [0, K), K = ``classes``, all equally probable, from ``u`` in [0, 1)."""
    return jnp.minimum((u * classes).astype(jnp.int32), classes - 1)


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


def standard_normal(u: Float32[AnyArray, "*n"]) -> Float32[Array, "*n"]:
    """Standard normal numbers at the quantiles u in [0, 1); 0 becomes the smallest one."""
    least = jnp.nextafter(jnp.float32(-1), jnp.float32(0))
    return math.sqrt(2) * jax.lax.erf_inv(jnp.maximum(2 * u - 1, least))


class BoundedNormal(NamedTuple):
    """Independent normal distributions, log-probability and entropy summed (DreamerV3).

    Attributes:
        mean: `[..., A]` in (-1, 1).
        std: `[..., A]` in (0.1, 1).
    """

    mean: AnyArray
    std: AnyArray

    @classmethod
    def of(cls, outputs: AnyArray) -> BoundedNormal:
        """Mean tanh(x) and deviation 0.1 + 0.9 sigmoid(y + 2) of ``outputs`` x, y `[..., 2 A]`."""
        x, y = jnp.split(outputs.astype(jnp.float32), 2, axis=-1)
        return cls(jnp.tanh(x), 0.1 + 0.9 * jax.nn.sigmoid(y + 2))

    def log_prob(self, value: AnyArray) -> Array:
        """`[...]` of values `[..., A]`, which may lie outside [-1, 1]."""
        z = (value - self.mean) / self.std
        each = -0.5 * jnp.square(z) - jnp.log(self.std) - 0.5 * math.log(2 * math.pi)
        return each.sum(-1)

    def entropy(self) -> Array:
        """`[...]` in nats."""
        return (jnp.log(self.std) + 0.5 * math.log(2 * math.pi * math.e)).sum(-1)


class Policy:
    """Distribution of an action: independent categories with a uniform share, bounded normals.

    Attributes:
        parts: per group of :meth:`ActionSpace.groups` the log-probabilities `[..., K]` of a
            category, or a :class:`BoundedNormal`.
    """

    def __init__(self, actions: ActionSpace, outputs: AnyArray, unimix: float) -> None:
        """From the actor's ``outputs`` `[..., actions.outputs]` and the uniform share."""
        self.actions, self.parts, self._lead = actions, [], outputs.shape[:-1]
        start, groups = 0, actions.groups()
        for _, size in groups:
            width = size if size > 0 else -2 * size
            part = outputs if len(groups) == 1 else outputs[..., start : start + width]
            is_category = size > 0
            self.parts.append(
                mixed_log_probs(part, unimix) if is_category else BoundedNormal.of(part)
            )
            start += width

    def sample(self, key: Array) -> Array:
        """Actions `[...]` int32 or `[..., A]` float32; numbers may lie outside [-1, 1].

        ``key`` is consumed: one key, keys of the leading axes, or numbers in [0, 1) in the shape of
        the actions.
        """
        if self.actions.discrete:
            return sample_categorical(key, self.parts[0])
        u, entries = uniform(key, (*self._lead[key.ndim :], *self.actions.shape)), []
        for (at, size), part in zip(self.actions.groups(), self.parts, strict=True):
            if size > 0:
                entries.append(choose(u[..., at], jnp.exp(part))[..., None].astype(jnp.float32))
            else:
                noise = standard_normal(u[..., at : at - size])
                entries.append(part.mean + part.std * noise)
        return jnp.concatenate(entries, axis=-1)

    def mode(self) -> Array:
        """The most probable actions."""
        best = [
            part.mean if isinstance(part, BoundedNormal) else jnp.argmax(part, axis=-1)
            for part in self.parts
        ]
        if self.actions.discrete:
            return best[0].astype(jnp.int32)
        rows = [x if x.ndim > len(self._lead) else x[..., None].astype(jnp.float32) for x in best]
        return jnp.concatenate(rows, axis=-1)

    def act(self, key: Array | None = None) -> Array:
        """Actions to take: a sample, or the mode without a key; numbers are cut to [-1, 1]."""
        action = self.mode() if key is None else self.sample(key)
        if self.actions.discrete:
            return action
        low, high = (jnp.broadcast_to(x, action.shape) for x in self.actions.bounds)
        return jnp.clip(action, low, high)

    def log_prob(self, action: AnyArray) -> Array:
        """`[...]` log-probability, or density, of actions."""
        if self.actions.discrete:
            return take_class(self.parts[0], action)
        terms = [
            take_class(part, action[..., at].astype(jnp.int32))
            if size > 0
            else part.log_prob(action[..., at : at - size])
            for (at, size), part in zip(self.actions.groups(), self.parts, strict=True)
        ]
        return sum(terms[1:], terms[0])

    def entropy(self) -> Array:
        """`[...]` in nats; the differential entropy of numbers, which may be negative."""
        terms = [
            part.entropy() if isinstance(part, BoundedNormal) else entropy(part)
            for part in self.parts
        ]
        return sum(terms[1:], terms[0])

    def finite(self) -> Array:
        """`[]` bool, whether no output is NaN or infinite."""
        finite = [jnp.all(jnp.isfinite(x)) for x in jax.tree.leaves(self.parts)]
        return finite[0] if len(finite) == 1 else jnp.all(jnp.stack(finite))
