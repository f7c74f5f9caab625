"""The closed form against hand arithmetic, and against the programs as they are traced."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import pytest

from benchmarks.suite.flops import (
    agent_flops,
    autoregressive_flops,
    decode_flops,
    decoder,
    encoder,
    head,
    imagine_flops,
    imagined_step_flops,
    predictor,
    spread,
    starts_per_update,
    update_flops,
    world_model_work,
)
from benchmarks.suite.harness import full_context_starts, random_state
from benchmarks.train import dream
from emerald_jax.models.heads import Head
from emerald_jax.models.prior import MaskGit, Spread
from emerald_jax.models.vision import Decoder, Encoder
from emerald_jax.presets import get_preset
from emerald_jax.training.update import train_step
from tests.benchmarks.counting import traced_flops
from tests.model_cases import (
    BATCH,
    NUM_ACTIONS,
    make_batch,
    sequence_keys,
    small_config,
    small_learner,
    state_shapes,
)

PAPER = get_preset("crafter")


def test_the_counter_counts():
    def loop(x):
        return jax.lax.scan(lambda c, _: (jax.jit(jnp.dot)(c, c), None), x, length=5)[0]

    assert traced_flops(loop, jnp.zeros((3, 3))) == 5 * 2 * 27


def test_paper_head_by_hand():
    # 16 positions x 1024 one-hot x 128, flattened 2048 x 512, two layers, 255 bins.
    one_hot = 2 * 16 * 1024 * 128
    rest = 2 * (2048 * 512 + 1024 * 512 + 512 * 512 + 512 * 255)
    work = head(PAPER.model, 255, input_gradient=True)
    assert (work.forward.useful, work.forward.least) == (one_hot + rest, rest)
    # The latent's gradient is a true product; the kernel's could be a scatter.
    assert (work.backward.useful, work.backward.least) == (
        2 * (one_hot + rest),
        2 * rest + one_hot,
    )
    frozen = head(PAPER.model, 255, input_gradient=False).backward
    assert (frozen.useful, frozen.least) == (one_hot + 2 * rest, 2 * rest)


def test_paper_decoding_by_hand():
    start = 2 * (512 * 2048 + 16 * 128 * 256)
    block = 2 * (16 * 256 * 768 + 2 * 16 * 16 * 256 + 16 * 256 * 256 + 2 * 16 * 256 * 512)
    logits = 2 * 16 * 256 * 1024
    passes = 2 * 16 * 1280 * 256 + 2 * block + logits
    assert decode_flops(PAPER.model, 0).useful == start + logits
    for steps in (1, 3, 8):
        work = decode_flops(PAPER.model, steps)
        assert work.useful == start + steps * passes
        # Embeddings are gathered, the features enter once.
        once = 2 * 16 * 256 * 256
        assert work.least == start + once + steps * (2 * block + logits)


def test_the_issue_s_figure():
    """256 starts x 15 steps, S = 3: 0.75 TFLOP with a cache."""
    work = imagine_flops(PAPER, 17, 256)
    assert work.useful == pytest.approx(0.75e12, rel=0.01)
    assert work.least < work.useful
    assert starts_per_update(PAPER) == 256


def test_one_causal_pass_is_cheaper_than_one_bidirectional():
    one = decode_flops(PAPER.model, 1)
    causal = autoregressive_flops(PAPER.model)
    assert one.useful - causal.useful == 2 * 2 * 2 * 120 * 256  # blocks, score and value, FLOPs
    assert one.least - causal.least == one.useful - causal.useful


def test_modules_do_what_is_counted():
    config = small_config()
    c, f32 = config.model, jnp.float32
    z = jnp.zeros((1, c.grid**2, c.groups, c.classes))
    h, features = jnp.zeros((1, c.width)), jnp.zeros((1, c.grid**2, c.predictor_width))

    def count(module, *inputs):
        return traced_flops(module.apply, _params(module, *inputs), *inputs)

    assert count(Head(c, 7, 0.0, f32), z, h) == head(c, 7, input_gradient=True).forward.useful
    assert count(Spread(c, f32), h) == spread(c).forward.useful
    image = jnp.zeros((1, 16, 16, 3), jnp.uint8)
    assert count(Encoder(c, config.stages, f32), image) == encoder(config).forward.useful
    # The decoder's transposed convolutions also compute a ring of pixels that is cut off.
    made = count(Decoder(c, config.stages, f32), z, h)
    assert decoder(config).forward.useful < made < 1.8 * decoder(config).forward.useful
    # The predictor multiplies words and kernel into a table first; the least is below either way.
    made = count(MaskGit(c, f32), features, None)
    assert predictor(c).forward.least <= made


def _params(module, *inputs):
    shapes = jax.eval_shape(module.init, jax.random.key(0), *inputs)
    return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)


@pytest.mark.parametrize("steps", [0, 1, 3])
def test_no_program_does_less_than_the_least(steps):
    learner = small_learner()
    config = small_config(behavior={"decode_steps": steps})
    learner = learner._replace(config=config)
    params = random_state(learner).params
    starts = full_context_starts(learner, 2)
    keys = jax.random.split(jax.random.key(0), 2)
    made = traced_flops(partial(dream, learner=learner), params, starts, keys)
    rollouts = 2 * starts.state.h.shape[1]
    assert imagine_flops(config, NUM_ACTIONS, rollouts).least <= made


def test_an_update_does_no_less_than_the_least():
    learner = small_learner()
    made = traced_flops(
        partial(train_step, learner=learner),
        state_shapes(learner),
        make_batch(learner),
        sequence_keys(0),
    )
    parts = update_flops(learner.config, NUM_ACTIONS)
    assert parts["whole"].least <= made
    assert parts["whole"].useful == sum(
        parts[name].useful for name in ("world_model", "imagination", "actor_critic")
    )


def test_counts_scale_as_the_work_does():
    config, twice = small_config(), small_config(replay={"batch": 2 * BATCH})
    for count in (
        lambda c: agent_flops(c, NUM_ACTIONS, starts_per_update(c)),
        lambda c: imagine_flops(c, NUM_ACTIONS, starts_per_update(c)),
        lambda c: world_model_work(c, NUM_ACTIONS).both,
    ):
        one, two = count(config), count(twice)
        # The distance tables are made once per call, whatever the batch.
        assert 1.9 * one.useful < two.useful <= 2 * one.useful
    # Recomputing activations earns nothing.
    remat = small_config(model={"remat": True})
    assert update_flops(remat, NUM_ACTIONS) == update_flops(config, NUM_ACTIONS)
    c = config.model
    step = [imagined_step_flops(c, NUM_ACTIONS, s).useful for s in (1, 2, 3)]
    assert step[2] - step[1] == step[1] - step[0] == predictor(c).forward.useful
