"""Convolutions: stages of the encoder and decoder, and how they are computed.

XLA's CPU gradients of strided and transposed convolutions run at a quarter of the rate of those of
plain ones. So a 4x4 stride-2 convolution is computed as the 2x2 convolution over 2x2 pixel blocks
that it exactly is, and its transpose likewise. Nothing is approximated; kernels have as many
parameters as in the plain form, the transposed one's bias four times as many (one per sub-pixel).

Image encoder q(z_t | o_t): the posterior sees the image alone, never h_t.

Image decoder p(o_t | z_t, h_t): the encoder mirrored.

Between the image and the latent: the spatial latent's direct ways, and the vector's detours.

A spatial latent lives on the grid of the encoder's last feature map, so encoder and decoder reach
it by themselves. A vector latent (DreamerV3's) is one position: the same encoder and decoder stages
are entered and left through linear layers over the flattened grid. A posterior that also sees h_t
(DreamerV3's) needs a layer in which the two meet, whatever the latent.
"""

from __future__ import annotations

import contextlib
import contextvars
import dataclasses
from collections.abc import Iterator
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.nn.initializers import lecun_normal, zeros

from emerald_jax.config import ModelConfig
from emerald_jax.models.layers import Dense, LatentProjection, NormSilu, recomputed, spread_rows
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


class Encoder(nn.Module):
    """Stages of a 4x4 stride-2 convolution and a residual block, then a 3x3 convolution to logits.

    Channels double at every stage; the number of stages follows from image size and grid, four for
    64x64 and 4x4 (EMERALD appendix; stage layout R).
    """

    config: ModelConfig
    stages: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, image: Array) -> Array:
        """Posterior logits.

        Args:
            image: `[T, height, width, 3]` uint8.

        Returns:
            `[T, P, G, K]` in the compute type.
        """
        c = self.config
        x = image.astype(self.dtype) / 255 - 0.5

        def halve(encoder: Encoder, x: Array, stage: int) -> Array:
            x = DownConv(c.channels * 2**stage, dtype=encoder.dtype)(x)
            return ResidualConv(dtype=encoder.dtype)(x)

        for stage in range(self.stages):
            x = recomputed(halve, c.remat)(self, x, stage)
        x = Conv(c.groups * c.classes, dtype=self.dtype)(x)
        return x.reshape(x.shape[0], c.grid**2, c.groups, c.classes)


class Decoder(nn.Module):
    """z_t through a 1x1 convolution, plus h_t spread over the grid, then the mirrored stages.

    A 1x1 entry instead of the mirror of the encoder's 3x3 keeps the model at the paper's 30 M
    parameters (O); the residual block right behind it already looks at the neighbours.
    """

    config: ModelConfig
    stages: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, z: Array, h: Array) -> Array:
        """Predicted image.

        Args:
            z: `[T, P, G]` int32 or `[T, P, G, K]` float.
            h: `[T, D]`.

        Returns:
            `[T, height, width, 3]` float32, 0 is mid-grey, ±0.5 black and white.
        """
        c = self.config
        time, top = h.shape[0], c.channels * 2 ** (self.stages - 1)
        x = LatentProjection(c.groups, c.classes, top, self.dtype)(z)
        if c.decoder_input == "zh":
            spread = Dense(c.grid**2 * c.latent_width, dtype=self.dtype)(h)
            spread = NormSilu(dtype=self.dtype)(spread.reshape(time, c.grid**2, c.latent_width))
            x = x + Dense(top, dtype=self.dtype)(spread)
        x = x.reshape(time, c.grid, c.grid, top)

        def double(decoder: Decoder, x: Array, stage: int) -> Array:
            x = ResidualConv(dtype=decoder.dtype)(x)
            x = NormSilu(dtype=decoder.dtype)(x)
            last = stage == 0
            return UpConv(3 if last else c.channels * 2 ** (stage - 1), dtype=decoder.dtype)(x)

        for stage in reversed(range(self.stages)):
            x = recomputed(double, c.remat)(self, x, stage)
        return x.astype(jnp.float32)


class PosteriorHead(nn.Module):
    """Logits of q(z_t | o_t, h_t) from the encoder's features: linear, norm, SiLU, linear.

    With a vector latent this is DreamerV3's posterior: the flattened features beside h_t, one
    hidden layer of width D. With a spatial one the hidden layer is the encoder's own channels at
    every position, to which h_t adds its share.

    Attributes:
        config: sizes.
        dtype: compute type.
    """

    config: ModelConfig
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, seen: Array, h: Array | None) -> Array:
        """Posterior logits.

        Args:
            seen: `[..., P, F]` the image's share of the hidden layer, of :class:`ImageFeatures`.
            h: `[..., D]`, or None when the posterior sees the image alone.

        Returns:
            `[..., P, G, K]` in the compute type.
        """
        c = self.config
        if h is not None:
            share = Dense(seen.shape[-2] * seen.shape[-1], use_bias=False, dtype=self.dtype)(h)
            seen = seen + share.reshape(seen.shape)
        logits = Dense(c.groups * c.classes, dtype=self.dtype)(NormSilu(dtype=self.dtype)(seen))
        return logits.reshape(*seen.shape[:-1], c.groups, c.classes)


class ImageFeatures(nn.Module):
    """The encoder's stages, ending in features instead of logits.

    Attributes:
        config: sizes.
        stages: halvings from image to grid.
        dtype: compute type.
    """

    config: ModelConfig
    stages: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, image: Array) -> Array:
        """Args: image `[T, height, width, 3]` uint8. Returns: `[T, P, F]`."""
        c = self.config
        # One group of as many classes as the last stage has channels: features, unnormalised.
        plain = dataclasses.replace(c, groups=1, classes=c.channels * 2 ** (self.stages - 1))
        x = Encoder(plain, self.stages, self.dtype)(image)
        if c.latent == "spatial":
            return x[:, :, 0]
        return Dense(c.width, dtype=self.dtype)(x.reshape(x.shape[0], 1, -1))


class VectorDecoder(nn.Module):
    """The image decoder of a vector latent: z_t is spread over the grid just as h_t is.

    Attributes:
        config: sizes.
        stages: doublings from grid to image.
        dtype: compute type.
    """

    config: ModelConfig
    stages: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, z: Array, h: Array) -> Array:
        """Predicted image; arguments and result as :class:`Decoder`, P = 1."""
        c = self.config
        width = c.latent_width
        x = LatentProjection(c.groups, c.classes, c.grid**2 * width, self.dtype)(z)
        x = NormSilu(dtype=self.dtype)(x.reshape(x.shape[0], c.grid**2, width))
        plain = dataclasses.replace(c, groups=1, classes=width)
        return Decoder(plain, self.stages, self.dtype)(x[:, :, None], h)
