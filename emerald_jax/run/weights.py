"""Weights alone: reading them from a run or an export, writing an export, starting a run from them.

An export is a directory that plain orbax and JSON read::

    DIR/weights/     {"world_model", "actor", "critic"}, an orbax StandardSave of host arrays
    DIR/config.json  every setting of the run they come from
    DIR/export.json  {"sha256", "content": {"step", "env_steps", "dtype", "leaves", "source"}}
    DIR/SHA256SUMS   of its files, for ``sha256sum -c``

It appears whole, by a rename, or not at all.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from emerald_jax.agent.agent import Agent
from emerald_jax.agent.state import Learner, build_learner, init_state
from emerald_jax.config import Config
from emerald_jax.envs.registry import spec_of
from emerald_jax.run.checkpoint import Checkpointer, check_sums, load_tree, save_tree, sum_up
from emerald_jax.run.directory import (
    CHECKPOINTS_DIR,
    CONFIG_FILE,
    compare_settings,
    read_config,
    write_config,
)
from emerald_jax.run.files import (
    CheckpointError,
    DamagedError,
    describe_leaves,
    first_line,
    named_leaves,
    seal,
    unseal,
    write_atomic,
)
from emerald_jax.run.machine import prepare_jax
from emerald_jax.types import Params

EXPORT_FILE = "export.json"
WEIGHTS_DIR = "weights"
Dtype = Literal["float32", "bfloat16"]


def read_weights(
    source: str | Path, learner: Learner, checkpoint: int | None = None
) -> tuple[dict[str, Params], int, dict[str, Any]]:
    """The parameters of a run or of an export, every byte checked, in float32.

    Args:
        source: a run directory or an export; it is only read.
        learner: the networks they are for.
        checkpoint: a run's step; None takes the newest sound one.

    Returns:
        ``world_model``, ``actor`` and ``critic``; the updates behind them; the facts that were
        saved with them, ``env_steps`` among them.

    Raises:
        ConfigError: ``source`` is neither.
        CheckpointError: it is damaged or does not fit the networks; one line that names a setting.
    """
    source = Path(source)
    config = read_config(source)
    shapes = jax.eval_shape(partial(init_state, learner), jax.random.key(0)).params
    try:
        if (source / EXPORT_FILE).is_file():
            return _read_export(source, shapes, checkpoint)
        with Checkpointer(source / CHECKPOINTS_DIR, read_only=True) as files:
            params, facts, step = files.restore(shapes, checkpoint, prefix="state/params")
    except DamagedError:
        raise
    except CheckpointError as error:
        raise _explain(source, config, learner.config, error) from error
    return params, step, facts.get("run", {})


def export_weights(
    run: str | Path, target: str | Path, *, dtype: Dtype = "float32", checkpoint: int | None = None
) -> dict[str, Any]:
    """Write the weights of a run, without optimisers and replay, to a directory of their own.

    Needs no environment: what is in the checkpoint decides the shapes.

    Args:
        run: a run directory; it is only read.
        target: made; must not exist.
        dtype: of the floats; bfloat16 halves the size and keeps three significant digits.
        checkpoint: its step; None takes the newest sound one.

    Returns:
        What stands in export.json.

    Raises:
        ConfigError: ``run`` is no run.
        CheckpointError: it has no sound checkpoint, or ``target`` exists or cannot be written.
    """
    run, target = Path(run), Path(target).absolute()
    config = read_config(run)
    if target.exists() or target.is_symlink():
        raise CheckpointError(f"{target} exists: choose another --to")
    with Checkpointer(run / CHECKPOINTS_DIR, read_only=True) as files:
        leaves, facts, step = files.read_numpy(checkpoint, prefix="state/params")
    leaves = {name: _cast(leaf, dtype) for name, leaf in leaves.items()}
    content = {
        "step": step,
        "env_steps": facts.get("run", {}).get("env_steps"),
        "dtype": dtype,
        "leaves": describe_leaves(leaves),
        "source": str(run),
    }
    draft = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir()  # refused here, orbax would complain at length
        save_tree(draft / WEIGHTS_DIR, _nest(leaves))
        write_config(draft, config)
        write_atomic(draft / EXPORT_FILE, json.dumps(seal(content), indent=1).encode())
        sum_up(draft)
        os.rename(draft, target)
    except Exception as error:
        raise CheckpointError(f"{target} cannot be written: {first_line(error)}") from error
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return content


def _read_export(
    source: Path, shapes: Any, checkpoint: int | None
) -> tuple[dict[str, Params], int, dict[str, Any]]:
    """:func:`read_weights` of an export."""
    try:
        content = unseal(json.loads((source / EXPORT_FILE).read_bytes()))
        check_sums(source, apart=(CONFIG_FILE,))
        leaves = named_leaves(load_tree(source / WEIGHTS_DIR))
    except (OSError, ValueError, DamagedError) as error:
        raise DamagedError(f"export {source} is damaged: {first_line(error)}") from error
    if checkpoint not in (None, content["step"]):
        raise CheckpointError(f"{source} holds checkpoint {content['step']}, not {checkpoint}")
    if describe_leaves(leaves) != content["leaves"]:
        raise DamagedError(f"export {source} is damaged: its arrays are not what was written")
    wanted = named_leaves(shapes)
    for name in {**wanted, **leaves}:
        there, here = (list(t[name].shape) if name in t else "absent" for t in (leaves, wanted))
        if there != here:
            raise CheckpointError(f"{source} does not fit: {name} is {there} in it, {here} here")
    placed = [jax.device_put(leaves[n].astype(leaf.dtype)) for n, leaf in wanted.items()]
    facts = {"env_steps": content["env_steps"]}
    return jax.tree.unflatten(jax.tree.structure(shapes), placed), content["step"], facts


def _explain(source: Path, theirs: Config, ours: Config, error: CheckpointError) -> CheckpointError:
    """The same error in terms of settings, where they differ in what shapes the networks."""
    found = [
        d
        for d in compare_settings(theirs, ours)
        if not d.free and (d.name in ("env", "envs.image_size") or d.name.startswith("model."))
    ]
    if "not fit" not in str(error) or not found:
        return error
    values = ", ".join(f"{d.name} {d.before} there and {d.now} here" for d in found)
    return CheckpointError(f"the weights in {source} do not fit this run: {values}")


def _cast(leaf: np.ndarray, dtype: Dtype) -> np.ndarray:
    return leaf.astype(dtype) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf


def _nest(leaves: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """``{"a/b": x}`` -> ``{"a": {"b": x}}``."""
    tree: dict[str, Any] = {}
    for name, leaf in leaves.items():
        *parents, last = name.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = leaf
    return tree


def load(
    run: str | Path,
    checkpoint: int | None = None,
    *,
    device: jax.Device | None = None,
    config: Config | None = None,
) -> Agent:
    """The agent of a run, or of what ``emerald-jax export`` wrote.

    Args:
        run: a run directory; it is only read.
        checkpoint: its step; None takes the newest sound one.
        device: where the weights go and everything is computed; None takes JAX's default.
        config: settings to use instead of the run's own, for example another environment.

    Raises:
        ConfigError: ``run`` is no run directory.
        CheckpointError: it holds no sound checkpoint, or not that one.
        EnvError: its environment is not installed here.
    """
    config = config or read_config(run)
    prepare_jax()
    spec = spec_of(config.env, config.envs)
    learner = build_learner(config, spec.num_actions)
    params, updates, facts = read_weights(run, learner, checkpoint)
    if device is not None:
        params = jax.device_put(params, device)
    return Agent(learner, params, spec, updates, facts.get("env_steps"))
