"""The device that programs are traced for."""

from __future__ import annotations

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import pytest

from emerald_jax.models.layers import compute_dtype
from emerald_jax.target import Target, has_bfloat16, target, tracing_for


def test_the_target_is_that_of_jax_unless_another_is_chosen():
    assert target() == Target("cpu", bfloat16=False)
    with tracing_for(Target("tpu", bfloat16=True)):
        assert target().platform == "tpu"
        assert compute_dtype("auto") == jnp.bfloat16
    assert target().platform == "cpu"
    assert compute_dtype("auto") == jnp.float32


def test_a_function_is_traced_again_for_another_target():
    inner = jax.jit(lambda x: x * (2 if target().platform == "cpu" else 3))
    assert inner(1) == 2
    with tracing_for(Target("gpu", bfloat16=True)):
        assert inner(1) == 3
    assert inner(1) == 2


@pytest.mark.parametrize(
    ("capability", "found"),
    [("7.5", False), ("8.0", True), ("9.0", True), ("10.0", True), ("gfx90a", True), ("", True)],
)
def test_bfloat16_units_follow_from_the_compute_capability(capability, found):
    assert has_bfloat16(capability) is found


@pytest.mark.parametrize(("capability", "dtype"), [("7.5", "float32"), ("8.0", "bfloat16")])
def test_auto_is_float32_on_a_gpu_without_bfloat16_units(monkeypatch, capability, dtype):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(
        jax, "local_devices", lambda: [SimpleNamespace(compute_capability=capability)]
    )
    assert compute_dtype("auto") == jnp.dtype(dtype)
    assert compute_dtype("bfloat16") == jnp.bfloat16
