"""The losses of the world model (section 3), the actor and the critic (section 6).

Losses keep their shape, `[..., L]` (sequences) or `[H, ...]` (rollouts), until the caller takes the
mean, so that masks and weights are visible where they are applied.
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Float

from emerald_jax.config import BehaviorConfig, LossConfig
from emerald_jax.models.heads import ActorCritic
from emerald_jax.models.world_model import Pass, WorldModel
from emerald_jax.ops.distributions import any_class, entropy, kl_divergence
from emerald_jax.ops.maskgit import random_mask
from emerald_jax.ops.random import split, uniform
from emerald_jax.ops.returns import lambda_returns, survival_weights
from emerald_jax.ops.scalars import two_hot_loss, two_hot_mean
from emerald_jax.types import AnyArray, Array, Batch, Key, Params, Played, Trajectory

sg = jax.lax.stop_gradient

#: Change of an action's probability beyond which PPO has no gradient (its authors' value).
CLIP = 0.2


def world_model_losses(
    params: Params,
    batch: Batch,
    key: Key,
    *,
    model: WorldModel,
    config: LossConfig,
    deterministic: bool = False,
) -> tuple[dict[str, Float[Array, "*B L"]], tuple[Pass, dict[str, Float[Array, "*B L"]]]]:
    """All unweighted loss terms of real sequences, and their forward pass.

    Args:
        params: the world model's parameters.
        batch: :class:`Batch` `[..., L]`, ``carry`` included.
        key: `[...]`, one for each sequence; consumed.
        model: the world model.
        config: weights and floors.
        deterministic: no dropout.

    Returns:
        Terms `[..., L]`, keyed by the weight names of :class:`LossConfig`; the :class:`Pass` and
        metrics `[..., L]`.
    """
    latent_key, mask_key, *drop_keys = split(key, 4)
    drop_key, prior_key = (None, None) if deterministic else drop_keys
    net = model.bind({"params": params})
    out = net(batch, latent_key, drop_key)
    target = batch.image.astype(jnp.float32) / 255 - 0.5
    image, pixels = net.reconstruct(out.z, out.state.h), (-3, -2, -1)
    terms = {
        "image": jnp.sum(jnp.square(image - target), axis=pixels),
        "reward": two_hot_loss(net.reward(out.z, out.state.h), batch.reward),
        "cont": optax.sigmoid_binary_cross_entropy(
            net.cont(out.z, out.state.h), 1.0 - batch.is_terminal
        ),
        **latent_losses(net, out, mask_key, config, prior_key),
    }
    metrics = {
        "pixel_error": jnp.mean(jnp.square(image - target), axis=pixels),
        "posterior_entropy": entropy(out.posterior).sum(-1).mean(-1),
        "prior_entropy": entropy(sg(net.dynamics(out.features))).sum(-1).mean(-1),
    }
    return terms, (out, metrics)


def latent_losses(
    net: WorldModel, out: Pass, key: Key, config: LossConfig, drop_key: Key | None
) -> dict[str, Array]:
    """KL terms ``dyn``, ``rep`` and ``mask``, each `[..., L]`, in nats per position.

    The KL of posterior and dynamics head is summed over a position's G groups and floored per
    position. The predictor's term is floored after its mean over positions; it is 0 if the dynamics
    head is the only prior. Both keys `[...]` are consumed: for the masks, and for dropout (None: no
    dropout).
    """
    prior = net.dynamics(out.features)
    dyn = kl_divergence(sg(out.posterior), prior).sum(-1)
    rep = kl_divergence(out.posterior, sg(prior)).sum(-1)
    terms = {
        "dyn": jnp.maximum(config.free_nats, dyn).mean(-1),
        "rep": jnp.maximum(config.free_nats, rep).mean(-1),
    }
    if net.config.prior == "linear":
        return {**terms, "mask": jnp.zeros_like(terms["dyn"])}
    if net.config.prior == "maskgit":
        mask = masked_divergence(net, out, key, drop_key)
    elif net.config.prior == "flow":
        mask = flow_divergence(net, out, key, drop_key)
    else:
        mask = ordered_divergence(net, out, drop_key)
    return {**terms, "mask": jnp.maximum(config.mask_free_nats, mask)}


def masked_divergence(net: WorldModel, out: Pass, key: Key, drop_key: Key | None) -> Array:
    """`[..., L]` G times the mean KL(sg(q) || p_mask) over randomly masked tokens."""
    length, positions, groups, classes = out.posterior.shape[-4:]
    u_key, mask_key = split(key, 2)
    u = uniform(u_key, (length,))
    masked = random_mask(mask_key, positions * groups, u).reshape(out.state.z.shape)
    tokens = jnp.where(masked, classes, out.state.z)
    predicted = net.masked_prior(out.features, tokens, drop_key)
    kl = kl_divergence(sg(out.posterior), predicted)
    return groups * jnp.sum(kl * masked, axis=(-2, -1)) / jnp.sum(masked, axis=(-2, -1))


def flow_divergence(net: WorldModel, out: Pass, key: Key, drop_key: Key | None) -> Array:
    """`[..., L]` G times the mean KL(sg(r) || p_flow) over all tokens, at a random time per step.

    r is the distribution of a token's class given its own noisy value: q times the probability of
    that value. Where the value says nothing, at time 0, it is q.
    """
    *shape, classes = out.posterior.shape[-4:]
    time_key, noise_key = split(key, 2)
    time = uniform(time_key, (shape[0],))
    u = uniform(noise_key, (2, *shape), before=1)
    share = time[..., None, None]
    tokens = jnp.where(u[0] < share, out.state.z, any_class(u[1], classes))
    own = jax.nn.one_hot(tokens, classes)
    likelihood = (1 - share[..., None]) / classes + share[..., None] * own
    r = jax.nn.log_softmax(sg(out.posterior) + jnp.log(likelihood))
    predicted = net.flow_prior(out.features, tokens, time, drop_key)
    return kl_divergence(r, predicted).sum(-1).mean(-1)


def ordered_divergence(net: WorldModel, out: Pass, drop_key: Key | None) -> Array:
    """`[..., L]` KL(sg(q) || p_ar), each position given the sampled tokens of those before it.

    Summed over groups and averaged over positions, as MaskGIT's term is when all tokens are masked.
    """
    predicted = net.ordered_prior(out.features, out.state.z, drop_key)
    return kl_divergence(sg(out.posterior), predicted).sum(-1).mean(-1)


def weighted_sum(terms: dict[str, Array], config: LossConfig) -> Array:
    """Sum of the terms times their weights; ValueError if their names differ."""
    weights = dataclasses.asdict(config)
    weights = {name: w for name, w in weights.items() if not name.endswith("free_nats")}
    if weights.keys() != terms.keys():
        raise ValueError(f"loss terms {sorted(terms)} do not match weights {sorted(weights)}")
    return sum(weights[name] * terms[name] for name in weights)


class Returns(NamedTuple):
    """Predictions of the frozen world model and critic for a trajectory, without gradients.

    Attributes:
        target: `[H, ...]` lambda-returns R_0 .. R_{H-1}.
        value: `[H, ...]` the critic's values of the same states.
        weight: `[H, ...]` survival weights.
        reward: `[H, ...]` imagined rewards r_1 .. r_H.
        cont: `[H, ...]` imagined continuation c_1 .. c_H: 0 or 1, or probabilities.
        log_prob: `[H, ...]` of the actions when they were taken; None: by the present policy.
    """

    target: Array
    value: Array
    weight: Array
    reward: Array
    cont: Array
    log_prob: Array | None = None


def evaluate_trajectory(
    params: Params,
    trajectory: Trajectory,
    cont_0: Float[AnyArray, "*n"],
    *,
    model: WorldModel,
    actor_critic: ActorCritic,
    config: BehaviorConfig,
) -> Returns:
    """Rewards, continuation, values and lambda-returns of all imagined states at once.

    ``params`` has ``world_model`` and ``critic``; the trajectory is `[H + 1, ...]`; ``cont_0``
    `[...]` is the real continuation of the starts, 0 where the episode had terminated.
    """
    state, frozen = trajectory.state, {"params": params["world_model"]}
    reached = jax.tree.map(lambda x: x[1:], state)
    reward = two_hot_mean(model.apply(frozen, reached.z, reached.h, method=WorldModel.reward))
    logit = model.apply(frozen, reached.z, reached.h, method=WorldModel.cont)
    cont = jax.nn.sigmoid(logit) if config.soft_continue else (logit > 0).astype(jnp.float32)
    value = two_hot_mean(actor_critic.value_logits(params["critic"], state))
    target = lambda_returns(reward, cont, value, gamma=config.gamma, lam=config.lam)
    cont_t = jnp.concatenate([cont_0[None].astype(jnp.float32), cont])
    weight = survival_weights(cont_t, gamma=config.gamma)[:-1]
    return sg(Returns(target, value[:-1], weight, reward, cont))


def played_returns(
    critic: Params,
    played: Played,
    *,
    actor_critic: ActorCritic,
    config: BehaviorConfig,
    count: int,
) -> tuple[Trajectory, Returns]:
    """The oldest ``count`` played steps as one rollout of each environment, and their returns.

    Rewards and continuation are the real ones. A return ends with the critic's value where an
    episode was cut, where a detour begins, and at the newest step. The weight is 0 where a step is
    not due or its episode had ended, and 1 on average over all.

    Args:
        critic: the critic's parameters.
        played: :class:`Played` `[E, W]`, W > ``count``.
        actor_critic: the networks.
        config: discount and lambda.
        count: steps to learn from.

    Returns:
        :class:`Trajectory` `[count + 1, E]` and :class:`Returns` `[count, E]`.
    """
    state, action, log_prob, reward, first, terminal, due = jax.tree.map(
        lambda x: jnp.swapaxes(x, 0, 1), tuple(played)
    )
    value = two_hot_mean(actor_critic.value_logits(critic, state))
    # Another episode begins, or (among steps that are newer than the due ones) a detour.
    over = first[1:] | ~due[:-1]
    reward = jnp.where(over, value[:-1], reward[1:])
    cont = jnp.where(over | terminal[1:], 0.0, 1.0)
    target = lambda_returns(reward, cont, value, gamma=config.gamma, lam=config.lam)
    weight = (~over)[:count].astype(jnp.float32)
    weight /= jnp.maximum(weight.mean(), 1 / weight.size)
    trajectory = Trajectory(jax.tree.map(lambda x: x[: count + 1], state), action[:count])
    parts = (target, value[:-1], weight, reward, cont, log_prob)
    return trajectory, sg(Returns(*(x[:count] for x in parts)))


def actor_losses(
    actor: Params,
    trajectory: Trajectory,
    returns: Returns,
    scale: Float[Array, ""] | float,
    *,
    actor_critic: ActorCritic,
    config: BehaviorConfig,
    pace: Float[Array, ""] | float = 1.0,
) -> tuple[Float[Array, H * n], dict[str, Float[Array, H * n]]]:
    """REINFORCE with a normalised advantage and an entropy bonus, weighted by survival.

    -(log pi(a_k | s_k) sg((R_k - v_k) / scale) + eta H[pi]) w_k  (DreamerV3, equation 11).

    Actions of a policy that has moved on since (``returns.log_prob``) have PPO's clipped ratio in
    place of log pi (arXiv 1707.06347, equation 7).

    Args:
        actor: the actor's parameters.
        trajectory: :class:`Trajectory`.
        returns: :class:`Returns`.
        scale: `[]` return scale, at least 1.
        actor_critic: the networks.
        config: entropy weight eta.
        pace: multiplies it.

    Returns:
        `[H, ...]` loss and metrics of the same shape.
    """
    acted = jax.tree.map(lambda x: sg(x[:-1]), trajectory.state)
    policy = actor_critic.policy(actor, acted)
    advantage = (returns.target - returns.value) / scale
    spread = policy.entropy()
    gain = policy.log_prob(trajectory.action)
    if returns.log_prob is None:
        gain = gain * sg(advantage)
    else:
        ratio = jnp.exp(gain - returns.log_prob)
        near = jnp.clip(ratio, 1 - CLIP, 1 + CLIP)
        gain = jnp.minimum(ratio * sg(advantage), near * sg(advantage))
    loss = -(gain + pace * config.entropy * spread) * returns.weight
    return loss, {"policy_entropy": sg(spread), "advantage": advantage}


def critic_losses(
    critic: Params,
    slow_critic: Params,
    trajectory: Trajectory,
    returns: Returns,
    *,
    actor_critic: ActorCritic,
    config: BehaviorConfig,
) -> Float[Array, H * n]:
    """Cross-entropy to the lambda-return and to the slow critic's mean, weighted by survival.

    Args:
        critic: the critic's parameters.
        slow_critic: parameters of its slow copy.
        trajectory: :class:`Trajectory`.
        returns: :class:`Returns`.
        actor_critic: the networks.
        config: weight of the slow critic.

    Returns:
        `[H, ...]`.
    """
    seen = jax.tree.map(lambda x: sg(x[:-1]), trajectory.state)
    logits = actor_critic.value_logits(critic, seen)
    slow = sg(two_hot_mean(actor_critic.value_logits(slow_critic, seen)))
    loss = two_hot_loss(logits, returns.target) + config.slow_weight * two_hot_loss(logits, slow)
    return loss * returns.weight
