"""Heads on the agent's state s_t = (z_t, h_t): reward, continue, actor, critic; one shape."""

from __future__ import annotations

import flax.linen as nn
import jax.numpy as jnp
from jax.nn.initializers import variance_scaling

from emerald_jax.config import ModelConfig
from emerald_jax.models.layers import Dense, LatentProjection, NormSilu
from emerald_jax.types import Array


class Head(nn.Module):
    """Trunk of section 2.6 and one linear layer.

    z_t -> 1x1 convolution, norm, SiLU -> flatten -> linear D, beside h_t -> MLP of D (norm, SiLU).

    Attributes:
        config: sizes.
        outputs: width of the last layer.
        scale: variance scale of the last layer's initialiser; 0 starts it at exactly zero, so that
            an untrained two-hot head predicts 0 (DreamerV3).
        dtype: compute type; the outputs are float32.
    """

    config: ModelConfig
    outputs: int
    scale: float
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, z: Array, h: Array) -> Array:
        """Logits of the head's distribution.

        Args:
            z: `[..., P, G]` int32 or `[..., P, G, K]` float.
            h: `[..., D]`.

        Returns:
            `[..., outputs]` float32.
        """
        c = self.config
        x = LatentProjection(c.groups, c.classes, c.latent_channels, self.dtype)(z)
        x = NormSilu(dtype=self.dtype)(x)
        x = Dense(c.width, dtype=self.dtype)(x.reshape(*h.shape[:-1], -1))
        x = jnp.concatenate([x, h.astype(self.dtype)], axis=-1)
        for _ in range(c.head_layers):
            x = NormSilu(dtype=self.dtype)(Dense(c.width, dtype=self.dtype)(x))
        init = (
            variance_scaling(self.scale, "fan_in", "truncated_normal")
            if self.scale
            else nn.initializers.zeros
        )
        return Dense(self.outputs, kernel_init=init, dtype=jnp.float32)(x)
