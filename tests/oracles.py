"""Layers in plain float64 NumPy, one example at a time: oracles for the models."""

from __future__ import annotations

from typing import Any

import numpy as np
import scipy.special


def dense(params: dict[str, Any], x: np.ndarray) -> np.ndarray:
    """x W + b; the bias is optional."""
    y = x @ np.asarray(params["kernel"], np.float64)
    return y + np.asarray(params["bias"], np.float64) if "bias" in params else y


def norm(params: dict[str, Any], x: np.ndarray) -> np.ndarray:
    """Layer normalisation of the last axis."""
    centred = x - x.mean(-1, keepdims=True)
    deviation = np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5)
    scale, bias = (np.asarray(params[name], np.float64) for name in ("scale", "bias"))
    return centred / deviation * scale + bias


def silu(x: np.ndarray) -> np.ndarray:
    """x sigmoid(x)."""
    return x / (1 + np.exp(-x))


def softmax(x: np.ndarray) -> np.ndarray:
    """Over the last axis."""
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def norm_silu(params: dict[str, Any], x: np.ndarray) -> np.ndarray:
    """norm, then SiLU."""
    return silu(norm(params["Norm_0"], x))


def feed_forward(params: dict[str, Any], x: np.ndarray) -> np.ndarray:
    """norm(x + W2 relu(W1 x)), without dropout."""
    y = dense(params["Dense_1"], np.maximum(dense(params["Dense_0"], x), 0))
    return norm(params["Norm_0"], x + y)


def position_attention(params: dict[str, Any], x: np.ndarray, heads: int) -> np.ndarray:
    """norm(x + self-attention), every position to every position. x `[P, F]`."""
    query, key, value = np.split(dense(params["Dense_0"], x), 3, axis=-1)
    size = x.shape[-1] // heads
    mixed = []
    for head in range(heads):
        part = slice(head * size, (head + 1) * size)
        weights = softmax(query[:, part] @ key[:, part].T / np.sqrt(size))
        mixed.append(weights @ value[:, part])
    return norm(params["Norm_0"], x + dense(params["Dense_1"], np.concatenate(mixed, -1)))


def relative_attention(
    params: dict[str, Any],
    x: np.ndarray,
    past: tuple[np.ndarray, np.ndarray],
    visible: np.ndarray,
) -> np.ndarray:
    """norm(x + attention) with the scores of Transformer-XL, one pair at a time.

    score(i, j) = ((q_i + u) k_j + (q_i + v) W_R R_{i - j}) / sqrt(d), over C cached and L own keys.

    Args:
        params: of the block's attention.
        x: `[L, D]`.
        past: keys and values `[C, heads, d]`.
        visible: `[L, C + L]` bool.
    """
    length, width = x.shape
    context, heads, size = past[0].shape
    q, k, v = (
        y.reshape(length, heads, size) for y in np.split(dense(params["qkv"], x), 3, axis=-1)
    )
    keys, values = np.concatenate([past[0], k]), np.concatenate([past[1], v])
    content, position = (
        np.asarray(params[name], np.float64) for name in ("content_bias", "distance_bias")
    )
    mixed = np.zeros((length, heads, size))
    for i in range(length):
        seen = np.flatnonzero(visible[i])
        scores = np.zeros((heads, len(seen)))
        for column, j in enumerate(seen):
            distance = context + i - j
            assert 0 <= distance <= context
            angles = distance / 10000 ** (np.arange(0, width, 2) / width)
            r = dense(params["distance"], np.concatenate([np.sin(angles), np.cos(angles)]))
            r = r.reshape(heads, size)
            pair = (q[i] + content) * keys[j] + (q[i] + position) * r
            scores[:, column] = pair.sum(-1) / np.sqrt(size)
        mixed[i] = np.einsum("hj,jhd->hd", softmax(scores), values[seen])
    return norm(params["norm"], x + dense(params["out"], mixed.reshape(length, width)))


def two_hot_cross_entropy(logits: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Interpolated negative log-probability of the two bins around symlog(target)."""
    bins = logits.shape[-1]
    log_probs = scipy.special.log_softmax(logits.astype(np.float64), -1)
    target = np.asarray(target, np.float64)
    place = (np.sign(target) * np.log1p(np.abs(target)) + 20) / 40 * (bins - 1)
    low = np.minimum(np.floor(place).astype(int), bins - 2)
    share = place - low
    below, above = (
        np.take_along_axis(log_probs, (low + i)[..., None], -1)[..., 0] for i in range(2)
    )
    return -((1 - share) * below + share * above)


def two_hot_expectation(logits: np.ndarray) -> np.ndarray:
    """symexp of the mean bin, the bins equally spaced from -20 to 20."""
    inner = scipy.special.softmax(logits.astype(np.float64), -1) @ np.linspace(
        -20, 20, logits.shape[-1]
    )
    return np.sign(inner) * np.expm1(np.abs(inner))
