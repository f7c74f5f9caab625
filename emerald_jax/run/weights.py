"""Weights: from a run or an export into an agent, and from an agent into an export.

An export is a directory that plain orbax, JSON and ``sha256sum -c`` read: ``weights/`` (parameter
groups such as "world_model", an orbax checkpoint of host arrays), ``config.json`` (settings of the
networks), ``export.json`` (version, step, env_steps, dtype, leaves, source) and ``SHA256SUMS``. It
appears complete, by a rename, or not at all.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from emerald_jax import __version__
from emerald_jax.agent import Agent
from emerald_jax.agent.state import GROUPS, Learner, build_learner, init_state
from emerald_jax.config import Config
from emerald_jax.envs.registry import spec_of
from emerald_jax.run.checkpoint import Store, describe, load_tree, named_leaves, nest, save_tree
from emerald_jax.run.directory import (
    EXPORT_FILE,
    CheckpointError,
    DamagedError,
    check_sums,
    compare_settings,
    first_line,
    new_directory,
    read_config,
    write_config,
    write_json,
)
from emerald_jax.run.machine import prepare_jax
from emerald_jax.run.pretrained import find_run
from emerald_jax.types import Params

WEIGHTS_DIR = "weights"
Dtype = Literal["float32", "bfloat16"]


def load(
    source: str | Path,
    checkpoint: int | None = None,
    *,
    device: jax.Device | None = None,
    config: Config | None = None,
) -> Agent:
    """The agent of a run or of an export.

    Args:
        source: a run directory or an export; it is only read.
        checkpoint: a run's number of updates; None takes the newest sound checkpoint.
        device: of the weights and all computations; None takes JAX's default.
        config: settings to use instead of the run's, such as another number of environments.

    Raises:
        ConfigError: ``source`` is neither.
        CheckpointError: it holds no sound checkpoint, or not this one, or it does not fit
            ``config``.
        EnvError: its environment is not installed.
    """
    source = find_run(source)
    config = config or read_config(source)
    prepare_jax()
    if config.data:  # the environment may not be installed, or there may be none
        from emerald_jax.run.data import recorded_spec

        spec = recorded_spec(source, config, checkpoint)
    else:
        spec = spec_of(config.env, config.envs)
    learner = build_learner(config, spec.actions)
    params, updates, metadata = read_weights(source, learner, checkpoint)
    if device is not None:
        params = jax.device_put(params, device)
    return Agent(learner, params, spec, updates, metadata.get("env_steps"))


def read_weights(
    source: str | Path,
    learner: Learner,
    checkpoint: int | None = None,
    *,
    groups: Sequence[str] = GROUPS,
) -> tuple[dict[str, Params], int, dict[str, Any]]:
    """The parameters of a run or of an export for ``learner``, every byte checked, in float32.

    Returns a tree per group, the number of updates, and the metadata saved with them. ConfigError
    if ``source`` is neither; CheckpointError, which names a setting, if it is damaged or does not
    fit the networks. ``checkpoint`` None takes a run's newest sound one.
    """
    source = find_run(source)
    config = read_config(source)
    if (source / EXPORT_FILE).is_file():
        leaves, step, metadata = _read_export(source, checkpoint)
    else:
        found = Store(source, read_only=True).read("state/params", checkpoint)
        leaves, step, metadata = named_leaves(found.tree), found.step, found.metadata
    shapes = jax.eval_shape(partial(init_state, learner), jax.random.key(0)).params
    shapes = {group: shapes[group] for group in groups}
    wanted = named_leaves(shapes)
    for name in {**wanted, **leaves}:
        there, here = (list(t[name].shape) if name in t else "absent" for t in (leaves, wanted))
        if there != here and name.partition("/")[0] in shapes:
            if differ := _differing(config, learner.config):
                raise CheckpointError(f"the weights in {source} do not fit this run: {differ}")
            raise CheckpointError(f"{source} does not fit: {name} is {there} in it, {here} here")
    placed = [jax.device_put(leaves[name].astype(leaf.dtype)) for name, leaf in wanted.items()]
    return jax.tree.unflatten(jax.tree.structure(shapes), placed), step, metadata


def write_weights(
    target: str | Path,
    params: Mapping[str, Params],
    config: Config,
    metadata: Mapping[str, Any],
    *,
    dtype: Dtype = "float32",
) -> dict[str, Any]:
    """Write parameters, a tree per group, to the new export ``target``; returns its export.json.

    ``metadata`` are JSON values for export.json, such as ``step``, ``env_steps`` and ``source``;
    ``dtype`` is that of the floats: bfloat16 halves the size and keeps three significant digits.
    CheckpointError if ``target`` exists or cannot be written.
    """
    target = Path(target).absolute()
    if target.exists() or target.is_symlink():
        raise CheckpointError(f"{target} exists: choose another --to")
    leaves = {name: np.asarray(leaf) for name, leaf in named_leaves(params).items()}
    floats = {n: x for n, x in leaves.items() if jnp.issubdtype(x.dtype, jnp.floating)}
    leaves |= {name: leaf.astype(dtype) for name, leaf in floats.items()}
    content = {"version": __version__, "step": 0, "env_steps": None, **metadata}
    content |= {"dtype": dtype, "leaves": describe(leaves)}
    try:
        with new_directory(target) as draft:
            save_tree(draft / WEIGHTS_DIR, nest(leaves))
            write_config(draft, dataclasses.replace(config, logdir=""))  # a folder of this machine
            write_json(draft / EXPORT_FILE, content)
    except Exception as error:  # orbax raises many types
        raise CheckpointError(f"{target} cannot be written: {first_line(error)}") from error
    return content


def export_weights(
    run: str | Path, target: str | Path, *, dtype: Dtype = "float32", checkpoint: int | None = None
) -> dict[str, Any]:
    """Write the weights of a run, without optimisers and replay; see :func:`write_weights`.

    Needs no environment: the shapes are read from the checkpoint, by default the newest sound one.
    """
    config = read_config(run)
    found = Store(run, read_only=True).read("state/params", checkpoint)
    metadata = {"step": found.step, "env_steps": found.metadata.get("env_steps")}
    metadata["spec"] = found.metadata.get("spec")  # of what recordings show: no environment has it
    return write_weights(target, found.tree, config, metadata | {"source": str(run)}, dtype=dtype)


def _read_export(
    source: Path, checkpoint: int | None
) -> tuple[dict[str, np.ndarray], int, dict[str, Any]]:
    """Arrays by name, number of updates and metadata of an export."""
    try:
        check_sums(source)
        content = json.loads((source / EXPORT_FILE).read_bytes())
        content = content.get("content", content)  # versions up to a5675e2 sealed it
        leaves = named_leaves(load_tree(source / WEIGHTS_DIR))
    except (OSError, ValueError, DamagedError) as error:
        raise DamagedError(f"export {source} is damaged: {first_line(error)}") from error
    if checkpoint not in (None, content["step"]):
        raise CheckpointError(f"{source} holds checkpoint {content['step']}, not {checkpoint}")
    return leaves, content["step"], content


def _differing(theirs: Config, ours: Config) -> str:
    """The settings that shape the networks and differ."""
    return ", ".join(
        f"{d.name} {d.before} there and {d.now} here"
        for d in compare_settings(theirs, ours)
        if not d.free and re.match(r"env$|envs\.image_size$|model\.", d.name)
    )
