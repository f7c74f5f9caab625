"""The world model: encoder, temporal transformer, priors, decoder, reward and continue heads.

Thin on purpose: every method is one pass, arrays in and arrays out, for ONE sequence (no batch
dimension). Losses live in ``losses.py``, rollouts in ``imagination.py``; ``jax.vmap`` adds the
batch.
"""

from __future__ import annotations

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from emerald_jax.config import Config, ModelConfig
from emerald_jax.models.decoder import Decoder
from emerald_jax.models.encoder import Encoder
from emerald_jax.models.heads import Head
from emerald_jax.models.prior import DynamicsHead, MaskGit, Spread
from emerald_jax.models.sequence import OwnMemory, Tssm, empty_memory
from emerald_jax.ops.distributions import mixed_log_probs, sample_categorical, straight_through
from emerald_jax.types import Array, Batch, Carry, Key, Memory, Starts, State


class Pass(NamedTuple):
    """Everything one forward pass over a sequence computes.

    Attributes:
        posterior: `[L, P, G, K]` float32 log-probabilities q(z_t | o_t), uniform mixed in.
        state: :class:`State` `[L]`, the sampled class indices and h_t.
        z: `[L, P, G, K]` float32 one-hot with straight-through gradients.
        features: `[L, P, F]` what both priors start from.
        memory: :class:`Memory` of the C cached and L new tokens.
        visible: `[L, C + L]` bool, the tokens of each step's own episode up to itself.
    """

    posterior: Array
    state: State
    z: Array
    features: Array
    memory: Memory
    visible: Array


class WorldModel(nn.Module):
    """EMERALD's world model (arXiv 2507.04075, section 3).

    Attributes:
        config: sizes.
        stages: halvings from image to grid.
        num_actions: A.
        dtype: compute type of everything but parameters, logits' distributions and losses.
    """

    config: ModelConfig
    stages: int
    num_actions: int
    dtype: jnp.dtype = jnp.float32

    def setup(self) -> None:
        c, dtype = self.config, self.dtype
        self.encoder = Encoder(c, self.stages, dtype)
        self.sequence = Tssm(c, self.num_actions, dtype)
        self.spread = Spread(c, dtype)
        self.dynamics_head = DynamicsHead(c, dtype)
        self.maskgit = MaskGit(c, dtype)
        self.decoder = Decoder(c, self.stages, dtype)
        self.reward_head = Head(c, c.bins, 0.0, dtype)
        self.continue_head = Head(c, 1, 1.0, dtype)

    def __call__(self, sequence: Batch, key: Key, deterministic: bool = True) -> Pass:
        """Read a real sequence: posterior, sample, temporal transformer.

        Args:
            sequence: :class:`Batch` without its leading B, ``carry`` included.
            key: consumed; samples the latents.
            deterministic: no dropout (otherwise pass ``rngs={"dropout": key}`` to ``apply``).

        Returns:
            :class:`Pass`.
        """
        posterior = self.encode(sequence.image)
        index = sample_categorical(key, posterior)
        z = straight_through(index, posterior)
        before = jax.nn.one_hot(sequence.carry.z, self.config.classes, dtype=z.dtype)
        z_prev = jnp.concatenate([before[None], z[:-1]])
        h, memory, visible = self.sequence(
            z_prev, sequence.action, sequence.reset, sequence.carry.memory, deterministic
        )
        return Pass(posterior, State(index, h), z, self.spread(h), memory, visible)

    def encode(self, image: Array) -> Array:
        """`[T, height, width, 3]` uint8 -> posterior log-probabilities `[T, P, G, K]` float32."""
        return mixed_log_probs(self.encoder(image), self.config.unimix)

    def advance(
        self, z_prev: Array, action: Array, reset: Array, memory: Memory
    ) -> tuple[Array, Memory]:
        """h_t of T real steps given class indices z_{t-1}; acting uses T = 1.

        Args:
            z_prev: `[T, P, G]` int32.
            action: `[T]` int32.
            reset: `[T]` bool.
            memory: :class:`Memory` of C tokens.

        Returns:
            h `[T, D]` and the :class:`Memory` of all C + T tokens.
        """
        h, memory, _ = self.sequence(z_prev, action, reset, memory)
        return h, memory

    def imagine_step(
        self, state: State, action: Array, step: Array, starts: Starts, own: OwnMemory
    ) -> tuple[Array, OwnMemory]:
        """h `[n, D]` after one more imagined action; see :meth:`Tssm.imagine`."""
        return self.sequence.imagine(state.z, action, step, starts, own)

    def prior_features(self, h: Array) -> Array:
        """h `[..., D]` -> `[..., P, F]`, what both priors start from."""
        return self.spread(h)

    def dynamics(self, features: Array) -> Array:
        """Log-probabilities p_dyn `[..., P, G, K]` float32 of the linear head."""
        return mixed_log_probs(self.dynamics_head(features), self.config.unimix)

    def masked_prior(
        self, features: Array, tokens: Array | None, deterministic: bool = True
    ) -> Array:
        """Log-probabilities p_mask `[..., P, G, K]` float32; ``tokens`` None means all MASK."""
        logits = self.maskgit(features, tokens, deterministic)
        return mixed_log_probs(logits, self.config.unimix)

    def reconstruct(self, z: Array, h: Array) -> Array:
        """Predicted images `[T, height, width, 3]` float32 in [-0.5, 0.5] units."""
        return self.decoder(z, h)

    def reward(self, z: Array, h: Array) -> Array:
        """Two-hot logits `[..., bins]` of the reward that led into the state."""
        return self.reward_head(z, h)

    def cont(self, z: Array, h: Array) -> Array:
        """Logit `[...]` that the episode goes on after the state."""
        return self.continue_head(z, h)[..., 0]

    def everything(self, sequence: Batch, key: Key) -> Array:
        """Touch every parameter once; only ``init`` calls it."""
        out = self(sequence, key)
        tokens = jnp.full(out.state.z.shape, self.config.classes, jnp.int32)
        parts = (
            self.dynamics(out.features),
            self.masked_prior(out.features, tokens),
            self.reconstruct(out.z, out.state.h),
            self.reward(out.z, out.state.h),
            self.cont(out.z, out.state.h),
        )
        return jnp.stack([part.sum() for part in parts])


def compute_dtype(name: str) -> jnp.dtype:
    """``model.dtype`` as a type; ``auto`` is bfloat16 on accelerators and float32 on CPUs (O).

    CPUs emulate bfloat16 products, accelerators double their rate with them.
    """
    if name == "auto":
        name = "float32" if jax.default_backend() == "cpu" else "bfloat16"
    return jnp.dtype(name)


def build_world_model(config: Config, num_actions: int) -> WorldModel:
    """The world model of a configuration; parameters come from :func:`init_world_model`."""
    dtype = compute_dtype(config.model.dtype)
    return WorldModel(config.model, config.stages, num_actions, dtype)


def empty_carry(model: WorldModel) -> Carry:
    """Carry of one sequence about which nothing is known yet."""
    c = model.config
    return Carry(empty_memory(c, model.dtype), jnp.zeros((c.grid**2, c.groups), jnp.int32))


def init_world_model(model: WorldModel, key: Key) -> dict:
    """Fresh parameters, a plain nested dict of float32 arrays.

    Args:
        model: from :func:`build_world_model`.
        key: consumed.
    """
    size = model.config.grid * 2**model.stages
    flags = jnp.zeros((2,), bool)
    sequence = Batch(
        image=jnp.zeros((2, size, size, 3), jnp.uint8),
        action=jnp.zeros((2,), jnp.int32),
        reward=jnp.zeros((2,)),
        is_first=flags,
        is_last=flags,
        is_terminal=flags,
        reset=flags,
        carry=empty_carry(model),
    )
    init_key, sample_key = jax.random.split(key)
    return model.init(init_key, sequence, sample_key, method=WorldModel.everything)["params"]
