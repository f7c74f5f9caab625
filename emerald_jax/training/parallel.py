"""All multi-device code: ``jax.pmap`` over the local devices, and nothing else.

The state keeps single-device shapes and is the same on every device; the batch, its carry and its
keys are split along a leading device axis. On one device plain ``jit`` runs the same function.
Leaving pmap (since JAX 0.10 a ``jit(shard_map)``) means editing this file alone.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import numpy as np

from emerald_jax.config import ConfigError
from emerald_jax.training.state import Learner
from emerald_jax.training.update import rollout, train_step
from emerald_jax.types import Batch, Key, Params, Starts, Trajectory

AXIS = "data"


def local_devices(count: int) -> list[jax.Device]:
    """The first ``count`` local devices; 0 means all.

    Raises:
        ConfigError: when there are fewer.
    """
    devices = jax.local_devices()
    if count > len(devices):
        raise ConfigError(f"--devices {count}: this machine has {len(devices)} JAX device(s)")
    return devices[: count or len(devices)]


def compile_train_step(learner: Learner, devices: list[jax.Device]) -> Callable:
    """The update as one program over ``devices``, its state donated.

    Args:
        learner: networks, optimisers and settings.
        devices: from :func:`local_devices`.

    Returns:
        ``step(state, batch, keys) -> (state, carry, metrics)``. Batch, keys and carry have the
        leading axes that :func:`split` makes.
    """
    if len(devices) == 1:
        return jax.jit(partial(train_step, learner=learner), donate_argnums=0)
    return jax.pmap(
        partial(train_step, learner=learner, axis_name=AXIS),
        axis_name=AXIS,
        in_axes=(None, 0, 0),
        out_axes=(None, 0, None),
        devices=devices,
        donate_argnums=0,
    )


def compile_imagination(learner: Learner, devices: list[jax.Device]) -> Callable:
    """Imagination alone, from starts of many sequences, as one program over ``devices``.

    Args:
        learner: networks and settings; its behaviour says H and S.
        devices: from :func:`local_devices`.

    Returns:
        ``imagine(params, starts, keys) -> Trajectory`` `[B, H + 1, n]`. Starts are those of B
        sequences, one key for each; all have the leading axes that :func:`split` makes. Rollouts
        do not meet, so the devices have nothing to tell one another.
    """
    dream = partial(_imagine_batch, learner=learner)
    if len(devices) == 1:
        return jax.jit(dream)
    return jax.pmap(dream, axis_name=AXIS, in_axes=(None, 0, 0), devices=devices)


def _imagine_batch(
    params: dict[str, Params], starts: Starts, keys: Key, *, learner: Learner
) -> Trajectory:
    """:func:`rollout` of `[B]` sequences."""
    return jax.vmap(partial(rollout, params, learner=learner))(starts, keys)


def split(tree: Any, num_devices: int) -> Any:
    """`[B, ...]` -> `[devices, B / devices, ...]`; unchanged for one device.

    Raises:
        ConfigError: when the devices do not divide B.
    """
    if num_devices == 1:
        return tree

    def one(x: Any) -> Any:
        if x.shape[0] % num_devices:
            raise ConfigError(
                f"a batch of {x.shape[0]} does not divide over {num_devices} devices: "
                f"choose a multiple of {num_devices}, or set --devices"
            )
        return x.reshape(num_devices, x.shape[0] // num_devices, *x.shape[1:])

    return jax.tree.map(one, tree)


def join(tree: Any, num_devices: int) -> Any:
    """The inverse of :func:`split`, so that checkpoints do not know the device count."""
    if num_devices == 1:
        return tree
    return jax.tree.map(lambda x: x.reshape(x.shape[0] * x.shape[1], *x.shape[2:]), tree)


def put_batch(batch: Batch, devices: list[jax.Device]) -> Batch:
    """Start copying a host batch to where the next update reads it; returns at once."""
    if len(devices) == 1:
        return jax.device_put(batch, devices[0])
    return place_shares(split(batch, len(devices)), devices)


def place_shares(tree: Any, devices: list[jax.Device]) -> Any:
    """Send `[devices, ...]` arrays of :func:`split` to their devices; unchanged for one device."""
    return tree if len(devices) == 1 else jax.device_put(tree, _sharding(devices, AXIS))


def place_state(state: Any, devices: list[jax.Device]) -> Any:
    """Send a state to every device before the first update, which hands it on by itself.

    pmap would do so too, but by an implicit transfer, which the hot loop's guard refuses.
    """
    return state if len(devices) == 1 else jax.device_put(state, _sharding(devices))


def on_first_device(tree: Any, devices: list[jax.Device]) -> Any:
    """The first device's own copy of a state, for programs that run there alone; copies nothing."""
    if len(devices) == 1:
        return tree
    return jax.tree.map(lambda x: x.addressable_data(0), tree)


def _sharding(devices: list[jax.Device], *axes: str) -> jax.sharding.NamedSharding:
    mesh = jax.sharding.Mesh(np.array(devices), (AXIS,))
    return jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*axes))
