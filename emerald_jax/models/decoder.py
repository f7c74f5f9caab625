"""Image decoder p(o_t | z_t, h_t): the encoder mirrored."""

from __future__ import annotations

import flax.linen as nn
import jax.numpy as jnp

from emerald_jax.config import ModelConfig
from emerald_jax.models.convolution import ResidualConv, UpConv
from emerald_jax.models.layers import Dense, LatentProjection, NormSilu, recomputed
from emerald_jax.types import Array


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
