"""The losses against NumPy, and which parameters each of them may change.

The oracles start from the networks' outputs (posterior, priors, images, heads) and recompute the
losses in float64.
"""

from __future__ import annotations

import collections
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
import scipy.stats
from jax.extend.core import subjaxprs

from emerald_jax import losses
from emerald_jax.config import LossConfig
from emerald_jax.losses import (
    latent_losses,
    weighted_sum,
    world_model_losses,
)
from emerald_jax.types import State
from tests import oracles
from tests.model_cases import (
    LENGTH,
    compiled,
    make_batch,
    make_state,
    one_sequence,
    small_learner,
    to_numpy,
)

P, G, K, BINS, UNIMIX = 16, 3, 5, 41, 0.01
N = P * G
#: Between the smallest and the largest KL of the case, so that the floors bite here and not there.
FLOORS = LossConfig(free_nats=1.3, mask_free_nats=1.22)
DEATH, TIME_LIMIT = 2, 3


@pytest.fixture(scope="module")
def masks():
    """From a single masked token to all of them."""
    rng = np.random.default_rng(7)
    counts = [1, N, 2, 5, 10, 20, 24, 30, 40, 47, 1, 12]
    return np.stack([rng.permutation(N) < n for n in counts])


@pytest.fixture(scope="module")
def params():
    return make_state(small_learner()).params


@pytest.fixture(scope="module")
def world(params, masks):
    """Losses of a sequence under given masks, and all inputs of the oracle."""
    model = small_learner().model
    asked = []

    def fixed_mask(key, num_tokens, u):
        asked.append((num_tokens, u.shape))
        return jnp.asarray(masks)

    def run(params, sequence, key, z):
        terms, (out, metrics) = world_model_losses(
            params, sequence, key, model=model, config=FLOORS, deterministic=True
        )
        net = model.bind({"params": params})
        tokens = jnp.where(jnp.asarray(masks).reshape(z.shape), K, out.state.z)
        outputs = {
            "prior": net.dynamics(out.features),
            "masked": net.masked_prior(out.features, tokens),
            "image": net.reconstruct(out.z, out.state.h),
            "reward": net.reward(out.z, out.state.h),
            "cont": net.cont(out.z, out.state.h),
        }
        other = out._replace(state=State(z, out.state.h))
        replaced = latent_losses(net, other, key, FLOORS, None)["mask"]
        return terms, out, metrics, outputs, replaced

    z = np.zeros((LENGTH, P, G), np.int32)
    args = (params["world_model"], one_sequence(make_batch(small_learner()), 1), jax.random.key(0))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(losses, "random_mask", fixed_mask)
        program = compiled(run, *args, z)
    assert set(asked) == {(N, (LENGTH,))}

    def call(sequence, z=z, seed=0):
        return to_numpy(program(params["world_model"], sequence, jax.random.key(seed), z))

    return call


@pytest.fixture(scope="module", params=[DEATH, TIME_LIMIT], ids=["death", "time-limit"])
def case(request, world):
    sequence = one_sequence(make_batch(small_learner()), request.param)
    return sequence, *world(sequence)[:4]


def kl(log_p, log_q):
    log_p, log_q = log_p.astype(np.float64), log_q.astype(np.float64)
    return (np.exp(log_p) * (log_p - log_q)).sum(-1)


def test_head_and_image_losses(case):
    sequence, terms, _, metrics, outputs = case
    target = sequence.image / 255 - 0.5
    square = (outputs["image"].astype(np.float64) - target) ** 2
    np.testing.assert_allclose(terms["image"], square.sum((1, 2, 3)), rtol=1e-5)
    np.testing.assert_allclose(metrics["pixel_error"], square.mean((1, 2, 3)), rtol=1e-5)
    expected = oracles.two_hot_cross_entropy(outputs["reward"], sequence.reward)
    np.testing.assert_allclose(terms["reward"], expected, rtol=1e-5)


def test_time_limits_are_not_terminations(case):
    sequence, terms, _, _, outputs = case
    assert sequence.is_last[4]
    # -log p(continue) = softplus(-logit), except at terminal steps.
    expected = np.where(
        sequence.is_terminal, np.logaddexp(0, outputs["cont"]), np.logaddexp(0, -outputs["cont"])
    )
    np.testing.assert_allclose(terms["cont"], expected, rtol=1e-5)
    assert abs(outputs["cont"][4]) > 1e-3, (
        "the case cannot distinguish termination from a time limit"
    )


def test_dynamics_and_representation_losses(case):
    _, terms, out, _, outputs = case
    per_position = kl(out.posterior, outputs["prior"]).sum(-1)
    assert per_position.shape == (LENGTH, P)
    below = per_position < FLOORS.free_nats
    assert 0.1 < below.mean() < 0.9, "the floor must bite at some positions only"
    expected = np.maximum(FLOORS.free_nats, per_position).mean(-1)
    np.testing.assert_allclose(terms["dyn"], expected, rtol=1e-5)
    np.testing.assert_allclose(terms["rep"], expected, rtol=1e-5)


def test_mask_loss_is_the_mean_of_the_masked_times_groups(case, masks):
    _, terms, out, _, outputs = case
    per_token = kl(out.posterior, outputs["masked"]).reshape(LENGTH, N)
    expected = np.array([G * per_token[t][masks[t]].mean() for t in range(LENGTH)])
    assert 0.05 < (expected < FLOORS.mask_free_nats).mean() < 0.95
    np.testing.assert_allclose(
        terms["mask"], np.maximum(FLOORS.mask_free_nats, expected), rtol=1e-5
    )


def test_metrics_are_entropies_per_position(case):
    _, _, out, metrics, outputs = case
    for name, log_probs in (("posterior", out.posterior), ("prior", outputs["prior"])):
        entropy = scipy.stats.entropy(np.exp(log_probs.astype(np.float64)), axis=-1)
        np.testing.assert_allclose(metrics[f"{name}_entropy"], entropy.sum(-1).mean(-1), rtol=1e-5)


def test_the_posterior_depends_only_on_the_image(world):
    sequence = one_sequence(make_batch(small_learner()), 1)
    other = sequence._replace(action=sequence.action[::-1].copy())
    one, two = (world(s)[1] for s in (sequence, other))
    np.testing.assert_array_equal(one.posterior, two.posterior)
    assert (np.abs(one.state.h - two.state.h) > 1e-6).any()
    probs = np.exp(one.posterior)
    np.testing.assert_allclose(probs.sum(-1), 1, atol=1e-5)
    assert probs.min() >= UNIMIX / K * (1 - 1e-4)
    np.testing.assert_allclose(one.z, np.eye(K)[one.state.z], atol=1e-6)


def test_hidden_tokens_are_hidden(world, masks):
    sequence = one_sequence(make_batch(small_learner()), 1)
    masked = masks.reshape(LENGTH, P, G)
    z = world(sequence)[1].state.z
    base = world(sequence, z)[4]
    hidden_changed = world(sequence, np.where(masked, (z + 1) % K, z))[4]
    np.testing.assert_array_equal(base, hidden_changed)
    shown_changed = world(sequence, np.where(masked, z, (z + 1) % K))[4]
    some_shown = ~masks.all(1) & (base > FLOORS.mask_free_nats)
    assert some_shown.sum() > 3
    assert (np.abs(shown_changed - base)[some_shown] > 1e-4).all()


WEIGHTS = ("image", "reward", "cont", "dyn", "rep", "mask")
MODULES = (
    "encoder", "sequence", "spread", "dynamics_head", "maskgit", "decoder", "reward_head",
    "continue_head",
)  # fmt: skip


def test_loss_terms_are_named_as_their_weights(case):
    _, terms, _, _, _ = case
    assert set(terms) == set(WEIGHTS)
    assert all(term.shape == (LENGTH,) for term in terms.values())


def test_weighted_sum_by_hand():
    # 1*1 + 1*2 + 1*3 + 0.5*4 + 0.1*5 + 0.5*6 = 11.5 with the paper's weights.
    terms = {name: jnp.full(2, i + 1.0) for i, name in enumerate(WEIGHTS)}
    np.testing.assert_allclose(weighted_sum(terms, LossConfig()), [11.5, 11.5])
    with pytest.raises(ValueError, match="do not match"):
        weighted_sum({name: terms[name] for name in WEIGHTS[1:]}, LossConfig())
    with pytest.raises(ValueError, match="do not match"):
        weighted_sum({**terms, "extra": terms["rep"]}, LossConfig())


@pytest.fixture(scope="module")
def gradient(params):
    """Gradient norm of every module for given weights and floors."""
    model = small_learner().model
    names = [field.name for field in dataclasses.fields(LossConfig)]

    def run(params, sequence, key, settings):
        config = LossConfig(**dict(zip(names, settings, strict=True)))

        def loss(params):
            terms, _ = world_model_losses(
                params, sequence, key, model=model, config=config, deterministic=True
            )
            return weighted_sum(terms, config).mean()

        grads = jax.grad(loss)(params)
        return {
            **{
                name: jnp.sqrt(sum(jnp.sum(x**2) for x in jax.tree.leaves(grads[name])))
                for name in grads
            },
            "start": jnp.sqrt(jnp.sum(grads["sequence"]["start"] ** 2)),
        }

    sequence = one_sequence(make_batch(small_learner()), 3)
    zeros = tuple(np.float32(0) for _ in names)
    program = compiled(run, params["world_model"], sequence, jax.random.key(0), zeros)

    def norms(reset_everywhere=False, **settings):
        assert set(settings) <= set(names)
        values = tuple(np.float32(settings.get(name, 0)) for name in names)
        reset = sequence.reset | reset_everywhere
        case = sequence._replace(reset=reset)
        return to_numpy(program(params["world_model"], case, jax.random.key(0), values))

    return norms


@pytest.mark.parametrize(
    ("weight", "moved"),
    [
        ("image", {"encoder", "sequence", "decoder"}),
        ("reward", {"encoder", "sequence", "reward_head"}),
        ("cont", {"encoder", "sequence", "continue_head"}),
        # sg(q): the encoder learns from the dynamics only through z_{t-1}, which h_t has read.
        ("dyn", {"encoder", "sequence", "spread", "dynamics_head"}),
        ("mask", {"encoder", "sequence", "spread", "maskgit"}),
        # sg(prior): nothing but the posterior moves.
        ("rep", {"encoder"}),
    ],
)
def test_every_loss_trains_its_own_modules(gradient, weight, moved):
    norms = gradient(**{weight: 1})
    assert set(MODULES) == norms.keys() - {"start"}
    assert {name for name in MODULES if norms[name] > 0} == moved
    assert all(norms[name] > 1e-5 for name in moved)
    assert (norms["start"] > 0) == ("sequence" in moved)


@pytest.mark.parametrize(("weight", "reaches"), [("dyn", False), ("mask", False), ("rep", True)])
def test_without_a_past_only_rep_reaches_the_encoder(gradient, weight, reaches):
    # Every step a reset: h_t knows nothing of any z, so sg(q) leaves no way to the encoder.
    norms = gradient(reset_everywhere=True, **{weight: 1})
    assert (norms["encoder"] > 0) == reaches
    assert (norms["start"] > 0) != reaches


def test_below_the_floor_there_is_no_gradient(gradient):
    norms = gradient(dyn=1, rep=1, mask=1, free_nats=1e6, mask_free_nats=1e6)
    assert all(norm == 0 for norm in norms.values())
    # Two floors: each silences its own losses alone.
    assert gradient(mask=1, free_nats=1e6)["maskgit"] > 0
    assert gradient(dyn=1, mask_free_nats=1e6)["dynamics_head"] > 0


def test_dropout_is_on_only_in_training(params):
    model = small_learner().model
    sequence = jax.tree.map(jnp.asarray, one_sequence(make_batch(small_learner()), 1))

    def noise(deterministic):
        """Shapes of all random numbers that the losses draw."""

        def terms(params, key):
            return world_model_losses(
                params, sequence, key, model=model, config=FLOORS, deterministic=deterministic
            )[0]

        return shapes(jax.make_jaxpr(terms)(params["world_model"], jax.random.key(0)).jaxpr)

    def shapes(jaxpr):
        bits = (e.outvars[0] for e in jaxpr.eqns if e.primitive.name == "random_bits")
        own = collections.Counter(out.aval.shape for out in bits)
        return sum((shapes(sub) for sub in subjaxprs(jaxpr)), own)

    # 16 bits for each activation behind two dropouts of each block, in words of 32 bits.
    c = model.config
    temporal, spatial = c.blocks * LENGTH * 24, c.predictor_blocks * LENGTH * P * 20
    assert noise(False) - noise(True) == collections.Counter([(temporal,), (spatial,)])
