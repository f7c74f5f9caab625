"""Convolutions: stages of the encoder and decoder, and how they are computed.

XLA's CPU gradients of strided and transposed convolutions run at a quarter of the rate of those of
plain ones. So a 4x4 stride-2 convolution is computed as the 2x2 convolution over 2x2 pixel blocks
that it exactly is, and its transpose likewise. Nothing is approximated; kernels have as many
parameters as in the plain form, the transposed one's bias four times as many (one per sub-pixel).
"""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Iterator
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.nn.initializers import lecun_normal, zeros

from emerald_jax.models.layers import NormSilu, spread_rows
from emerald_jax.types import Array


def space_to_depth(x: Array) -> Array:
    """`[..., 2h, 2w, c]` -> `[..., h, w, 4c]`; sub-pixels in row-major order before channels."""
    *lead, height, width, channels = x.shape
    x = x.reshape(*lead, height // 2, 2, width // 2, 2, channels)
    return jnp.moveaxis(x, -4, -3).reshape(*lead, height // 2, width // 2, 4 * channels)


def depth_to_space(x: Array) -> Array:
    """`[..., h, w, 4c]` -> `[..., 2h, 2w, c]`, the inverse of :func:`space_to_depth`."""
    *lead, height, width, channels = x.shape
    x = x.reshape(*lead, height, width, 2, 2, channels // 4)
    return jnp.moveaxis(x, -4, -3).reshape(*lead, 2 * height, 2 * width, channels // 4)


def _pad_pixels(x: Array) -> Array:
    """One ring of zero pixels around `[..., h, w, c]`."""
    return jnp.pad(x, [(0, 0)] * (x.ndim - 3) + [(1, 1), (1, 1), (0, 0)])


#: Whether what is traced now is the body of a loop on a CPU; see :func:`looped`.
_LOOPED = contextvars.ContextVar("looped", default=False)


@contextlib.contextmanager
def looped() -> Iterator[None]:
    """Gradients of convolutions traced meanwhile suit the body of a loop on a CPU.

    XLA's CPU back end brings convolutions into the order its fast kernels want only outside of
    loops. Inside, JAX's own gradients, which read their operands transposed, run at 0.3 instead of
    40 GFLOP/s (one core, 3x3 convolution of 32 channels). Under this context operands are
    transposed first. Outside of loops, and on accelerators, that is slower.
    """
    token = _LOOPED.set(jax.default_backend() == "cpu")
    try:
        yield
    finally:
        _LOOPED.reset(token)


def convolve(x: Array, kernel: Array, padding: int) -> Array:
    """Stride-1 convolution.

    Padding belongs to the convolution: were the image padded before it, the gradient would be
    computed for the ring as well and thrown away there, 36 positions for 16 at 4x4.

    Args:
        x: `[T, h, w, c]`.
        kernel: `[size, size, c, features]`.
        padding: rings of zero pixels.

    Returns:
        `[T, h + 2 padding - size + 1, ..., features]`.
    """
    return (_looped_conv if _LOOPED.get() else _conv)(x, kernel, padding)


def _conv(x: Array, kernel: Array, padding: int) -> Array:
    pads = [(padding, padding)] * 2
    return jax.lax.conv_general_dilated(
        x, kernel, (1, 1), pads, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def _looped_conv(x: Array, kernel: Array, padding: int) -> Array:
    """:func:`_conv` whose gradients are convolutions of the same order; see :func:`looped`."""
    return _conv(x, kernel, padding)


def _looped_forward(x: Array, kernel: Array, padding: int) -> tuple[Array, tuple[Array, Array]]:
    return _conv(x, kernel, padding), (x, kernel)


def _looped_backward(padding: int, kept: tuple[Array, Array], dy: Array) -> tuple[Array, Array]:
    """dx: dy under the turned kernel. dk: x, channels as images, under dy as a large kernel."""
    x, kernel = kept
    turned = jnp.flip(kernel, (0, 1)).swapaxes(2, 3)
    dx = _conv(dy, turned, kernel.shape[0] - 1 - padding)
    dk = _conv(x.transpose(3, 1, 2, 0), dy.transpose(1, 2, 0, 3), padding)
    return dx, dk.transpose(1, 2, 0, 3)


_looped_conv.defvjp(_looped_forward, _looped_backward)


class Conv(nn.Module):
    """Stride-1 convolution of a small square kernel.

    Attributes:
        features: output channels.
        size: kernel height and width.
        padding: rings of zero pixels around the image; 1 keeps the size under a 3x3 kernel.
        dtype: compute type.
    """

    features: int
    size: int = 3
    padding: int = 1
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Args: x `[T, h, w, c]`. Returns: `[T, h', w', features]`."""
        shape = (self.size, self.size, x.shape[-1], self.features)
        kernel = self.param("kernel", lecun_normal(), shape).astype(self.dtype)
        bias = self.param("bias", zeros, (self.features,)).astype(self.dtype)
        y = convolve(x.astype(self.dtype), kernel, self.padding)
        return y + spread_rows(bias, y)


class DownConv(nn.Module):
    """4x4 stride-2 convolution, padding 1, computed exactly as a 2x2 convolution over 2x2 blocks.

    y[i] = sum_u w[u] x[2i + u - 1]: pad by one pixel, gather 2x2 pixels into channels, and the
    taps u = 0..3 fall on two neighbouring blocks.
    """

    features: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Args: x `[T, 2h, 2w, c]`. Returns: `[T, h, w, features]`."""
        blocks = space_to_depth(_pad_pixels(x))
        return Conv(self.features, size=2, padding=0, dtype=self.dtype)(blocks)


class UpConv(nn.Module):
    """4x4 stride-2 transposed convolution, the mirror of :class:`DownConv`.

    A 2x2 convolution computes the four sub-pixels around every corner of the padded input; opening
    them up gives the doubled image and one ring too much, which is cut off. Padded before and not
    by the convolution itself: on a CPU an update takes half the time so (7.0 against 15.2 core
    seconds for two of the paper's sequences).
    """

    features: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Args: x `[T, h, w, c]`. Returns: `[T, 2h, 2w, features]`."""
        corners = Conv(4 * self.features, size=2, padding=0, dtype=self.dtype)(_pad_pixels(x))
        return depth_to_space(corners)[:, 1:-1, 1:-1]


class NormSiluConv(nn.Module):
    """norm, SiLU, 3x3 convolution: one step of a residual block."""

    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Args: x `[T, h, w, c]`. Returns: the same shape."""
        return Conv(x.shape[-1], dtype=self.dtype)(NormSilu(dtype=self.dtype)(x))


class ResidualConv(nn.Module):
    """Pre-activation residual block: (LayerNorm, SiLU, 3x3 convolution) twice, plus the input.

    The backward pass recomputes norm and SiLU, which are cheap, instead of keeping three arrays of
    the size of the input for each; the convolution itself is not repeated.
    """

    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Args: x `[T, h, w, c]`. Returns: the same shape."""
        y = x
        for _ in range(2):
            y = nn.remat(NormSiluConv)(dtype=self.dtype)(y)
        return x + y
