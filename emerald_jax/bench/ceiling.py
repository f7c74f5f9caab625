"""What this machine could do at best: the rate of large square matrix products."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp

from emerald_jax.bench.flops import Flops, counted
from emerald_jax.bench.harness import repeat
from emerald_jax.bench.options import Budget
from emerald_jax.config import ModelConfig

#: Sizes that are tried, smallest first; the best rate counts.
CPU_SIZES = (1024, 2048, 4096)
ACCELERATOR_SIZES = (2048, 4096, 8192, 16384)
#: A rate is the best of at least so many products, and of so many seconds of them.
_LEAST, _SECONDS = 3, 0.3


def repeat_beside_ceiling(
    call: Callable[[], Any], budget: Budget, dtype: str
) -> tuple[list[float], float]:
    """:func:`repeat`, and one device's ceiling at the same time, in FLOP/s.

    The speed of a machine changes with its clock and its neighbours (a factor of two between
    minutes was seen on a virtual machine), so the ceiling is taken just before and just after: the
    better of the two counts.
    """
    size = best_size(dtype)
    before = _rate(size, dtype)
    seconds = repeat(call, budget)
    return seconds, max(before, _rate(size, dtype))


@cache
def best_size(dtype: str) -> int:
    """The size of the fastest products: float32 at JAX's default precision, as the model's are.

    On recent GPUs that is TF32. All cores of a CPU work on one product. Tried once per process.

    Args:
        dtype: ``float32`` or ``bfloat16``, of operands and result.
    """
    sizes = CPU_SIZES if jax.default_backend() == "cpu" else ACCELERATOR_SIZES
    return max(sizes, key=lambda size: _rate(size, dtype))


def _rate(size: int, dtype: str) -> float:
    """Best FLOP/s of some products of one size."""
    left, right = (
        jax.random.normal(key, (size, size), jnp.dtype(dtype))
        for key in jax.random.split(jax.random.key(size))
    )
    product = jax.jit(jnp.matmul)
    seconds = repeat(lambda: product(left, right), Budget(_SECONDS, least=_LEAST))
    return 2 * size**3 / min(seconds)


def share_facts(
    work: Flops, seconds: float, ceiling: float, *, model: ModelConfig, devices: int
) -> dict[str, Any]:
    """For a row: the work, and what share of the machine's ceiling it was done at.

    Args:
        work: useful FLOPs of one call.
        seconds: of one call, all devices together.
        ceiling: of one device, FLOP/s, from :func:`repeat_beside_ceiling`.
        model: sizes; of a variant that is not counted only the time is known.
        devices: how many worked on it; a CPU's virtual devices share its cores.
    """
    if not counted(model):
        return {"seconds": seconds}
    if jax.default_backend() != "cpu":
        ceiling *= devices
    return {
        "seconds": seconds,
        "useful_flops": work.useful,
        "least_flops": work.least,
        "ceiling_flops_per_s": ceiling,
        "share_of_ceiling": work.useful / seconds / ceiling,
        "share_of_ceiling_least": work.least / seconds / ceiling,
    }
