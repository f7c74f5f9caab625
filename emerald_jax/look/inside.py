"""Look inside the world model: how a latent is decoded, and which past steps are attended to.

Attention weights are taken by intercepting the transformer's own methods, so the modules need no
switch for it.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Float32

from emerald_jax.agent.dream import show
from emerald_jax.agent.state import Learner
from emerald_jax.imagination import maskgit_decode
from emerald_jax.models.tssm import HIDDEN, RelativeAttention, skew
from emerald_jax.models.world_model import WorldModel
from emerald_jax.types import Array, Batch, Key, Params, State


class DecodingTrace(NamedTuple):
    """How one latent was decoded, step by step.

    Attributes:
        frame: `[S, height, width, 3]` uint8, the decoded image at the end of each step.
        masked: `[S, P, G]` bool, tokens that are MASK at the start of the step and drawn in it.
        tokens: `[S, P, G]` int32 after each step; a token drawn again later at its likeliest class.
        confidence: `[S, P, G]` float32, probability of each token when it was predicted.
    """

    frame: Array
    masked: Array
    tokens: Array
    confidence: Array


def decoding_trace(
    params: dict[str, Params], h: Float[Array, " D"], key: Key, *, learner: Learner, steps: int
) -> DecodingTrace:
    """Decode `h` `[D]` with MaskGIT in ``steps`` >= 1 and record the tokens after each step.

    Makes the same draws as :func:`imagination.decode` with the same key. Decoding in s steps is not
    a prefix of decoding in S steps, so all steps are taken from one decoding.
    """
    model, variables = learner.model, {"params": params["world_model"]}
    features = model.apply(variables, h, method=WorldModel.prior_features)
    # Record the prediction of each of the S steps.
    predicted: list[Array] = []

    def probs_fn(tokens: Array | None) -> Array:
        log_probs = model.apply(variables, features, tokens, method=WorldModel.masked_prior)
        predicted.append(jnp.exp(log_probs))
        return predicted[-1]

    shape = (features.shape[-2], model.config.groups)
    decoded = maskgit_decode(probs_fn, key, steps=steps, shape=shape)
    tokens, sure = [decoded.z], [jnp.exp(decoded.log_prob)]
    # Backwards: a token masked in step s + 1 had another class before; show its most likely one.
    for s in range(steps - 1, 0, -1):
        again = decoded.masked[s]
        best = predicted[s - 1]
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

    ``sequence`` is a :class:`Batch` without its leading B, with its carry; the sequence model must
    be the transformer. Returns `[blocks, heads, L, C + L]` float32; each row sums to 1.
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
    """`[..., L, C + L]` weights by distance: `[..., L, C + 1]`, the newest token first."""
    length = weights.shape[-2]
    key = context + np.arange(length)[:, None] - np.arange(context + 1)[None]
    return np.take_along_axis(
        weights, np.broadcast_to(key, (*weights.shape[:-2], *key.shape)), axis=-1
    )
