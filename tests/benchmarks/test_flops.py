"""Counted FLOPs against hand arithmetic, and against the closed form of the paper's model."""

from __future__ import annotations

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks.suite.flops import Flops, trace_flops
from benchmarks.suite.harness import full_context_starts, random_state
from benchmarks.train import dream, update_flops
from emerald_jax.models.heads import Head
from emerald_jax.models.layers import embed_tokens
from emerald_jax.models.prior import MaskGit, Spread
from emerald_jax.models.vision import Decoder, Encoder
from emerald_jax.ops.distributions import straight_through
from emerald_jax.presets import get_preset
from emerald_jax.target import Target, tracing_for
from emerald_jax.training.update import train_step
from tests.benchmarks.closed_form import (
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
    world_model_work,
)
from tests.benchmarks.closed_form import update_flops as closed_form
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
SQUARE = jnp.zeros((3, 3))


def useful(function, *arguments):
    return trace_flops(function, *arguments)[0].useful


def test_a_scan_counts_its_body_once_per_step():
    def loop(x):
        return jax.lax.scan(lambda c, _: (jax.jit(jnp.dot)(c, c), None), x, length=5)[0]

    assert useful(loop, SQUARE) == 5 * 2 * 27


def test_of_the_branches_of_a_cond_the_largest_counts():
    def choose(x):
        return jax.lax.cond(x[0, 0] > 0, lambda x: x @ x @ x, lambda x: x @ x, x)

    assert useful(choose, SQUARE) == 2 * 2 * 27


def test_a_while_loop_with_products_is_refused():
    def loop(x):
        return jax.lax.while_loop(lambda x: x[0, 0] < 1, lambda x: x @ x, x)

    with pytest.raises(ValueError, match="cannot be counted"):
        trace_flops(loop, SQUARE)
    count_up = partial(jax.lax.while_loop, lambda x: x[0, 0] < 1, lambda x: x + 1)
    assert useful(count_up, SQUARE) == 0


def test_gradients_and_rematerialisation():
    def loss(x, w):
        return jnp.sum(jnp.tanh(jnp.tanh(x @ w) @ w))

    # Forward 2 products, backward 2 for each but one for the first, as x needs no gradient.
    assert useful(jax.grad(loss, argnums=1), SQUARE, SQUARE) == 5 * 2 * 27
    # The trace of a rematerialised block holds what is computed again: the first product.
    again = jax.grad(jax.checkpoint(loss), argnums=1)
    assert useful(again, SQUARE, SQUARE) >= 6 * 2 * 27


def test_every_device_of_a_shard_map_counts():
    mesh = jax.make_mesh((4,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    spec = jax.sharding.PartitionSpec("data")
    product = jax.shard_map(lambda x: x @ SQUARE, mesh=mesh, in_specs=spec, out_specs=spec)
    assert useful(product, jnp.zeros((8, 3))) == 2 * 8 * 9


def test_convolutions():
    kernel = jnp.zeros((2, 2, 3, 5))

    def convolve(x):
        numbers = ("NHWC", "HWIO", "NHWC")
        return jax.lax.conv_general_dilated(x, kernel, (1, 1), "VALID", dimension_numbers=numbers)

    assert useful(convolve, jnp.zeros((7, 4, 4, 3))) == 2 * 7 * 9 * 4 * 3 * 5


def test_a_product_without_a_sum_is_a_broadcast():
    assert useful(lambda x: x[:, None] @ x[None], jnp.zeros(3)) == 0


def test_the_least_leaves_out_products_with_one_hot_operands():
    table, log_probs = jnp.zeros((4, 6)), jnp.zeros((5, 4))
    index = jnp.zeros(5, jnp.int32)
    once = 2 * 5 * 4 * 6

    def sampled(log_probs, table):
        return jnp.sum(straight_through(index, log_probs) @ table)

    assert trace_flops(lambda t: jax.nn.one_hot(index, 4) @ t, table)[0] == (once, 0)
    assert trace_flops(sampled, log_probs, table)[0] == (once, 0)
    # The table's gradient could be a scatter; that of the probabilities is a true product.
    both = trace_flops(jax.grad(sampled, argnums=(0, 1)), log_probs, table)[0]
    assert both == (3 * once, once)


def test_the_count_does_not_depend_on_the_backend():
    """A CPU gathers the rows of large tables; the count is that of an accelerator's product."""
    table, tokens = jnp.zeros((32, 16, 8)), jnp.zeros((5, 32), jnp.int32)
    counts = []
    for backend in ("cpu", "gpu"):
        with tracing_for(Target(backend, bfloat16=False)):
            counts.append(trace_flops(embed_tokens, tokens, table)[0])
    assert counts == [(2 * 5 * 512 * 8, 0)] * 2


def ratios(config, num_actions=17):
    """Traced / closed form, by part: useful and least."""
    traced, closed = update_flops(config, num_actions), closed_form(config, num_actions)
    assert traced.keys() == closed.keys()
    return {name: np.divide(traced[name], closed[name]) for name in traced}


def test_paper_size_against_the_closed_form():
    """2.890 and 2.809 TFLOP per update, ratio 1.029; least 2.631 and 2.498 TFLOP, 1.053.

    World model 1.050: transposed convolutions compute a border of pixels that is cut off (on the
    4x4 grid 25 positions for 16). Imagination 0.986: the first of three rounds embeds no tokens.
    Its least, 1.055: the features' half of every round counts. Actor and critic agree, but for the
    gradients of biases, which are products.
    """
    found = ratios(PAPER)
    for name, tolerance in {
        "world_model": 0.06,
        "imagination": 0.06,
        "actor_critic": 0.002,
    }.items():
        np.testing.assert_allclose(found[name], 1, atol=tolerance, err_msg=name)
    np.testing.assert_allclose(found["whole"][0], 1, atol=0.03)


def test_small_size_against_the_closed_form():
    """61.0 and 56.8 MFLOP per update of ``tiny``, ratio 1.074; least 56.6 and 51.5 MFLOP, 1.099.

    As at the paper's size; the border of 16-pixel images, masked keys and the gradients of biases
    weigh more beside narrow layers (imagination's least: 1.126).
    """
    found = ratios(get_preset("tiny"))
    np.testing.assert_allclose(found["whole"], 1, atol=0.1)
    assert all(abs(ratio[0] - 1) < 0.09 for ratio in found.values())


@cache
def small_update():
    return update_flops(small_config(), NUM_ACTIONS)


def test_recomputation_is_not_useful():
    twice = small_config(model={"remat": True}, optim={"micro_batch": 2})
    assert update_flops(twice, NUM_ACTIONS) == small_update()


@pytest.mark.parametrize(
    "variant",
    [
        {"sequence": "rssm", "prior": "autoregressive"},
        {"latent": "vector", "prior": "linear", "decoder_input": "z"},
    ],
    ids=lambda variant: "-".join(variant.values()),
)
def test_every_variant_is_counted(variant):
    plain, other = small_update(), update_flops(small_config(model=variant), NUM_ACTIONS)
    assert all(0 < work.least < work.useful for work in other.values())
    assert other["world_model"] != plain["world_model"]
    assert other["imagination"] != plain["imagination"]
    # The agent's heads depend on the latent alone.
    assert (other["actor_critic"] == plain["actor_critic"]) == ("latent" not in variant)


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
        shapes = jax.eval_shape(module.init, jax.random.key(0), *inputs)
        return useful(module.apply, shapes, *inputs)

    assert count(Head(c, 7, 0.0, f32), z, h) == head(c, 7, input_gradient=True).forward.useful
    assert count(Spread(c, f32), h) == spread(c).forward.useful
    image = jnp.zeros((1, 16, 16, 3), jnp.uint8)
    assert count(Encoder(c, config.stages, f32), image) == encoder(config).forward.useful
    # The decoder's transposed convolutions also compute a border of pixels that is cut off.
    made = count(Decoder(c, config.stages, f32), z, h)
    assert decoder(config).forward.useful < made < 1.8 * decoder(config).forward.useful
    # The predictor multiplies words and kernel into a table first; the least is below either way.
    made = count(MaskGit(c, f32), features, None)
    assert predictor(c).forward.least <= made


@pytest.mark.parametrize("steps", [0, 1, 3])
def test_no_program_does_less_than_the_least(steps):
    learner = small_learner()
    config = small_config(behavior={"decode_steps": steps})
    learner = learner._replace(config=config)
    params = random_state(learner).params
    starts = full_context_starts(learner, 2)
    keys = jax.random.split(jax.random.key(0), 2)
    made = useful(partial(dream, learner=learner), params, starts, keys)
    rollouts = 2 * starts.state.h.shape[1]
    assert imagine_flops(config, NUM_ACTIONS, rollouts).least <= made


def test_an_update_does_no_less_than_the_least():
    learner = small_learner()
    made = useful(
        partial(train_step, learner=learner),
        state_shapes(learner),
        make_batch(learner),
        sequence_keys(0),
    )
    for parts in (closed_form(learner.config, NUM_ACTIONS), small_update()):
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
    assert closed_form(remat, NUM_ACTIONS) == closed_form(config, NUM_ACTIONS)
    c = config.model
    step = [imagined_step_flops(c, NUM_ACTIONS, s).useful for s in (1, 2, 3)]
    assert step[2] - step[1] == step[1] - step[0] == predictor(c).forward.useful


def test_sums_of_flops():
    assert 2 * Flops(3, 1) - Flops(1, 1) == (5, 1)
