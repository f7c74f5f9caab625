"""Measure trained world models on held-out play, window by window."""

from __future__ import annotations

import itertools
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.suite.harness import Budget, repeat
from emerald_jax.agent.dream import open_loop
from emerald_jax.agent.state import Learner, init_carry
from emerald_jax.imagination import decode
from emerald_jax.models.world_model import WorldModel, no_before
from emerald_jax.ops.distributions import take_class
from emerald_jax.ops.maskgit import halton_ranks, mask_counts
from emerald_jax.run.machine import compile_program
from emerald_jax.types import Array, Batch, Before, Key, Params
from experiments.study.worlds import World

#: Windows measured at a time, which bounds the memory.
_AT_ONCE = 16
#: Largest difference of two colours that count as equal, on the unit scale.
_SAME = 0.25
#: Latents decoded at once where decoding is timed, and rounds of timing.
_DECODED, _REPEATS = 256, 15


def joint_log_prob(
    params: Params,
    h: Array,
    z: Array,
    key: Key,
    *,
    model: WorldModel,
    steps: int,
    method: str = "maskgit",
    before: Before | None = None,
) -> Array:
    """Log-likelihood `[...]` in nats of latents `z` `[..., P, G]` given `h` `[..., D]`.

    It is exact for the linear and the autoregressive prior. For the MaskGIT it is the likelihood of
    revealing the tokens in a uniformly random order, in each of the S steps as many as its schedule
    reveals: the sum over steps of log p(tokens revealed | tokens revealed before). Averaged over
    orders this is a lower bound (Jensen). ``method`` "halton" takes its own order, for which the
    likelihood is exact. For the flow it is a loose lower bound: it counts only paths on which a
    token leaves its noise once. S = 0 takes the dynamics head. ``before`` `[...]` led into h.
    """
    c = model.config
    net = model.bind({"params": params})
    features = net.prior_features(h, before)
    if steps == 0 or c.prior == "linear":
        return take_class(net.dynamics(features), z).sum((-2, -1))
    if c.prior == "autoregressive":
        return take_class(net.ordered_prior(features, z), z).sum((-2, -1))
    if c.prior == "flow":
        return _flow_log_prob(net, features, z, key, steps)
    tokens = c.positions * c.groups
    if method == "halton":  # the rank 0 is shown first
        order = jnp.broadcast_to(tokens - 1 - halton_ranks(c.positions, c.groups), z.shape)
    else:
        order = jnp.argsort(jax.random.uniform(key, (*z.shape[:-2], tokens)), axis=-1)
        order = order.reshape(z.shape)
    total = jnp.zeros(z.shape[:-2])
    for now, then in itertools.pairwise((*mask_counts(tokens, steps), 0)):
        masked = jnp.where(order < now, c.classes, z)
        log_probs = take_class(net.masked_prior(features, masked), z)
        total += jnp.where((order < now) & (order >= then), log_probs, 0).sum((-2, -1))
    return total


def _flow_log_prob(net: WorldModel, features: Array, z: Array, key: Key, steps: int) -> Array:
    """One draw of the bound sum_s log p(x_{s+1} | x_s) - log q(x_{s+1} | x_s, z), per latent.

    x_0 is noise and x_S = z. Under q a token stays as it is or, once, becomes z; p is a step of
    :func:`emerald_jax.imagination.flow_decode`.
    """
    noise_key, time_key = jax.random.split(key)
    noise = jax.random.randint(noise_key, z.shape, 0, net.config.classes)
    leaves = jax.random.uniform(time_key, z.shape)
    total = jnp.zeros(z.shape[:-2])
    for s in range(steps):
        now, then = (jnp.where(leaves < t / steps, z, noise) for t in (s, s + 1))
        jump = 1 / (steps - s)
        probs = jnp.exp(take_class(net.flow_prior(features, now, s / steps), then))
        p = jump * probs + (1 - jump) * (then == now)
        q = jnp.where(now == z, 1.0, jnp.where(then == z, jump, 1 - jump))
        total += (jnp.log(p) - jnp.log(q)).sum((-2, -1))
    return total


def measure(
    world: World,
    windows: Batch,
    context: int,
    *,
    seed: int,
    pictures: bool = False,
    draws: int = 1,
) -> dict[str, np.ndarray]:
    """Read ``context`` frames of windows `[W, T]`; measure the next latents and the open loop.

    The world's settings choose how latents are decoded. ``pictures`` adds the reconstructions,
    ``recon`` `[W, T, height, width, 3]`. With ``draws`` >= 2 samples of each latent, their joint is
    measured too. Returns one value per window, or per window and step:

    * ``pixel_error`` `[W]`: squared error of reconstructions, mean over pixels, unit scale;
    * ``token_accuracy`` `[W]`: share of decoded tokens that equal the posterior's likeliest, h_t
      read from real frames;
    * ``nats`` `[W]`: -:func:`joint_log_prob` of the posterior's sample, per latent;
    * ``pair_score``, ``alike`` `[W]`: see :func:`pair_scores`;
    * ``dream_error`` `[W, T - context]`: squared error of imagined frames;
    * ``moved`` `[W, T - context]`: see :func:`moved_share`;
    * ``reward_error`` `[W, T - context]`: absolute error of imagined rewards;
    * ``still_error``, ``still_moved``: the same for a dream that repeats the last frame read;
    * ``zero_error``: the same for a model that never predicts a reward.
    """
    count = windows.action.shape[0]
    keys = jax.random.split(jax.random.key(seed), count)
    options = {"learner": world.learner, "context": context, "recon": pictures, "draws": draws}
    run = jax.jit(partial(_measure_batch, **options))
    parts, at_once, program = [], min(_AT_ONCE, count), None
    carry = init_carry(world.learner, at_once)
    for start in range(0, count - count % at_once, at_once):
        part, some = jax.tree.map(lambda x, s=start: x[s : s + at_once], (windows, keys))
        arguments = (world.params, part._replace(carry=carry), some)
        program = program or compile_program(run.lower(*arguments))
        parts.append(jax.device_get(program(*arguments)))
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _measure_batch(
    params: Params,
    batch: Batch,
    key: Key,
    *,
    learner: Learner,
    context: int,
    recon: bool,
    draws: int,
) -> dict[str, Array]:
    """:func:`measure` of a batch of windows."""
    behavior = learner.config.behavior
    options = {"model": learner.model, "steps": behavior.decode_steps, **behavior.decoding}
    likelihood = {name: value for name, value in options.items() if name != "noise"}
    pass_key, order_key, decode_key, dream_key = jax.vmap(partial(jax.random.split, num=4))(key).T

    def latents(sequence: Batch, pass_key: Key, order_key: Key, decode_key: Key) -> tuple:
        passed = learner.model.apply({"params": params}, sequence, pass_key)
        h, z = passed.state.h[context:], passed.state.z[context:]
        action, reset = sequence.action[context:], sequence.reset[context:]
        before = Before(passed.state.z[context - 1 : -1], action, reset)
        likeliest = jnp.argmax(passed.posterior[context:], -1)
        many = jnp.broadcast_to(h, (draws, *h.shape))
        each = jax.tree.map(lambda x: jnp.broadcast_to(x, (draws, *x.shape)), before)
        drawn = decode(params, many, decode_key, before=each, **options).z
        equal = drawn == jnp.broadcast_to(likeliest, drawn.shape)
        found = {
            "token_accuracy": jnp.mean(equal, dtype=jnp.float32),
            "nats": -joint_log_prob(params, h, z, order_key, before=before, **likelihood).mean(),
        }
        if draws > 1:
            score, alike = pair_scores(drawn, z)
            found |= {"pair_score": score.mean(), "alike": alike.mean()}
        return found

    found = jax.vmap(latents)(batch, pass_key, order_key, decode_key)
    seen = open_loop({"world_model": params}, batch, dream_key, learner=learner, context=context)
    real = batch.image.astype(jnp.float32) / 255
    still = jnp.broadcast_to(real[:, context - 1 : context], real.shape)

    def square(predicted: Array) -> Array:
        return jnp.square(predicted - real).mean((-3, -2, -1))

    return (
        found
        | ({"recon": seen.recon} if recon else {})
        | {
            "pixel_error": square(seen.recon).mean(-1),
            "dream_error": square(seen.dream)[:, context:],
            "moved": moved_share(real, seen.dream)[:, context - 1 :],
            "reward_error": jnp.abs(seen.reward - batch.reward)[:, context:],
            "still_error": square(still)[:, context:],
            "still_moved": moved_share(real, still)[:, context - 1 :],
            "zero_error": jnp.abs(batch.reward)[:, context:],
        }
    )


def pair_scores(drawn: Array, real: Array) -> tuple[Array, Array]:
    """How well samples `drawn` `[R, ..., P, G]` of one latent foretell pairs of its tokens.

    Of two latents let k be the share of the token pairs in which both tokens agree. Returns two
    arrays `[...]` for the latent that was ``real`` `[..., P, G]`:

    * the Brier score of the pairs' joint tables, k(sample, sample) - 2 k(sample, real) + 1: their
      squared distance from the pair that was real, on average over pairs. The true joint has the
      lowest expected score, and the scores of two decoders differ as their errors do;
    * k(sample, sample) - k(sample, real): 0 for the true joint, above 0 where samples agree with
      one another more than with reality (too typical), below 0 where they vary too much.
    """

    def agreement(a: Array, b: Array) -> Array:
        tokens, same = a.shape[-1] * a.shape[-2], jnp.sum(a == b, (-2, -1), dtype=jnp.float32)
        return same * (same - 1) / (tokens * (tokens - 1))

    others = [agreement(drawn, jnp.roll(drawn, turn, 0)) for turn in range(1, len(drawn))]
    own = jnp.stack(others).mean((0, 1))
    with_real = agreement(drawn, jnp.broadcast_to(real, drawn.shape)).mean(0)
    return own - 2 * with_real + 1, own - with_real


def moved_share(real: Array, shown: Array) -> Array:
    """Share `[W, T - 1]` of the pixels that changed since the last frame and are shown right.

    Frames are `[W, T, height, width, 3]` in [0, 1]; a pixel is right if each channel is within a
    quarter of the scale. A mean over all pixels hardly depends on a ball of one pixel. Both the
    place that a piece left and its new place count, so a dream without the ball has half of it
    right. Useless for noisy pictures (Crafter's nights), where every pixel changes.
    """
    moved = jnp.any(real[:, 1:] != real[:, :-1], axis=-1)
    right = jnp.all(jnp.abs(shown - real)[:, 1:] < _SAME, axis=-1)
    total = jnp.sum(moved, axis=(-2, -1))
    return jnp.where(total, jnp.sum(moved & right, axis=(-2, -1)) / jnp.maximum(total, 1), 1.0)


def _drawn(params: Params, h: Array, key: Key, before: Before, **options: Any) -> Array:
    return decode(params, h, key, before=before, **options).z


def decoding_times(worlds: dict[str, World]) -> dict[str, np.ndarray]:
    """Microseconds `[rounds]` that each world model needs to decode one of 256 latents.

    The programs are timed in turn, so that other load on the machine affects all of them equally.
    """
    programs, budget = {}, Budget(0, least=1)
    for name, world in worlds.items():
        model, behavior = world.learner.model, world.learner.config.behavior
        h = jax.random.normal(jax.random.key(0), (_DECODED, model.config.width), model.dtype)
        arguments = (world.params, h, jax.random.key(1), no_before(model, _DECODED))
        draw = partial(_drawn, model=model, steps=behavior.decode_steps, **behavior.decoding)
        lowered = jax.jit(draw).lower(*arguments)
        programs[name] = partial(compile_program(lowered), *arguments)
        jax.block_until_ready(programs[name]())
    rounds = [[repeat(call, budget)[0] for call in programs.values()] for _ in range(_REPEATS)]
    return dict(zip(programs, np.array(rounds).T / _DECODED * 1e6, strict=True))


def recall(world: World, windows: Batch, *, seed: int) -> dict[str, np.ndarray]:
    """Does the model remember the cue of complete episodes of ``probe.py``, read but for the last?

    Of the imagined last frame, ``recall`` `[W]` is 1 where the predicted reward has the right sign,
    ``recall_pixels`` `[W]` where the frame is nearer to the right colour.
    """
    learner, (count, length) = world.learner, windows.reward.shape
    batch = windows._replace(carry=init_carry(learner, count))
    keys = jax.random.split(jax.random.key(seed), count)
    dream = jax.jit(partial(open_loop, learner=learner, context=length - 1))
    found = jax.device_get(dream({"world_model": world.params}, batch, keys))
    reward, frame, real = found.reward[:, -1], found.dream[:, -1], np.sign(windows.reward[:, -1])
    # The cues are red and blue.
    redder = frame[..., 0].mean((1, 2)) - frame[..., 2].mean((1, 2))
    return {
        "recall": (np.sign(reward) == real).astype(np.float32),
        "recall_pixels": (np.sign(redder) == real).astype(np.float32),
    }
