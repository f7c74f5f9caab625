"""The device that programs are traced for: JAX's own, or another one that need not be there."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import NamedTuple

import jax


class Target(NamedTuple):
    """What the code asks of a device.

    Attributes:
        platform: ``cpu``, ``gpu`` or ``tpu``, as ``jax.default_backend()`` names it.
        bfloat16: whether it has units for bfloat16 products.
    """

    platform: str
    bfloat16: bool


#: The target of the current thread; None is JAX's own. JAX traces functions again for another one.
_CHOSEN = jax.make_user_context(default_value=None)


def target() -> Target:
    """The device that is traced for now: that of :func:`tracing_for`, or JAX's own."""
    return _CHOSEN.value or _own()


def tracing_for(chosen: Target) -> AbstractContextManager[None]:
    """Context: trace programs in this thread for ``chosen``, whatever this machine has."""
    return _CHOSEN(chosen)


def has_bfloat16(capability: str) -> bool:
    """Whether a GPU has units for bfloat16: CUDA devices from compute capability 8.0 on."""
    major = capability.partition(".")[0]
    return not major.isdigit() or int(major) >= 8  # no digits: not from NVIDIA, such as gfx90a


def _own() -> Target:
    platform = jax.default_backend()
    devices = jax.local_devices() if platform == "gpu" else []
    capable = all(has_bfloat16(getattr(one, "compute_capability", "")) for one in devices)
    return Target(platform, platform != "cpu" and capable)
