"""Our strided convolutions against the plain convolutions that they replace."""

from __future__ import annotations

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from emerald_jax.models.vision import (
    Conv,
    DownConv,
    UpConv,
    convolve,
    depth_to_space,
    looped,
    space_to_depth,
)
from emerald_jax.target import Target, tracing_for

C, F = 3, 5


@pytest.fixture(scope="module")
def rng():
    return np.random.default_rng(0)


def lax_conv(x, kernel, stride, padding):
    return jax.lax.conv_general_dilated(
        x, kernel, (stride, stride), padding, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def apply(module, kernel, bias, x):
    params = {"kernel": jnp.asarray(kernel), "bias": jnp.asarray(bias)}
    return module.apply({"params": params if isinstance(module, Conv) else {"Conv_0": params}}, x)


def test_space_to_depth_by_hand():
    # Four pixels become four channels in row-major order, each with its own two channels.
    x = jnp.arange(8.0).reshape(2, 2, 2)
    np.testing.assert_array_equal(space_to_depth(x), np.arange(8.0).reshape(1, 1, 8))
    # Two blocks side by side: pixels 0 1 | 2 3 above 4 5 | 6 7.
    blocks = space_to_depth(jnp.arange(8.0).reshape(2, 4, 1))
    np.testing.assert_array_equal(blocks, [[[0, 1, 4, 5], [2, 3, 6, 7]]])


def test_depth_to_space_is_the_inverse(rng):
    x = jnp.asarray(rng.normal(size=(2, 6, 4, C)))
    np.testing.assert_array_equal(depth_to_space(space_to_depth(x)), x)


def test_conv_is_lax_conv(rng):
    x = rng.normal(size=(2, 6, 5, C)).astype(np.float32)
    kernel = rng.normal(size=(3, 3, C, F)).astype(np.float32)
    bias = rng.normal(size=F).astype(np.float32)
    result = apply(Conv(F), kernel, bias, jnp.asarray(x))
    expected = np.asarray(lax_conv(x, kernel, 1, ((1, 1), (1, 1)))) + bias
    np.testing.assert_allclose(result, expected, atol=1e-5)


def test_down_conv_is_a_strided_convolution(rng):
    # Output i reads pixels 2i - 1 .. 2i + 2: tap u = 2a + s is sub-pixel s of block a.
    plain = rng.normal(size=(4, 4, C, F)).astype(np.float32)
    bias = rng.normal(size=F).astype(np.float32)
    blocks = np.zeros((2, 2, 4 * C, F), np.float32)
    for u in range(4):
        for v in range(4):
            at = C * (2 * (u % 2) + v % 2)
            blocks[u // 2, v // 2, at : at + C] = plain[u, v]
    x = rng.normal(size=(2, 8, 6, C)).astype(np.float32)
    result = apply(DownConv(F), blocks, bias, jnp.asarray(x))
    expected = np.asarray(lax_conv(x, plain, 2, ((1, 1), (1, 1)))) + bias
    assert result.shape == (2, 4, 3, F)
    np.testing.assert_allclose(result, expected, atol=1e-5)


def test_up_conv_is_a_transposed_convolution(rng):
    # The transpose of the above: pixel i of the input adds w[u] x[i] to pixel 2i + u - 1.
    height, width = 4, 3
    plain = rng.normal(size=(4, 4, C, F)).astype(np.float32)
    bias = rng.normal(size=F).astype(np.float32)
    x = rng.normal(size=(2, height, width, C)).astype(np.float32)
    expected = np.zeros((2, 2 * height, 2 * width, F)) + bias
    for i in range(height):
        for j in range(width):
            for u in range(4):
                for v in range(4):
                    y, z = 2 * i + u - 1, 2 * j + v - 1
                    if 0 <= y < 2 * height and 0 <= z < 2 * width:
                        expected[:, y, z] += x[:, i, j] @ plain[u, v]
    # Corner c, sub-pixel s is pixel 2c + s - 1; it sees input c - 1 (a = 0) and c (a = 1), so
    # 2 (c + a - 1) + u - 1 = 2c + s - 1 gives u = s + 2 - 2a.
    corners = np.zeros((2, 2, C, 4 * F), np.float32)
    for a in range(2):
        for b in range(2):
            for s in range(2):
                for t in range(2):
                    at = F * (2 * s + t)
                    corners[a, b, :, at : at + F] = plain[s + 2 - 2 * a, t + 2 - 2 * b]
    result = apply(UpConv(F), corners, np.tile(bias, 4), jnp.asarray(x))
    assert result.shape == (2, 2 * height, 2 * width, F)
    np.testing.assert_allclose(result, expected, atol=1e-5)


def test_up_conv_on_a_gpu_keeps_its_padding_apart(rng):
    # XLA pads in the convolution otherwise, and its kernel's gradient becomes a slow convolution.
    conv, x = UpConv(3), jnp.asarray(rng.normal(size=(2, 4, 4, 5)), jnp.float32)
    params = conv.init(jax.random.key(0), x)
    gradient = jax.grad(lambda p, x: jnp.sum(jnp.square(conv.apply(p, x))), argnums=(0, 1))
    plain = gradient(params, x)
    with tracing_for(Target("gpu", bfloat16=True)):
        assert "optimization_barrier" in str(jax.make_jaxpr(conv.apply)(params, x))
        chex.assert_trees_all_close(gradient(params, x), plain, rtol=1e-5)


@pytest.mark.parametrize(("size", "padding"), [(3, 1), (2, 0), (2, 1)])
def test_gradients_for_loops_equal_the_plain_gradients(rng, size, padding):
    x = jnp.asarray(rng.normal(size=(4, 6, 5, C)), jnp.float32)
    kernel = jnp.asarray(rng.normal(size=(size, size, C, F)), jnp.float32)
    dy = jnp.asarray(rng.normal(size=lax_conv(x, kernel, 1, [(padding, padding)] * 2).shape))

    def gradients(x, kernel):
        y, pull = jax.vjp(lambda x, kernel: convolve(x, kernel, padding), x, kernel)
        return y, *pull(dy.astype(jnp.float32))

    plain = gradients(x, kernel)
    with looped():
        ours, text = gradients(x, kernel), str(jax.make_jaxpr(gradients)(x, kernel))
    for a, b in zip(plain, ours, strict=True):
        np.testing.assert_allclose(b, a, rtol=1e-4, atol=1e-4)
    # Neither gradient may read its operands transposed: XLA would be slow in a loop.
    assert text.count("conv_general_dilated[") == 3
    assert text.count("lhs_spec=(0, 3, 1, 2), rhs_spec=(3, 2, 0, 1), out_spec=(0, 3, 1, 2)") == 3


def test_the_loop_context_ends(rng):
    x, kernel = jnp.ones((1, 4, 4, C)), jnp.ones((3, 3, C, F))
    with looped():
        assert "custom_vjp" in str(jax.make_jaxpr(lambda x: convolve(x, kernel, 1))(x))
    assert "custom_vjp" not in str(jax.make_jaxpr(lambda x: convolve(x, kernel, 1))(x))
