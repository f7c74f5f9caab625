"""Looking inside the world model: how a latent is decoded, and what the past is attended to.

Pure functions over parameters, for reports; nothing here is on the path of training or acting. The
attention weights are taken by intercepting the transformer's own methods, so the modules need no
switch for it.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Float32

from emerald_jax.imagination import maskgit_decode
from emerald_jax.models.tssm import HIDDEN, RelativeAttention, skew
from emerald_jax.models.world_model import WorldModel
from emerald_jax.trained.dreaming import show
from emerald_jax.training.state import Learner
from emerald_jax.types import Array, Batch, Key, Params, State


class DecodingTrace(NamedTuple):
    """How one latent came about, decoding step by decoding step.

    Attributes:
        frame: `[S, height, width, 3]` uint8, what the latent looks like at the end of each step.
        masked: `[S, P, G]` bool, the tokens that were MASK at its start and are drawn in it.
        tokens: `[S, P, G]` int32, the tokens in place at the end of each step. One that a later
            step draws again stands at its likeliest class here.
        confidence: `[S, P, G]` float32, the probability of each of them when it was predicted.
    """

    frame: Array
    masked: Array
    tokens: Array
    confidence: Array


def decoding_trace(
    params: dict[str, Params], h: Float[Array, " D"], key: Key, *, learner: Learner, steps: int
) -> DecodingTrace:
    """Decode a latent with MaskGIT, and keep what stood there after each step.

    Step by step the same draws as :func:`imagination.decode`: decoding in s steps is not a
    beginning of decoding in S, so every step is read off one decoding.

    Args:
        params: ``world_model``.
        h: `[D]`.
        key: consumed; the same tokens as ``decode`` gives with it.
        learner: networks and settings (static).
        steps: S >= 1 (static).

    Returns:
        :class:`DecodingTrace`.
    """
    model, variables = learner.model, {"params": params["world_model"]}
    features = model.apply(variables, h, method=WorldModel.prior_features)
    # The tokens put in are those of the step before, the masked ones replaced: a decoding of S
    # steps asks S times, and what it asks with tells what it had drawn, except for what it masks.
    asked: list[Array] = []

    def probs_fn(tokens: Array | None) -> Array:
        asked.append(
            jnp.exp(model.apply(variables, features, tokens, method=WorldModel.masked_prior))
        )
        return asked[-1]

    shape = (features.shape[-2], model.config.groups)
    decoded = maskgit_decode(probs_fn, key, steps=steps, shape=shape)
    tokens, sure = [decoded.z], [jnp.exp(decoded.log_prob)]
    # Backwards: a token masked in step s + 1 was another before; the likeliest stands for it.
    for s in range(steps - 1, 0, -1):
        again = decoded.masked[s]
        best = asked[s - 1]
        tokens.insert(0, jnp.where(again, jnp.argmax(best, -1), tokens[0]))
        sure.insert(0, jnp.where(again, best.max(-1), sure[0]))
    z = jnp.stack(tokens)
    state = State(z, jnp.broadcast_to(h, (steps, *h.shape)))
    frame = show(params, state, learner=learner).frame
    return DecodingTrace(frame, jnp.stack(decoded.masked), z, jnp.stack(sure))


def attention_weights(
    params: dict[str, Params], sequence: Batch, key: Key, *, learner: Learner
) -> Float32[Array, "blocks heads L keys"]:
    """How strongly each step of a real sequence attends to each step of its past.

    Args:
        params: ``world_model``.
        sequence: :class:`Batch` without its leading B, its carry included.
        key: consumed; samples the latents.
        learner: networks and settings (static); its sequence model must be the transformer.

    Returns:
        `[blocks, heads, L, C + L]` float32, each row sums to 1 over the tokens that are visible.
    """
    found: list[Array] = []

    def tap(run: Any, args: tuple, kwargs: dict, context: nn.module.InterceptorContext) -> Any:
        if isinstance(context.module, RelativeAttention) and context.method_name == "chunk":
            found.append(_chunk_weights(context.module, *args[:3]))
        return run(*args, **kwargs)

    with nn.intercept_methods(tap):
        learner.model.apply({"params": params["world_model"]}, sequence, key)
    return jnp.stack(found)


def _chunk_weights(
    attention: RelativeAttention, x: Array, past: tuple[Array, Array], visible: Array
) -> Array:
    """The weights inside :meth:`RelativeAttention.chunk`, `[heads, L, C + L]`."""
    query, key, _ = attention.project(x)
    keys = jnp.concatenate([past[0].astype(attention.dtype), key])
    content, distance = attention.biased(query)
    scores = jnp.einsum("qhd,khd->hqk", content, keys)
    scores = scores + skew(attention.distance_terms(distance), keys.shape[0])
    scores = jnp.where(visible[None], scores.astype(jnp.float32), HIDDEN)
    return jax.nn.softmax(scores, axis=-1)


def by_distance(
    weights: Float32[np.ndarray, "*n L keys"], context: int
) -> Float32[np.ndarray, "*n L {context}+1"]:
    """Attention laid out by how far back it looks.

    Args:
        weights: `[..., L, C + L]` from :func:`attention_weights`.
        context: C.

    Returns:
        `[..., L, C + 1]`: 0 is the newest token, C the farthest.
    """
    length = weights.shape[-2]
    key = context + np.arange(length)[:, None] - np.arange(context + 1)[None]
    return np.take_along_axis(
        weights, np.broadcast_to(key, (*weights.shape[:-2], *key.shape)), axis=-1
    )
