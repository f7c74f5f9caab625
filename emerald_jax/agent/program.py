"""The acting step of an agent, weights included, as one program that needs JAX alone."""

from __future__ import annotations

from functools import partial
from importlib.util import find_spec

import jax
import jax.numpy as jnp

from emerald_jax.agent import Agent, AgentState, act_once
from emerald_jax.config import ConfigError
from emerald_jax.types import Array

#: What the program runs on.
PLATFORMS = ("cpu", "cuda", "tpu")


def export_program(agent: Agent, *, batch: int = 1) -> bytes:
    """The acting step of ``batch`` environments in the format of ``jax.export``.

    The program is ``program(image, is_first, key, *memory) -> (action, *memory)``:

    - image `[B, height, width, 3]` uint8, is_first `[B]` bool;
    - key `[2]` uint32, the data of a threefry key, another one at every step;
    - memory: arrays, all zeros before the first step, where ``is_first`` is true;
    - action: as :meth:`Agent.act` returns it, for the same key and memory.

    It computes in float32, on a CPU, a CUDA GPU or a TPU. ConfigError: the package ``flatbuffers``
    is not installed.
    """
    if not find_spec("flatbuffers"):
        raise ConfigError('a program needs flatbuffers: pip install "emerald-jax[program]"')
    state = jax.device_get(agent.initial(batch))
    leaves, tree = jax.tree.flatten(state)
    params = {name: jax.device_get(agent.params[name]) for name in ("world_model", "actor")}
    step = partial(act_once, params, learner=agent.learner, mode=False)

    def program(image: Array, is_first: Array, key: Array, *memory: Array) -> tuple[Array, ...]:
        before: AgentState = jax.tree.unflatten(tree, memory)
        action, after = step(before, image, is_first, jax.random.wrap_key_data(key))
        return action, *jax.tree.leaves(after)

    image = jax.ShapeDtypeStruct((batch, *agent.spec.image_shape), jnp.uint8)
    first = jax.ShapeDtypeStruct((batch,), jnp.bool_)
    key = jax.ShapeDtypeStruct((2,), jnp.uint32)
    shapes = [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in leaves]
    exported = jax.export.export(jax.jit(program), platforms=PLATFORMS)(image, first, key, *shapes)
    return exported.serialize()
