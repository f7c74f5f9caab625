"""The world model: encoder, sequence model, priors, decoder, reward and continue heads.

Every method takes arrays with any leading axes `[...]`, so that products and convolutions see all
sequences and steps as rows of one matrix; only attention to a sequence's own past keeps them apart.
The configuration chooses the latent, the sequence model and the prior.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from emerald_jax.actions import ActionSpace
from emerald_jax.config import Config, ModelConfig
from emerald_jax.models.heads import Head
from emerald_jax.models.layers import compute_dtype, init_together
from emerald_jax.models.prior import Around, Autoregressive, DynamicsHead, Flow, MaskGit, Spread
from emerald_jax.models.sequence import NoPast, Rssm, SequenceModel, first_reset
from emerald_jax.models.tssm import Tssm
from emerald_jax.models.vision import (
    Center,
    Decoder,
    Encoder,
    ImageFeatures,
    PosteriorHead,
    VectorDecoder,
)
from emerald_jax.ops.distributions import choose, mixed_log_probs, straight_through
from emerald_jax.ops.random import uniform
from emerald_jax.types import Array, Batch, Before, Carry, Key, Params, Recurrent, State

SEQUENCES: dict[str, type[SequenceModel]] = {"tssm": Tssm, "rssm": Rssm}


class Pass(NamedTuple):
    """Outputs of one forward pass over a sequence.

    Attributes:
        posterior: `[..., L, P, G, K]` float32 log-probabilities q of z_t, with the uniform share.
        state: :class:`State` `[..., L]`, the sampled class indices and h_t.
        z: `[..., L, P, G, K]` float32 one-hot with straight-through gradients.
        features: `[..., L, P, F]` input of all priors.
        carry: :class:`Carry` for the sequence's next chunk.
        history: context for imagination, defined by the sequence model.
    """

    posterior: Array
    state: State
    z: Array
    features: Array
    carry: Carry
    history: Any


class WorldModel(nn.Module):
    """EMERALD's world model (arXiv 2507.04075, section 3).

    Attributes:
        config: sizes.
        stages: halvings from image to grid.
        actions: what leads from one step to the next.
        dtype: compute type. Parameters, distributions, head outputs and losses stay float32; the
            latents' logits have the compute type until they become distributions.
    """

    config: ModelConfig
    stages: int
    actions: ActionSpace
    dtype: jnp.dtype = jnp.float32

    def setup(self) -> None:
        c, dtype = self.config, self.dtype
        if c.latent == "spatial" and not c.posterior_sees_h:
            self.encoder, self.posterior_head = Encoder(c, self.stages, dtype), None
        else:
            self.encoder = ImageFeatures(c, self.stages, dtype)
            self.posterior_head = PosteriorHead(c, dtype)
        self.sequence = SEQUENCES[c.sequence](c, self.actions, dtype)
        self.spread = Spread(c, dtype)
        self.around = Around(c, self.actions, dtype) if c.prior_input == "hz" else None
        self.dynamics_head = DynamicsHead(c, dtype)
        if c.prior == "maskgit":
            self.maskgit = MaskGit(c, dtype)
        elif c.prior == "flow":
            self.flow = Flow(c, dtype)
        elif c.prior == "autoregressive":
            self.autoregressive = Autoregressive(c, dtype)
        decoder = Decoder if c.latent == "spatial" else VectorDecoder
        self.decoder = decoder(c, self.stages, dtype)
        if c.center:
            self.center = Center(c.grid * 2**self.stages)
        self.reward_head = Head(c, c.bins, 0.0, dtype)
        self.continue_head = Head(c, 1, 1.0, dtype)

    def __call__(self, batch: Batch, key: Key, drop_key: Key | None = None) -> Pass:
        """Read real sequences: :meth:`observe` with the fields of a :class:`Batch`."""
        b = batch
        return self.observe(b.image, b.action, b.reset, b.carry, key, drop_key)

    def observe(
        self,
        image: Array,
        action: Array,
        reset: Array,
        carry: Carry,
        key: Key,
        drop_key: Key | None = None,
    ) -> Pass:
        """Infer and sample the latents z_t of L real steps (acting: 1), and compute h_t.

        Args:
            image: `[..., L, height, width, 3]` uint8.
            action: `[..., L]` int32 or `[..., L, A]` float32, the action that led into each image.
            reset: `[..., L]` bool, forget everything before the image.
            carry: :class:`Carry` `[...]` of the steps before.
            key: `[...]`, consumed; samples the latents.
            drop_key: `[...]`, consumed for dropout; None: no dropout.

        Returns:
            :class:`Pass`.
        """
        before = jax.nn.one_hot(carry.z, self.config.classes, dtype=jnp.float32)
        shape = (image.shape[-4], *carry.z.shape[-2:])
        u = uniform(key, shape)
        if self.config.posterior_sees_h:
            posterior, index, z, h = self._filter(image, action, reset, carry, before, u)
            z_prev = previous(before, z)
            memory = Recurrent(h[..., -1, :], jnp.ones_like(carry.memory.valid))
            history = NoPast()
        else:
            posterior = self.encode(image)
            index = choose(u, jnp.exp(posterior))
            z = straight_through(index, posterior)
            z_prev = previous(before, z)
            h, memory, history = self.sequence(z_prev, action, reset, carry.memory, drop_key)
        known = carry.memory.valid.reshape(*reset.shape[:-1], -1)[..., -1]
        led = Before(z_prev, action, first_reset(reset, known))
        carry = Carry(memory, index[..., -1, :, :])
        features = self.prior_features(h, led)
        return Pass(posterior, State(index, h), z, features, carry, history)

    def _filter(
        self, image: Array, action: Array, reset: Array, carry: Carry, before: Array, u: Array
    ) -> tuple[Array, Array, Array, Array]:
        """:meth:`observe` if the posterior depends on h_t, step by step: posterior, indices, z and
        h.
        """
        seen, axis = self.encoder(self._centred(image)), reset.ndim - 1

        def body(model: WorldModel, loop: tuple, inputs: tuple) -> tuple:
            (h, z), (seen, action, reset, u) = loop, inputs
            h = model.sequence.step(h, z, action, reset)
            posterior = mixed_log_probs(model.posterior_head(seen, h), model.config.unimix)
            index = choose(u, jnp.exp(posterior))
            z = straight_through(index, posterior)
            return (h, z), (posterior, index, z, h)

        scan = nn.scan(
            body,
            variable_broadcast="params",
            split_rngs={"params": False},
            in_axes=axis,
            out_axes=axis,
        )
        inputs = (seen, action, first_reset(reset, carry.memory.valid), u)
        return scan(self, (carry.memory.h, before), inputs)[1]

    def encode(self, image: Array) -> Array:
        """`[..., height, width, 3]` uint8 -> log q(z_t | o_t) `[..., P, G, K]`.

        ValueError if q depends on h_t.
        """
        if self.config.posterior_sees_h:
            raise ValueError("the posterior also depends on h_t: use observe(), not encode()")
        logits = self.encoder(self._centred(image))
        if self.posterior_head is not None:
            logits = self.posterior_head(logits, None)
        return mixed_log_probs(logits, self.config.unimix)

    def _centred(self, image: Array) -> Array:
        """uint8 as it is, or what :class:`Center` makes of it."""
        if not self.config.center:
            return image
        return self.center.enter(image.astype(jnp.float32) / 255 - 0.5)

    def advance(self, z_prev: Array, action: Array, reset: Array, memory: Any) -> tuple[Array, Any]:
        """h `[..., T, D]` from z_{t-1} `[..., T, P, G]` and actions, and the next memory."""
        return self.sequence(z_prev, action, reset, memory)[:2]

    def prior_features(self, h: Array, before: Before | None = None) -> Array:
        """h `[..., D]` -> `[..., P, F]`, input of all priors.

        ``before`` `[...]` is read only if ``model.prior_input`` is ``hz``; ValueError without it.
        """
        if self.around is None:
            return self.spread(h)
        if before is None:
            raise ValueError("model.prior_input is hz: the priors also need what led into h")
        return self.spread(h) + self.around(before)

    def dynamics(self, features: Array) -> Array:
        """Log-probabilities p_dyn `[..., P, G, K]` float32 of the linear head."""
        return mixed_log_probs(self.dynamics_head(features), self.config.unimix)

    def masked_prior(
        self, features: Array, tokens: Array | None, drop_key: Key | None = None
    ) -> Array:
        """Log-probabilities p_mask `[..., P, G, K]` float32; ``tokens`` None means all MASK."""
        logits = self.maskgit(features, tokens, drop_key)
        return mixed_log_probs(logits, self.config.unimix)

    def flow_prior(
        self, features: Array, tokens: Array, time: Array, drop_key: Key | None = None
    ) -> Array:
        """Log-probabilities p_flow `[..., P, G, K]` float32, given noisy tokens at time `[...]`."""
        logits = self.flow(features, tokens, time, drop_key)
        return mixed_log_probs(logits, self.config.unimix)

    def ordered_prior(self, features: Array, tokens: Array, drop_key: Key | None = None) -> Array:
        """Log-probabilities p_ar `[..., P, G, K]` float32, each given the positions before it."""
        logits = self.autoregressive(features, tokens, drop_key)
        return mixed_log_probs(logits, self.config.unimix)

    def reconstruct(self, z: Array, h: Array) -> Array:
        """Predicted images `[..., height, width, 3]` float32 in [-0.5, 0.5] units."""
        image = self.decoder(z, h)
        return self.center.leave(image) if self.config.center else image

    def reward(self, z: Array, h: Array) -> Array:
        """Two-hot logits `[..., bins]` of the reward that led into the state."""
        return self.reward_head(z, h)

    def cont(self, z: Array, h: Array) -> Array:
        """Logit `[...]` that the episode continues after the state."""
        return self.continue_head(z, h)[..., 0]

    def everything(self, sequence: Batch, key: Key) -> Array:
        """Use every parameter once; only ``init`` calls it."""
        out = self(sequence, key)
        heads = (self.reconstruct, self.reward, self.cont)
        parts = [self.dynamics(out.features), *(head(out.z, out.state.h) for head in heads)]
        if self.config.prior == "maskgit":
            parts.append(self.masked_prior(out.features, out.state.z))
        elif self.config.prior == "flow":
            parts.append(self.flow_prior(out.features, out.state.z, jnp.float32(0)))
        elif self.config.prior == "autoregressive":
            parts.append(self.ordered_prior(out.features, out.state.z))
        return jnp.stack([part.sum() for part in parts])


def previous(before: Array, z: Array) -> Array:
    """z_{t-1} `[..., L, P, G, K]`: ``before`` `[..., P, G, K]`, then z but for the last step."""
    return jnp.concatenate([before[..., None, :, :, :], z[..., :-1, :, :, :]], axis=-4)


def build_world_model(config: Config, actions: ActionSpace) -> WorldModel:
    """The world model of a configuration; parameters come from :func:`init_world_model`."""
    dtype = compute_dtype(config.model.dtype)
    return WorldModel(config.model, config.stages, actions, dtype)


def with_tables(model: WorldModel, params: Params) -> Params:
    """Parameters with the tables that depend on nothing else, ``table`` in their modules.

    For the prior's tokens and the distances of relative attention; the results do not change.
    """
    net = model.bind({"params": params})
    params = {**params, "sequence": dict(params["sequence"])}
    for number, attention in enumerate(getattr(net.sequence, "attention", ())):
        name = f"attention_{number}"
        params["sequence"][name] = {**params["sequence"][name], "table": attention.table()}
    if (prior := model.config.prior) != "linear":
        params[prior] = {**params[prior], "table": getattr(net, prior).table()}
    return params


def empty_carry(model: WorldModel) -> Carry:
    """Carry at the start of one sequence: all zeros, nothing valid."""
    c = model.config
    memory = SEQUENCES[c.sequence].empty_memory(c, model.dtype)
    return Carry(memory, jnp.zeros((c.positions, c.groups), jnp.int32))


def no_before(model: WorldModel, *lead: int) -> Before:
    """A :class:`Before` `[*lead]` of zeros, where only shapes matter."""
    c, a = model.config, model.actions
    return Before(
        jnp.zeros((*lead, c.positions, c.groups), jnp.int32), jnp.zeros((*lead, *a.shape), a.dtype)
    )


def init_world_model(model: WorldModel, key: Key) -> dict:
    """Initial parameters, a nested dict of float32 arrays; ``key`` is consumed."""

    def init(key: Key) -> dict:
        size = model.config.grid * 2**model.stages
        flags = jnp.zeros((2,), bool)
        sequence = Batch(
            jnp.zeros((2, size, size, 3), jnp.uint8),
            jnp.zeros((2, *model.actions.shape), model.actions.dtype),
            jnp.zeros((2,)),
            *(flags, flags, flags, flags),
            carry=empty_carry(model),
        )
        return model.init(key, sequence, key, method=WorldModel.everything)["params"]

    return init_together(init, key)
