"""Between the image and the latent: the spatial latent's direct ways, and the vector's detours.

A spatial latent lives on the grid of the encoder's last feature map, so encoder and decoder reach
it by themselves. A vector latent (DreamerV3's) is one position: the same encoder and decoder stages
are entered and left through linear layers over the flattened grid. A posterior that also sees h_t
(DreamerV3's) needs a layer in which the two meet, whatever the latent.
"""

from __future__ import annotations

import dataclasses

import flax.linen as nn
import jax.numpy as jnp

from emerald_jax.config import ModelConfig
from emerald_jax.models.decoder import Decoder
from emerald_jax.models.encoder import Encoder
from emerald_jax.models.layers import Dense, LatentProjection, NormSilu
from emerald_jax.types import Array


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
