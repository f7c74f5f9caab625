"""Gradients of a batch's mean loss, summed over parts of the batch one after another.

A batch is worked through at once where a device is only fast when it has much to do, and in parts
where caches are small: on two CPU cores the paper's world model takes 2.3 core seconds a sequence
in parts of one, 3 in parts of four (own measurement). The parts are of equal size, so the mean of
their gradients is the batch's gradient, and the activations of one part are all that is kept.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from emerald_jax.config import Config
from emerald_jax.models.convolution import looped
from emerald_jax.types import Array, Params

#: Bytes of the encoder's first feature map that one part may have on a CPU (O, measured).
_PART_BYTES = 8 * 2**20


def batch_parts(config: Config, sequences: int) -> int:
    """Into how many equal parts the gradients of a device's sequences are divided.

    Args:
        config: ``optim.micro_batch`` says how many sequences a part may have; 0 means all of them
            on accelerators, and on a CPU as many as suit its caches.
        sequences: the device's share of the batch.

    Returns:
        The smallest divisor of ``sequences`` that leaves no more in each part.
    """
    most = config.optim.micro_batch
    if most == 0 and jax.default_backend() != "cpu":
        return 1
    if most == 0:
        side = config.envs.image_size // 2
        first_map = 4 * config.replay.length * side**2 * config.model.channels
        most = max(1, _PART_BYTES // first_map)
    return next(n for n in range(1, sequences + 1) if sequences % n == 0 and sequences // n <= most)


def mean_gradient(
    loss: Callable[..., tuple[Array, tuple[Any, Any]]], params: Params, data: Any, parts: int
) -> tuple[Params, tuple[Any, Any]]:
    """Gradient of a mean over a batch, and what the loss tells besides.

    Args:
        loss: ``(params, data) -> (mean loss, (extras [B], mean metrics []))``.
        params: what the gradient is taken of.
        data: any pytree of `[B, ...]` arrays.
        parts: from :func:`batch_parts`; divides B.

    Returns:
        gradients; the extras of the whole batch and the metrics' means.
    """
    gradient = jax.grad(loss, has_aux=True)
    if parts == 1:
        return gradient(params, data)

    def body(total: Params, part: Any) -> tuple[Params, tuple[Any, Any]]:
        with looped():
            grads, found = gradient(params, part)
        return jax.tree.map(jnp.add, total, grads), found

    data = in_parts(data, parts)
    total, (extras, metrics) = jax.lax.scan(body, jax.tree.map(jnp.zeros_like, params), data)
    extras = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), extras)
    metrics = jax.tree.map(lambda x: x.mean(0), metrics)
    return jax.tree.map(lambda x: x / parts, total), (extras, metrics)


def batched(function: Callable[..., Any], data: tuple, parts: int) -> Any:
    """``jax.vmap(function)(*data)``, by parts one after another.

    Args:
        function: of one sequence.
        data: its arguments, pytrees of `[B, ...]` arrays.
        parts: from :func:`batch_parts`; divides B.
    """
    if parts == 1:
        return jax.vmap(function)(*data)
    found = jax.lax.map(lambda part: jax.vmap(function)(*part), in_parts(data, parts))
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), found)


def in_parts(data: Any, parts: int) -> Any:
    """`[B, ...]` -> `[parts, B / parts, ...]`."""
    return jax.tree.map(lambda x: x.reshape(parts, x.shape[0] // parts, *x.shape[1:]), data)
