"""Every decoder against an exact predictor: how far its samples are from the true joint.

The joint is a mixture of products of categorical distributions: its tokens depend on one another,
and the distribution of any of them given any others is known in closed form. With that in place of
the network, all error is the decoder's.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from emerald_jax import imagination
from emerald_jax.agent.dream import dream_step
from emerald_jax.imagination import flow_decode, maskgit_decode, starts_from
from emerald_jax.ops.maskgit import halton_ranks
from emerald_jax.training.update import rollout
from tests.model_cases import make_batch, small_learner, state_shapes

P, G, K, PARTS = 16, 2, 8, 24
TOKENS, DRAWS, PAIRS = P * G, 8192, 200


class Joint:
    """A mixture of ``PARTS`` products over 32 tokens of 8 classes."""

    def __init__(self):
        rng = np.random.default_rng(0)
        self.probs = rng.dirichlet(np.full(K, 0.15), (PARTS, TOKENS)).clip(1e-6)
        self.probs /= self.probs.sum(-1, keepdims=True)
        self.weights = rng.dirichlet(np.full(PARTS, 3.0))
        self.pairs = np.array([rng.choice(TOKENS, 2, replace=False) for _ in range(PAIRS)])
        first, second = (self.probs[:, self.pairs[:, i]] for i in (0, 1))
        self.tables = np.einsum("m,mpa,mpb->pab", self.weights, first, second)

    def predict(self, tokens):
        """The exact p(token | unmasked tokens) `[n, P, G, K]` of tokens `[n, P, G]`, or None."""
        logs = jnp.log(self.probs).reshape(PARTS, -1).astype(jnp.float32)
        scores = jnp.tile(jnp.log(self.weights).astype(jnp.float32), (DRAWS, 1))
        if tokens is not None:
            known = jax.nn.one_hot(tokens.reshape(len(tokens), -1), K)  # MASK = K: all zeros
            scores += known.reshape(len(tokens), -1) @ logs.T
        probs = jax.nn.softmax(scores) @ self.probs.reshape(PARTS, -1).astype(jnp.float32)
        return probs.reshape(-1, P, G, K)

    def denoise(self, tokens, time):
        """The exact p(token | noisy tokens `[n, P, G]` at a time) `[n, P, G, K]`."""
        table = jnp.asarray(self.probs, jnp.float32)
        seen = jax.nn.one_hot(tokens.reshape(len(tokens), -1), K)
        noisy = time * jnp.einsum("mtk,ntk->nmt", table, seen) + (1 - time) / K
        parts = jax.nn.softmax(
            jnp.tile(jnp.log(self.weights).astype(jnp.float32), (len(tokens), 1))
            + jnp.log(noisy).sum(-1)
        )
        # Given its part, a token is its own class with the time's probability, else any class.
        shown = jnp.einsum(
            "nm,nmt->nt", parts, time * jnp.einsum("mtk,ntk->nmt", table, seen) / noisy
        )
        other = jnp.einsum("nmt,mtk->ntk", parts[..., None] * (1 - time) / K / noisy, table)
        return (shown[..., None] * seen + other).reshape(-1, P, G, K)

    def pair_error(self, z):
        """Total variation between the tables of token pairs in z `[n, P, G]` and the true ones."""
        z = np.asarray(z).reshape(len(z), TOKENS)
        cells = z[:, self.pairs[:, 0]] * K + z[:, self.pairs[:, 1]]
        seen = np.stack([np.bincount(c, minlength=K * K) for c in cells.T]) / len(z)
        return 0.5 * np.abs(seen.reshape(PAIRS, K, K) - self.tables).sum((1, 2)).mean()

    def sample(self, rng):
        """`[n, P, G]` from the joint itself."""
        probs = self.probs[rng.choice(PARTS, DRAWS, p=self.weights)]
        z = (probs.cumsum(-1) < rng.random((DRAWS, TOKENS, 1))).sum(-1)
        return np.minimum(z, K - 1).reshape(DRAWS, P, G)


@pytest.fixture(scope="module")
def joint():
    return Joint()


@pytest.fixture(scope="module")
def error(joint):
    """Pair error of a decoder in S steps, above that of true samples as many."""
    floor = joint.pair_error(joint.sample(np.random.default_rng(1)))
    shape = (DRAWS, P, G)

    def measure(steps, **options):
        options |= {"steps": steps, "shape": shape}
        draw = jax.jit(lambda key: maskgit_decode(joint.predict, key, **options).z)
        return joint.pair_error(draw(jax.random.key(steps))) - floor

    return measure


@pytest.mark.parametrize("method", ["mdlm", "remdm", "halton"])
def test_more_steps_bring_samples_nearer_to_the_joint(error, method):
    found = [error(steps, method=method) for steps in (1, 3, 8)]
    assert found[1] < 0.8 * found[0]
    assert found[2] < 0.5 * found[1], found
    assert found[2] < 0.05


def test_more_steps_of_flow_bring_samples_nearer_to_the_joint(joint):
    floor, found = joint.pair_error(joint.sample(np.random.default_rng(1))), []
    for steps in (1, 3, 8):
        options = {"steps": steps, "shape": (DRAWS, P, G), "classes": K}
        draw = jax.jit(lambda key, o=options: flow_decode(joint.denoise, key, **o).z)
        found.append(joint.pair_error(draw(jax.random.key(steps))) - floor)
    assert found[1] < 0.25 * found[0]
    assert found[2] < 0.3 * found[1]
    assert found[2] < 0.01


def test_more_steps_make_maskgit_worse(error):
    # The known limit of confidence: likely tokens are kept, so that samples are too typical.
    few, many = error(3), error(8)
    assert many > 1.2 * few
    assert many > 3 * error(8, noise=4.0)
    assert error(3, noise=0.0) > 3 * few


def test_large_noise_is_a_random_order(joint):
    # Only where two random numbers are almost equal may confidence still decide.
    shape, key = (DRAWS, P, G), jax.random.key(0)
    options = {"steps": 3, "shape": shape}
    loud = maskgit_decode(joint.predict, key, noise=1000.0, **options)
    random = maskgit_decode(joint.predict, key, method="mdlm", **options)
    assert np.mean(loud.masked[1] == random.masked[1]) > 0.99


@pytest.mark.parametrize("method", ["maskgit", "mdlm", "remdm", "halton"])
def test_a_batch_decodes_as_each_alone(method):
    table = jax.random.normal(jax.random.key(9), (P, G, K + 1, K))

    def predict(tokens):
        known = jnp.full((P, G), K) if tokens is None else tokens
        rows = jnp.take_along_axis(table, known[..., None, None], axis=-2)[..., 0, :]
        return jax.nn.softmax(rows + rows.mean((0, 1), keepdims=True))

    def draw(key):
        return maskgit_decode(predict, key, steps=5, shape=(P, G), method=method)

    keys = jax.random.split(jax.random.key(1), 3)
    together = jax.jit(jax.vmap(draw))(keys)
    alone = jax.jit(draw)
    for n, key in enumerate(keys):
        one = alone(key)
        np.testing.assert_array_equal(one.z, together.z[n])
        np.testing.assert_array_equal(jnp.stack(one.masked), jnp.stack(together.masked)[:, n])


def test_every_dream_obeys_the_settings(monkeypatch):
    settings, seen = {"decode_method": "halton", "decode_noise": 2.0}, []
    learner = small_learner()
    behavior = dataclasses.replace(learner.config.behavior, **settings)
    learner = learner._replace(config=dataclasses.replace(learner.config, behavior=behavior))

    def spy(*args, method, noise, **options):
        seen.append((method, noise))
        return maskgit_decode(*args, method=method, noise=noise, **options)

    monkeypatch.setattr(imagination, "maskgit_decode", spy)
    params, batch = state_shapes(learner).params, make_batch(learner)

    def imagine(params, batch, keys):
        passed = learner.model.apply({"params": params["world_model"]}, batch, keys)
        starts = starts_from(passed, jnp.arange(2))
        after = dream_step(params, passed.carry, batch.action[:, 0], keys[0], **options)
        return rollout(params, starts, keys, learner=learner), after

    options = {"learner": learner, "steps": 2}
    keys = jax.random.split(jax.random.key(0), len(batch.action))
    jax.eval_shape(imagine, params, batch, keys)
    assert seen == [("halton", 2.0)] * 2  # the dream's and the training's


def test_what_cannot_be_decoded_is_refused(joint):
    with pytest.raises(ValueError, match="no method 'random': choose maskgit"):
        maskgit_decode(joint.predict, jax.random.key(0), steps=1, shape=(1, P, G), method="random")
    with pytest.raises(ValueError, match="12 positions are no square grid"):
        halton_ranks(12, 2)
