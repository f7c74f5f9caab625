"""Image encoder q(z_t | o_t): the posterior sees the image alone, never h_t."""

from __future__ import annotations

import flax.linen as nn
import jax.numpy as jnp

from emerald_jax.config import ModelConfig
from emerald_jax.models.convolution import Conv, DownConv, ResidualConv
from emerald_jax.models.layers import recomputed
from emerald_jax.types import Array


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
