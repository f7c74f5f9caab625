"""The FLOPs of the paper's model in closed form: the oracle for ``benchmarks.suite.flops``.

Every layer counts once, as the model is defined (algorithm notes, section 2): a one-hot latent
through a 1x1 convolution as a matrix product, each MaskGIT round as one pass of the predictor,
attention over the C + 1 keys of a full context. A backward pass costs twice its forward pass, once
where the input needs no gradient. The agent's losses do not count forward passes that imagination
or the returns have made of the same states. ``least`` leaves out products with one-hot operands and
the features' half of every MaskGIT round after the first.

The counts of one update are larger: useful by 2.7 % for ``crafter``, 2.3 % for ``crafter-small``
and 6.0 % for ``tiny``; least by 5.2, 6.1 and 8.5 %. The program multiplies masked keys of attention
and the border that transposed convolutions cut off; embeds words by one product per call, but not
the tokens of the first MaskGIT round; in ``least``, the features' half of every round counts.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from benchmarks.suite.flops import Flops
from emerald_jax.config import Config, ModelConfig


@dataclass(frozen=True)
class Work:
    """Forward and backward FLOPs; sums and multiples work part by part."""

    forward: Flops
    backward: Flops

    def __add__(self, other: Work) -> Work:
        return Work(self.forward + other.forward, self.backward + other.backward)

    def __rmul__(self, times: int) -> Work:
        return Work(times * self.forward, times * self.backward)

    @property
    def both(self) -> Flops:
        """Forward and backward together."""
        return self.forward + self.backward


NOTHING = Flops(0, 0)


def product(rows: int, inputs: int, outputs: int, *, input_gradient: bool = True) -> Work:
    """A matrix product `[rows, inputs] @ [inputs, outputs]`, or a convolution seen as one."""
    once = Flops(2 * rows * inputs * outputs, 2 * rows * inputs * outputs)
    return Work(once, 2 * once if input_gradient else once)


def one_hot_product(rows: int, inputs: int, outputs: int, *, input_gradient: bool) -> Work:
    """The same where every row holds one-hot vectors: useful work that a gather could replace."""
    once = product(rows, inputs, outputs).forward
    free = Flops(once.useful, 0)
    return Work(free, free + once if input_gradient else free)


def head(c: ModelConfig, outputs: int, *, input_gradient: bool) -> Work:
    """Reward, continue, actor or critic head on one state (section 2.6)."""
    positions = c.grid**2
    work = one_hot_product(
        positions, c.groups * c.classes, c.latent_width, input_gradient=input_gradient
    )
    work += product(1, positions * c.latent_width, c.width)
    width = 2 * c.width
    for _ in range(c.head_layers):
        work += product(1, width, c.width)
        width = c.width
    return work + product(1, width, outputs)


def encoder(config: Config) -> Work:
    """Posterior of one image (section 2.1)."""
    c, size, channels = config.model, config.envs.image_size, 3
    work = 0 * product(1, 1, 1)
    for stage in range(config.stages):
        size, out = size // 2, c.channels * 2**stage
        # the image itself needs no gradient
        work += product(size**2, 16 * channels, out, input_gradient=stage > 0)
        work += 2 * product(size**2, 9 * out, out)
        channels = out
    return work + product(c.grid**2, 9 * channels, c.groups * c.classes)


def decoder(config: Config) -> Work:
    """Reconstruction of one image (section 2.5): a transposed convolution counts its inputs."""
    c, size = config.model, config.model.grid
    positions, top = c.grid**2, c.channels * 2 ** (config.stages - 1)
    work = one_hot_product(positions, c.groups * c.classes, top, input_gradient=True)
    work += product(1, c.width, positions * c.latent_width)
    work += product(positions, c.latent_width, top)
    for stage in reversed(range(config.stages)):
        channels = c.channels * 2**stage
        out = c.channels * 2 ** (stage - 1) if stage else 3
        work += 2 * product(size**2, 9 * channels, channels)
        work += product(size**2, channels, 16 * out)
        size *= 2
    return work


def temporal_step(c: ModelConfig, num_actions: int, *, input_gradient: bool) -> Work:
    """One token of the temporal transformer over a full context (section 2.2)."""
    positions, keys = c.grid**2, c.context + 1
    work = one_hot_product(
        positions, c.groups * c.classes, c.latent_width, input_gradient=input_gradient
    )
    work += product(1, positions * c.latent_width, c.width)
    work += product(1, c.width, c.width)  # the latent's half of the join
    work += one_hot_product(1, num_actions, c.width, input_gradient=False)
    work += product(1, c.width, c.width)
    block = product(1, c.width, 3 * c.width)
    block += 3 * product(keys, c.width, 1)  # scores, distance terms, mixed values
    block += product(1, c.width, c.width)
    block += 2 * product(1, c.width, c.ff_ratio * c.width)
    return work + c.blocks * block


def distance_tables(c: ModelConfig) -> Work:
    """Projections of the C + 1 distances, once per call: the sines are constant."""
    return c.blocks * product(c.context + 1, c.width, c.width, input_gradient=False)


def spread(c: ModelConfig) -> Work:
    """h_t spread over the latent positions: the features of all priors."""
    positions = c.grid**2
    return product(1, c.width, positions * c.latent_width) + product(
        positions, c.latent_width, c.predictor_width
    )


def dynamics_head(c: ModelConfig) -> Work:
    """Linear prediction of one latent (section 2.4)."""
    return product(c.grid**2, c.predictor_width, c.groups * c.classes)


def predictor(c: ModelConfig) -> Work:
    """One pass of the MaskGIT predictor over one latent (section 2.3)."""
    return predictor_entry(c) + predictor_body(c)


def predictor_entry(c: ModelConfig) -> Work:
    """Tokens and features to the predictor's width: `[G * E | F] -> F` at every position."""
    positions, width = c.grid**2, c.predictor_width
    tokens = one_hot_product(positions, c.groups * c.token_width, width, input_gradient=False)
    # The embedding of a token is learned: its gradient is one more product of the same size.
    tokens += Work(NOTHING, Flops(tokens.forward.useful, 0))
    return tokens + product(positions, width, width)


def predictor_body(c: ModelConfig) -> Work:
    """The predictor's blocks over the positions, and its logits."""
    positions, width = c.grid**2, c.predictor_width
    block = product(positions, width, 3 * width)
    block += 2 * product(positions**2, width, 1)  # scores and mixed values
    block += product(positions, width, width)
    block += 2 * product(positions, width, c.ff_ratio * width)
    return c.predictor_blocks * block + product(positions, width, c.groups * c.classes)


def trained_prior(c: ModelConfig) -> Work:
    """The configured prior in the loss of one state, without the dynamics head."""
    if c.prior == "linear":
        return 0 * predictor(c)
    if c.prior == "autoregressive":
        positions = c.grid**2
        unseen = positions**2 - positions * (positions + 1) // 2
        return predictor(c) + 2 * c.predictor_blocks * (-1 * product(unseen, c.predictor_width, 1))
    return predictor(c)


def decode_flops(c: ModelConfig, steps: int) -> Flops:
    """One latent drawn from its h_t in S rounds; S = 0 is the linear head."""
    if steps == 0:
        return (spread(c) + dynamics_head(c)).forward
    useful = spread(c).forward + steps * predictor(c).forward
    features = product(c.grid**2, c.predictor_width, c.predictor_width).forward
    least = (spread(c).forward + features + steps * predictor_body(c).forward).least
    return Flops(useful.useful, least)


def imagined_step_flops(c: ModelConfig, num_actions: int, steps: int) -> Flops:
    """One imagined step of one rollout: policy, cached transformer, decoding."""
    act = head(c, num_actions, input_gradient=False).forward
    advance = temporal_step(c, num_actions, input_gradient=False).forward
    return act + advance + decode_flops(c, steps)


def imagine_flops(config: Config, num_actions: int, starts: int) -> Flops:
    """``starts`` rollouts of H steps."""
    behavior, c = config.behavior, config.model
    step = imagined_step_flops(c, num_actions, behavior.decode_steps)
    return starts * behavior.horizon * step + distance_tables(c).forward


def world_model_work(config: Config, num_actions: int) -> Work:
    """The world-model loss of one batch (section 3)."""
    c = config.model
    step = encoder(config) + temporal_step(c, num_actions, input_gradient=True)
    step += spread(c) + dynamics_head(c) + trained_prior(c) + decoder(config)
    step += head(c, c.bins, input_gradient=True) + head(c, 1, input_gradient=True)
    return config.replay.batch * config.replay.length * step + distance_tables(c)


def agent_flops(config: Config, num_actions: int, starts: int) -> Flops:
    """Returns, actor and critic losses and their gradients on the imagined states."""
    c, horizon = config.model, config.behavior.horizon
    reward = head(c, c.bins, input_gradient=False)
    cont = head(c, 1, input_gradient=False)
    critic = head(c, c.bins, input_gradient=False)
    actor = head(c, num_actions, input_gradient=False)
    judge = horizon * (reward.forward + cont.forward) + (horizon + 1) * critic.forward
    learn = horizon * (critic.forward + critic.backward + actor.backward)  # forward: slow critic
    return starts * (judge + learn)


def update_flops(config: Config, num_actions: int) -> dict[str, Flops]:
    """One update by part, and their sum ``whole``. The optimiser has no products."""
    starts = starts_per_update(config)
    parts = {
        "world_model": world_model_work(config, num_actions).both,
        "imagination": imagine_flops(config, num_actions, starts),
        "actor_critic": agent_flops(config, num_actions, starts),
    }
    return {**parts, "whole": sum(parts.values(), NOTHING)}


def starts_per_update(config: Config) -> int:
    """Rollouts of one update."""
    return config.replay.batch * (config.replay.length // config.behavior.start_stride)


def autoregressive_flops(c: ModelConfig) -> Flops:
    """One latent drawn position after position with cached keys: one causal pass in total."""
    causal = trained_prior(dataclasses.replace(c, prior="autoregressive")).forward
    return spread(c).forward + causal
