"""Image encoder q(z_t | o_t), image decoder p(o_t | z_t, h_t), and their convolutions.

XLA's CPU gradients of strided and transposed convolutions run at a quarter of the speed of plain
ones. A 4x4 stride-2 convolution is therefore computed as the equal 2x2 convolution over 2x2 pixel
blocks, and its transpose likewise, with as many parameters (except four times the biases in the
transposed one, one per sub-pixel).
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

from emerald_jax.config import ModelConfig
from emerald_jax.models.layers import (
    Dense,
    Initial,
    LatentProjection,
    NormSilu,
    lecun_normal,
    ones,
    recomputed,
    spread_rows,
    zeros,
)
from emerald_jax.target import target
from emerald_jax.types import Array, Params


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
    return jnp.pad(x, [(0, 0)] * (x.ndim - 3) + [(1, 1), (1, 1), (0, 0)])


#: True while the body of a loop is traced for a CPU; see :func:`looped`.
_LOOPED = contextvars.ContextVar("looped", default=False)


@contextlib.contextmanager
def looped() -> Iterator[None]:
    """Context: trace convolution gradients for the body of a loop on a CPU.

    XLA's CPU back end reorders convolutions for its fast kernels only outside of loops. Inside a
    loop, JAX's own gradients read transposed operands at 0.3 instead of 40 GFLOP/s (one core, 3x3,
    32 channels). Here operands are transposed first: slower outside of loops and on accelerators.
    """
    token = _LOOPED.set(target().platform == "cpu")
    try:
        yield
    finally:
        _LOOPED.reset(token)


def convolve(x: Array, kernel: Array, padding: int) -> Array:
    """Stride-1 convolution of x `[T, h, w, c]` with a kernel `[size, size, c, features]`.

    ``padding`` rings of zero pixels belong to the convolution: with an image padded before, the
    gradient would also be computed for the ring (36 positions instead of 16 at 4x4).
    """
    return (_looped_conv if _LOOPED.get() else _conv)(x, kernel, padding)


def _conv(x: Array, kernel: Array, padding: int) -> Array:
    pads = [(padding, padding)] * 2
    return jax.lax.conv_general_dilated(
        x, kernel, (1, 1), pads, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def _looped_conv(x: Array, kernel: Array, padding: int) -> Array:
    """:func:`_conv` with gradients that are NHWC convolutions; see :func:`looped`."""
    return _conv(x, kernel, padding)


def _looped_forward(x: Array, kernel: Array, padding: int) -> tuple[Array, tuple[Array, Array]]:
    return _conv(x, kernel, padding), (x, kernel)


def _looped_backward(padding: int, kept: tuple[Array, Array], dy: Array) -> tuple[Array, Array]:
    """dx convolves dy with the rotated kernel; dk convolves x, channels as images, with dy."""
    x, kernel = kept
    turned = jnp.flip(kernel, (0, 1)).swapaxes(2, 3)
    dx = _conv(dy, turned, kernel.shape[0] - 1 - padding)
    dk = _conv(x.transpose(3, 1, 2, 0), dy.transpose(1, 2, 0, 3), padding)
    return dx, dk.transpose(1, 2, 0, 3)


_looped_conv.defvjp(_looped_forward, _looped_backward)


class Conv(nn.Module):
    """Stride-1 convolution, x `[T, h, w, c]` -> `[T, h', w', features]`; 3x3 and padding 1 keep h,
    w.
    """

    features: int
    size: int = 3
    padding: int = 1
    initial: Initial = lecun_normal
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        shape = (self.size, self.size, x.shape[-1], self.features)
        kernel = self.param("kernel", self.initial, shape).astype(self.dtype)
        bias = self.param("bias", zeros, (self.features,)).astype(self.dtype)
        y = convolve(x.astype(self.dtype), kernel, self.padding)
        return y + spread_rows(bias, y)


class DownConv(nn.Module):
    """4x4 stride-2 convolution, padding 1, computed exactly as a 2x2 convolution over 2x2 blocks.

    y[i] = sum_u w[u] x[2i + u - 1]: pad by one pixel and move 2x2 pixels into channels; the taps
    u = 0..3 then lie in two neighbouring blocks.
    """

    features: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """x `[T, 2h, 2w, c]` -> `[T, h, w, features]`."""
        blocks = space_to_depth(_pad_pixels(x))
        return Conv(self.features, size=2, padding=0, dtype=self.dtype)(blocks)


class UpConv(nn.Module):
    """4x4 stride-2 transposed convolution, the mirror of :class:`DownConv`.

    A 2x2 convolution computes the four sub-pixels around every corner of the padded input; moving
    them to space gives the doubled image plus one ring, which is cut off. Padding before the
    convolution, not by it, halves the time of an update on a CPU (7.0 instead of 15.2 core seconds
    for two of the paper's sequences).
    """

    features: int
    initial: Initial = lecun_normal
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """x `[T, h, w, c]` -> `[T, 2h, 2w, features]`."""
        x = _pad_pixels(x)
        if target().platform == "gpu":
            # XLA would let the convolution pad. The kernel's gradient is then no call of cuDNN's
            # gradient but a convolution with an image as its kernel: 2.4 ms each on an H200.
            x = jax.lax.optimization_barrier(x)
        options = {"size": 2, "padding": 0, "initial": self.initial, "dtype": self.dtype}
        corners = Conv(4 * self.features, **options)(x)
        return depth_to_space(corners)[:, 1:-1, 1:-1]


class NormSiluConv(nn.Module):
    """Norm, SiLU, 3x3 convolution: half of a residual block."""

    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        return Conv(x.shape[-1], dtype=self.dtype)(NormSilu(dtype=self.dtype)(x))


class ResidualConv(nn.Module):
    """Pre-activation residual block: (LayerNorm, SiLU, 3x3 convolution) twice, plus the input.

    The backward pass recomputes norm and SiLU, which are cheap, but not the convolution.
    """

    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        y = x
        for _ in range(2):
            y = nn.remat(NormSiluConv)(dtype=self.dtype)(y)
        return x + y


class Center(nn.Module):
    """The mean of every pixel, so that networks see and predict what differs from it.

    Most pixels of a simple game never change. A decoder learns them first, from h_t alone, and as
    long as the latents only disturb it the posterior learns to carry no information. With the mean
    given from the start the changes are all that is left to learn (O).

    Attributes:
        size: height and width of an image.
    """

    size: int

    def setup(self) -> None:
        shape = (self.size, self.size, 3)
        self.mean = self.param("mean", zeros, shape)
        self.variance = self.param("variance", ones, shape)
        self.batches = self.param("batches", zeros, ())

    def enter(self, x: Array) -> Array:
        """Images `[..., height, width, 3]` in [-0.5, 0.5] -> in units of their deviation."""
        mean, variance = jax.lax.stop_gradient((self.mean, self.variance))
        scale = jnp.broadcast_to(jax.lax.rsqrt(variance + _LEAST_DEVIATION**2), x.shape)
        return (x - jnp.broadcast_to(mean, x.shape)) * scale

    def leave(self, x: Array) -> Array:
        """Predicted differences from the mean -> predicted images."""
        return x + jnp.broadcast_to(jax.lax.stop_gradient(self.mean), x.shape)


#: Added to the deviation of a pixel, of 1 from black to white: still pixels have none.
_LEAST_DEVIATION = 0.05
#: Batches whose mean is taken; later the mean stays as it is.
_CENTER_BATCHES = 100


def learn_center(params: Params, image: Array, axis_name: str | None) -> Params:
    """The parameters of :class:`Center` after a batch of images `[B, L, height, width, 3]` uint8.

    Under pmap the mean is that of all devices, by ``axis_name``.
    """
    x = image.astype(jnp.float32) / 255 - 0.5
    mean, square = x.mean((0, 1)), jnp.square(x).mean((0, 1))
    if axis_name is not None:
        mean, square = jax.lax.pmean((mean, square), axis_name)
    count = params["batches"]
    rate = jnp.where(count < _CENTER_BATCHES, 1 / (count + 1), 0.0)
    moved = mean - params["mean"]
    # Of all batches so far: within them, and between this one and those before.
    found = jnp.maximum(square - jnp.square(mean), 0.0) + (1 - rate) * jnp.square(moved)
    return {
        "mean": params["mean"] + rate * moved,
        "variance": params["variance"] + rate * (found - params["variance"]),
        "batches": jnp.minimum(count + 1, _CENTER_BATCHES),
    }


class Encoder(nn.Module):
    """Stages of a 4x4 stride-2 convolution and a residual block, then a 3x3 convolution to logits.

    Channels double at each of the ``stages``: four from 64x64 to 4x4 (EMERALD appendix; layout R).
    """

    config: ModelConfig
    stages: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, image: Array) -> Array:
        """image `[..., height, width, 3]` uint8 or centred -> posterior logits `[..., P, G, K]`."""
        c, lead = self.config, image.shape[:-3]
        x = image.reshape(-1, *image.shape[-3:]).astype(self.dtype)
        if image.dtype == jnp.uint8:
            x = x / 255 - 0.5

        def halve(encoder: Encoder, x: Array, stage: int) -> Array:
            x = DownConv(c.channels * 2**stage, dtype=encoder.dtype)(x)
            return ResidualConv(dtype=encoder.dtype)(x)

        for stage in range(self.stages):
            x = recomputed(halve, c.remat)(self, x, stage)
        x = Conv(c.groups * c.classes, dtype=self.dtype)(x)
        return x.reshape(*lead, c.grid**2, c.groups, c.classes)


class Decoder(nn.Module):
    """z_t through a 1x1 convolution, plus h_t projected to the grid, then the mirrored stages.

    The first layer is 1x1, not 3x3 as at the encoder's end: this keeps the model at the paper's 30
    M parameters (O), and the residual block behind it already mixes neighbours.
    """

    config: ModelConfig
    stages: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, z: Array, h: Array) -> Array:
        """Predicted image `[..., height, width, 3]` float32: 0 is mid-grey, ±0.5 black and white.

        z `[..., P, G]` int32 or `[..., P, G, K]` float; h `[..., D]`.
        """
        c, lead = self.config, h.shape[:-1]
        h, z = h.reshape(-1, h.shape[-1]), z.reshape(-1, *z.shape[len(lead) :])
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
            if stage > 0:
                return UpConv(c.channels * 2 ** (stage - 1), dtype=decoder.dtype)(x)
            return UpConv(3, initial=zeros if c.center else lecun_normal, dtype=decoder.dtype)(x)

        for stage in reversed(range(self.stages)):
            x = recomputed(double, c.remat)(self, x, stage)
        return x.astype(jnp.float32).reshape(*lead, *x.shape[1:])


class PosteriorHead(nn.Module):
    """Logits of q(z_t | o_t, h_t) from the encoder's features: linear, norm, SiLU, linear.

    With a vector latent this is DreamerV3's posterior: one hidden layer of width D over features
    and h_t. With a spatial latent the hidden layer is the encoder's channels at every position plus
    a linear projection of h_t.
    """

    config: ModelConfig
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, seen: Array, h: Array | None) -> Array:
        """seen `[..., P, F]`, h `[..., D]` or None (image only) -> logits `[..., P, G, K]`."""
        c = self.config
        if h is not None:
            added = Dense(seen.shape[-2] * seen.shape[-1], use_bias=False, dtype=self.dtype)(h)
            seen = seen + added.reshape(seen.shape)
        logits = Dense(c.groups * c.classes, dtype=self.dtype)(NormSilu(dtype=self.dtype)(seen))
        return logits.reshape(*seen.shape[:-1], c.groups, c.classes)


class ImageFeatures(nn.Module):
    """The encoder's stages, ending in features instead of logits."""

    config: ModelConfig
    stages: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, image: Array) -> Array:
        """image `[..., height, width, 3]` uint8 -> `[..., P, F]`."""
        c = self.config
        # The encoder's logits serve as features: one group, one class per last-stage channel.
        plain = dataclasses.replace(c, groups=1, classes=c.channels * 2 ** (self.stages - 1))
        x = Encoder(plain, self.stages, self.dtype)(image)
        if c.latent == "spatial":
            return x[..., 0, :]
        return Dense(c.width, dtype=self.dtype)(x.reshape(*image.shape[:-3], 1, -1))


class VectorDecoder(nn.Module):
    """The image decoder of a vector latent: z_t is projected to the grid in the same way as h_t."""

    config: ModelConfig
    stages: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, z: Array, h: Array) -> Array:
        """As :meth:`Decoder.__call__`, with P = 1."""
        c = self.config
        width = c.latent_width
        x = LatentProjection(c.groups, c.classes, c.grid**2 * width, self.dtype)(z)
        x = NormSilu(dtype=self.dtype)(x.reshape(*h.shape[:-1], c.grid**2, width))
        plain = dataclasses.replace(c, groups=1, classes=width)
        return Decoder(plain, self.stages, self.dtype)(x[..., None, :], h)
