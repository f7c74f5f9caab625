"""Rewards and values as distributions over bins: symlog, two-hot (DreamerV3, arXiv 2301.04104)."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Float

from emerald_jax.types import AnyArray, Array

#: Bins cover symlog values from -LIMIT to LIMIT, about ±4.9e8 in reward units.
LIMIT = 20.0


def symlog(x: Array) -> Array:
    """sign(x) * log(1 + |x|): compresses large magnitudes, close to x for small ones."""
    return jnp.sign(x) * jnp.log1p(jnp.abs(x))


def symexp(x: Array) -> Array:
    """sign(x) * (exp(|x|) - 1), the inverse of :func:`symlog`."""
    return jnp.sign(x) * jnp.expm1(jnp.abs(x))


def bin_centers(bins: int) -> Float[Array, " {bins}"]:
    """Centres `[bins]` float32 of the bins, from -20 to 20, equally spaced in symlog space."""
    return jnp.linspace(-LIMIT, LIMIT, bins, dtype=jnp.float32)


def two_hot(x: Float[AnyArray, "*n"], bins: int) -> Float[Array, "*n {bins}"]:
    """Weights `[..., bins]` on the two bins around symlog(x), so that their mean is symlog(x).

    x `[...]` is in reward units, clipped to the outermost bins.
    """
    place = (symlog(x.astype(jnp.float32)) + LIMIT) * ((bins - 1) / (2 * LIMIT))
    place = jnp.clip(place, 0.0, bins - 1.0)
    # Weight of each bin: 1 - |distance|, where positive.
    center = jax.lax.broadcasted_iota(jnp.float32, (*x.shape, bins), x.ndim)
    return jnp.maximum(0.0, 1.0 - jnp.abs(place[..., None] - center))


def two_hot_loss(
    logits: Float[AnyArray, "*n bins"], target: Float[AnyArray, "*n"]
) -> Float[Array, "*n"]:
    """Cross-entropy `[...]` in nats between logits `[..., bins]` and the two-hot target `[...]`."""
    log_probs = jax.nn.log_softmax(logits.astype(jnp.float32), axis=-1)
    return -jnp.sum(two_hot(target, logits.shape[-1]) * log_probs, axis=-1)


def two_hot_mean(logits: Float[AnyArray, "*n bins"]) -> Float[Array, "*n"]:
    """Expected scalar `[...]` in reward units: symexp(sum p b), never sum p symexp(b)."""
    probs = jax.nn.softmax(logits.astype(jnp.float32), axis=-1)
    centers = bin_centers(logits.shape[-1])
    # Differences of mirrored bins: an untrained (uniform) head predicts exactly zero.
    mean = 0.5 * jnp.sum((probs - probs[..., ::-1]) * jnp.broadcast_to(centers, probs.shape), -1)
    return symexp(mean)
