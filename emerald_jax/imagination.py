"""Imagination: rollouts inside the world model, and the decoding of each imagined latent.

:func:`decode` samples z_t given h_t: with MaskGIT in S rounds of cosine-scheduled re-masking
(section 4), or with the other configured prior. :func:`imagine` runs H steps of any policy and step
function in one ``lax.scan`` (section 5); :func:`world_model_step` builds EMERALD's step. No
gradient flows through a rollout (REINFORCE); losses evaluate heads on the finished trajectory.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Float, Int

from emerald_jax.models.prior import empty_cache
from emerald_jax.models.world_model import Pass, WorldModel
from emerald_jax.ops.distributions import any_class, choose, gumbel, mixed_probs, take_class
from emerald_jax.ops.maskgit import (
    halton_ranks,
    lowest_confidence,
    mask_counts,
    remask,
    remask_counts,
)
from emerald_jax.ops.random import uniform
from emerald_jax.types import (
    AnyArray,
    Array,
    Before,
    FlowFn,
    Key,
    OrderedFn,
    Params,
    PolicyFn,
    ProbsFn,
    Starts,
    State,
    StepFn,
    Trajectory,
)


class Decoded(NamedTuple):
    """A decoded latent and its confidence.

    Attributes:
        z: `[..., P, G]` int32 class indices.
        log_prob: `[..., P, G]` float32, of each token under the prediction it was sampled from.
        masked: one array `[..., P, G]` bool per decoding step, the tokens masked at its start (of
            the prior ``flow``: drawn in it).
    """

    z: Array
    log_prob: Array
    masked: tuple[Array, ...]


def maskgit_decode(
    probs_fn: ProbsFn,
    key: Key,
    *,
    steps: int,
    shape: tuple[int, ...],
    method: str = "maskgit",
    noise: float = 1.0,
) -> Decoded:
    """S-step decoding for any predictor of masked tokens (EMERALD; MaskGIT, arXiv 2202.04200).

    Step 0 samples every token from the all-MASK prediction. Each later step masks n_s tokens,
    predicts again and resamples only those. ``method`` chooses them:

    * ``maskgit``: the least confident of the tokens sampled in the step before, where confidence is
      log p(sampled class) + ``noise`` * Gumbel noise. Kept tokens never change again.
    * ``mdlm``: the same with random confidence, the masked diffusion sampler (arXiv 2406.07524).
      Which tokens are kept does not depend on their values, so with an exact predictor the samples
      converge to its joint distribution as S grows; those of ``maskgit`` are too typical.
    * ``remdm``: random tokens, half of them shown before where possible (arXiv 2503.00307).
    * ``halton``: by a fixed order of positions that lie far apart (arXiv 2503.17076).

    Args:
        probs_fn: tokens `[..., P, G]` int32, or None for all MASK -> `[..., P, G, K]` float32
            probabilities.
        key: consumed; or numbers in [0, 1), `[2 S - 1, ..., P, G]`.
        steps: S >= 1.
        shape: `(..., P, G)`; MASK is the class index K, the length of ``probs``' last axis. P is a
            square number for ``halton``.
        method: see above.
        noise: see above; other methods than ``maskgit`` do not use it.

    Returns:
        :class:`Decoded`.

    Raises:
        ValueError: there is no such method, or P is no square number for ``halton``.
    """
    if method not in ("maskgit", "mdlm", "remdm", "halton"):
        raise ValueError(f"no method {method!r}: choose maskgit, mdlm, remdm or halton")
    counts = mask_counts(shape[-2] * shape[-1], steps)
    # One draw for all random numbers: a generator call costs more than the numbers.
    u = uniform(key, (2 * steps - 1, *shape[key.ndim :]), before=1)
    probs = probs_fn(None)
    z = choose(u[0], probs)
    sure = jnp.log(take_class(probs, z))
    masked = jnp.ones(shape, bool)
    history = [masked]
    for s in range(1, steps):
        masked = _next_mask(method, s, counts, masked, sure, u[2 * s - 1], noise)
        probs = probs_fn(jnp.where(masked, probs.shape[-1], z))
        drawn = choose(u[2 * s], probs)
        z = jnp.where(masked, drawn, z)
        sure = jnp.where(masked, jnp.log(take_class(probs, drawn)), sure)
        history.append(masked)
    return Decoded(z, sure, tuple(history))


def _next_mask(
    method: str,
    step: int,
    counts: tuple[int, ...],
    masked: Array,
    sure: Array,
    u: Array,
    noise: float,
) -> Array:
    """Tokens `[..., P, G]` that are MASK in ``step`` >= 1 of :func:`maskgit_decode`.

    ``masked``, ``sure`` and the random numbers ``u`` are `[..., P, G]`; ``counts`` `[S]`.
    """
    if method == "halton":
        hidden = halton_ranks(*masked.shape[-2:]) >= counts[0] - counts[step]
        return jnp.broadcast_to(hidden, masked.shape)
    flat = (*masked.shape[:-2], counts[0])
    if method == "remdm":
        sizes = (counts[step - 1], counts[step], remask_counts(counts)[step])
        return remask(u.reshape(flat), masked.reshape(flat), *sizes).reshape(masked.shape)
    score = gumbel(u) if method == "mdlm" else sure + noise * gumbel(u)
    again = lowest_confidence(score.reshape(flat), masked.reshape(flat), counts[step])
    return again.reshape(masked.shape)


def flow_decode(
    probs_fn: FlowFn, key: Key, *, steps: int, shape: tuple[int, ...], classes: int
) -> Decoded:
    """S steps of discrete flow matching from uniform noise (arXiv 2407.15595).

    Step s predicts all classes at time s / S and draws each token again with probability
    1 / (S - s): the last step draws all. Tokens drawn before may change again. With an exact
    predictor the samples converge to its joint distribution as S grows.

    ``probs_fn`` is an :data:`emerald_jax.types.FlowFn`; ``key`` is consumed, or numbers in [0, 1),
    `[2 S, ..., P, G]`; ``steps`` S >= 1; ``shape`` is `(..., P, G)`; K = ``classes``.
    """
    u = uniform(key, (2 * steps, *shape[key.ndim :]), before=1)
    z = any_class(u[0], classes)
    sure, history = jnp.zeros(shape), []
    for s in range(steps):
        probs = probs_fn(z, s / steps)
        drawn = choose(u[2 * s + 1], probs)
        again = u[2 * s + 2] * (steps - s) < 1 if s < steps - 1 else jnp.ones(shape, bool)
        z = jnp.where(again, drawn, z)
        sure = jnp.where(again, jnp.log(take_class(probs, drawn)), sure)
        history.append(again)
    return Decoded(z, sure, tuple(history))


def ordered_decode(
    probs_fn: OrderedFn, cache: Any, key: Key, *, shape: tuple, classes: int
) -> Decoded:
    """Sample one position after another in a ``lax.scan``, the G tokens of a position at once.

    ``probs_fn`` is an :data:`emerald_jax.types.OrderedFn` and ``cache`` its empty cache, any
    pytree; ``shape`` is `(..., P, G)`; K = ``classes`` stands for the tokens before the first
    position.
    """
    lead, positions = shape[:-2], shape[-2]
    u = uniform(key, (positions, *lead[key.ndim :], shape[-1]), before=1)

    def body(loop: tuple[Array, Any], inputs: tuple[Array, Array]) -> tuple:
        previous, cache = loop
        place, u = inputs
        probs, cache = probs_fn(previous, place, cache)
        z = choose(u, probs)
        return (z, cache), (z, jnp.log(take_class(probs, z)))

    before = jnp.full((*lead, shape[-1]), classes, jnp.int32)
    _, (z, sure) = jax.lax.scan(body, (before, cache), (jnp.arange(positions), u))
    unknown = jnp.arange(positions)[:, None] >= jnp.arange(positions)[None]
    masked = tuple(jnp.broadcast_to(unknown[:, p, None], shape) for p in range(positions))
    return Decoded(jnp.moveaxis(z, 0, -2), jnp.moveaxis(sure, 0, -2), masked)


def decode(
    params: Params,
    h: Float[Array, "*n D"],
    key: Key,
    *,
    model: WorldModel,
    steps: int,
    before: Before | None = None,
    temperature: Array | float | None = None,
    method: str = "maskgit",
    noise: float = 1.0,
) -> Decoded:
    """Sample z_t ~ p(z_t | h_t).

    Args:
        params: the world model's parameters.
        h: `[..., D]`.
        key: consumed: one key, keys of the leading axes, or numbers of the shape
            :func:`decoding_draws`. The same key gives the same tokens.
        model: the world model.
        steps: S of MaskGIT and flow; 1 is one parallel sample; 0 samples the linear dynamics head
            with any prior. The linear prior always samples that head; the autoregressive prior
            always takes P steps.
        before: :class:`Before` `[...]`, what led into h, if ``model.prior_input`` is ``hz``.
        temperature: divides the log-probabilities (with the uniform share) before each draw; below
            1 likely tokens become likelier. None (as in training) compiles to no operation.
        method: the tokens that MaskGIT draws again, see :func:`maskgit_decode`.
        noise: scale of its Gumbel noise.

    Returns:
        :class:`Decoded` with leading dimensions of ``h``.
    """

    def probs_of(logits: Array) -> Array:
        probs = mixed_probs(logits, c.unimix)
        return probs if temperature is None else jax.nn.softmax(jnp.log(probs) / temperature)

    c, variables, lead = model.config, {"params": params}, h.shape[:-1]
    # All latents are rows: accelerators lay out nested batches badly.
    u = uniform(key, decoding_draws(model, steps, lead[key.ndim :]), before=1)
    u, h = u.reshape(u.shape[0], -1, *u.shape[1 + len(lead) :]), h.reshape(-1, h.shape[-1])
    before = jax.tree.map(lambda x: x.reshape(-1, *x.shape[len(lead) :]), before)
    features = model.apply(variables, h, before, method=WorldModel.prior_features)
    options = {"steps": steps, "method": method, "noise": noise}
    decoded = _decode_rows(variables, features, u, model, probs_of, options)
    return jax.tree.map(lambda x: x.reshape(*lead, *x.shape[1:]), decoded)


def decoding_draws(model: WorldModel, steps: int, lead: tuple[int, ...]) -> tuple[int, ...]:
    """Shape of the random numbers with which :func:`decode` samples latents `[*lead]`."""
    c = model.config
    if c.prior == "autoregressive" and steps > 0:
        return (c.positions, *lead, c.groups)
    if c.prior == "flow" and steps > 0:
        return (2 * steps, *lead, c.positions, c.groups)
    draws = 1 if c.prior == "linear" else max(1, 2 * steps - 1)
    return (draws, *lead, c.positions, c.groups)


def _decode_rows(
    variables: dict, features: Array, u: Array, model: WorldModel, probs_of: Callable, options: dict
) -> Decoded:
    """:func:`decode` of features `[n, P, F]` with the numbers u of :func:`decoding_draws`.

    ``options``: those of :func:`maskgit_decode`.
    """
    c, lead = model.config, features.shape[:-2]
    shape = (*lead, c.positions, c.groups)
    if options["steps"] == 0 or c.prior == "linear":
        linear = model.apply(variables, features, method=lambda net, x: net.dynamics_head(x))
        probs = probs_of(linear)
        z = choose(u[0], probs)
        return Decoded(z, jnp.log(take_class(probs, z)), (jnp.ones(z.shape, bool),))

    if c.prior == "autoregressive":

        def next_fn(previous: Array, place: Array, cache: Any) -> tuple[Array, Any]:
            def step(net: WorldModel) -> tuple[Array, Array]:
                return net.autoregressive.step(features, previous, place, cache)

            logits, cache = model.apply(variables, method=step)
            return probs_of(logits), cache

        cache = empty_cache(c, lead, model.dtype)
        return ordered_decode(next_fn, cache, u, shape=shape, classes=c.classes)

    if c.prior == "flow":

        def flow_fn(tokens: Array, time: float) -> Array:
            logits = model.apply(
                variables, features, tokens, time, method=lambda net, *x: net.flow(*x)
            )
            return probs_of(logits)

        return flow_decode(flow_fn, u, steps=options["steps"], shape=shape, classes=c.classes)

    def probs_fn(tokens: Array | None) -> Array:
        return probs_of(
            model.apply(variables, features, tokens, method=lambda net, *x: net.maskgit(*x))
        )

    return maskgit_decode(probs_fn, u, shape=shape, **options)


def imagine(
    params: Params,
    state: Any,
    carry: Any,
    key: Key | tuple[Array, Array],
    *,
    policy: PolicyFn,
    step: StepFn,
    horizon: int,
) -> Trajectory:
    """Roll n states H steps forward in one ``lax.scan``, with any policy and model.

    Args:
        params: passed to ``policy`` and ``step`` unchanged.
        state: where the rollouts start: :class:`State` `[n]`, or any pytree of arrays `[n, ...]`.
        carry: the step function's memory (any pytree).
        key: consumed; split into one key per step for the policy and one for the model. A pair of
            arrays `[H, ...]`, drawn before, gives them numbers instead (fewer generator calls).
        policy: see :data:`emerald_jax.types.PolicyFn`.
        step: see :data:`emerald_jax.types.StepFn`.
        horizon: H.

    Returns:
        :class:`Trajectory` of `[H + 1, n]` states and `[H, n]` actions.
    """

    def body(loop: tuple[Any, Any], inputs: tuple[Array, tuple]) -> tuple:
        state, carry = loop
        index, (act_key, model_key) = inputs
        action = policy(params, state, index, act_key)
        carry, next_state = step(params, carry, state, action, index, model_key)
        return (next_state, carry), (next_state, action)

    noise = key if isinstance(key, tuple) else tuple(jax.random.split(key, (2, horizon)))
    _, (states, actions) = jax.lax.scan(body, (state, carry), (jnp.arange(horizon), noise))
    states = jax.tree.map(lambda first, rest: jnp.concatenate([first[None], rest]), state, states)
    return Trajectory(states, actions)


def world_model_step(
    model: WorldModel, starts: Starts, *, decode_steps: int, horizon: int, **decoding: Any
) -> tuple[Any, StepFn]:
    """EMERALD's step function: cached sequence model, then the prior in ``decode_steps`` S.

    Returns the empty cache for H = ``horizon`` steps, and the step, which reads the entry
    ``"world_model"`` of its ``params``. ``decoding`` are ``method`` and ``noise`` of
    :func:`decode`. Every rollout attends to its own part of the shared past.
    """

    def step(
        params: Params, own: Any, state: State, action: Array, index: Array, key: Key
    ) -> tuple[Any, State]:
        def advance(net: WorldModel) -> tuple[Array, Any]:
            return net.sequence.imagine(state, action, index, starts, own)

        h, cache = model.apply({"params": params["world_model"]}, method=advance)
        options = {"model": model, "steps": decode_steps, **decoding}
        decoded = decode(params["world_model"], h, key, before=Before(state.z, action), **options)
        return cache, State(decoded.z, h)

    return starts.past.room(horizon), step


def starts_from(passed: Pass, positions: Int[AnyArray, " n"]) -> Starts:
    """Imagination starts at steps ``positions`` `[n]` of sequences `[...]`, sharing their past.

    Keys, values, latents and h_t come from the forward pass of the world-model loss: nothing is
    computed twice. No gradient flows back.
    """
    passed = jax.lax.stop_gradient(passed)
    z, h = passed.state
    state = State(z[..., positions, :, :], h[..., positions, :])
    return Starts(state, passed.history.past(positions))
