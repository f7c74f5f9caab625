"""The rules a configuration must obey: each returns None, or one line that says what to do.

``Config.validate`` asks them in order; the first complaint is the one the user reads.
"""

from __future__ import annotations

import math

from emerald_jax.config import Config


def _positive(config: Config) -> str | None:
    """Counts that must be at least one, probabilities that must lie in [0, 1)."""
    at_least_one = {
        "envs.count": config.envs.count,
        "model.grid": config.model.grid,
        "model.groups": config.model.groups,
        "model.channels": config.model.channels,
        "model.blocks": config.model.blocks,
        "model.heads": config.model.heads,
        "model.context": config.model.context,
        "behavior.horizon": config.behavior.horizon,
        "behavior.start_stride": config.behavior.start_stride,
        "behavior.noise_hold": config.behavior.noise_hold,
        "replay.batch": config.replay.batch,
        "replay.best_of": config.replay.best_of,
        "log.every": config.log.every,
        "log.keep": config.log.keep,
        "steps": config.steps,
    }
    for name, value in at_least_one.items():
        if value < 1:
            return f"{name} is {value}: it must be at least 1"
    if config.model.classes < 2 or config.replay.length < 2:
        return "model.classes and replay.length must be at least 2"
    if not 0 <= config.model.dropout < 1 or not 0 <= config.model.unimix < 1:
        return "model.dropout and model.unimix must lie in [0, 1)"
    if config.train_ratio <= 0:
        return f"train_ratio is {config.train_ratio}: it must be positive"
    return None


def _envs(config: Config) -> str | None:
    envs = config.envs
    for name in ("time_limit", "processes", "frame_skip", "max_worker_failures"):
        if getattr(envs, name) < 0:
            return f"envs.{name} is {getattr(envs, name)}: it must not be negative"
    if not envs.worker_timeout > 0:
        return f"envs.worker_timeout is {envs.worker_timeout}: it must be positive"
    if envs.processes and envs.workers == "inline":
        return (
            f"envs.processes {envs.processes} goes unused with envs.workers inline: "
            "leave it at 0, or choose --envs.workers process"
        )
    return None


def _grid_reachable(config: Config) -> str | None:
    size, grid = config.envs.image_size, config.model.grid
    ratio = size // grid
    if size % grid or ratio < 2 or ratio & (ratio - 1):
        return (
            f"envs.image_size {size} cannot reach model.grid {grid} by halving: "
            f"choose an image size of grid times a power of two, such as {grid * 16}"
        )
    return None


def _widths_divide(config: Config) -> str | None:
    m = config.model
    split = {
        "width": m.width if m.sequence == "tssm" else m.heads,
        "predictor_width": m.predictor_width if m.prior != "linear" else m.heads,
    }
    for name, width in split.items():
        if width % m.heads:
            return f"model.{name} {width} does not divide by model.heads {m.heads}"
    if m.sequence == "tssm" and m.width % 2:
        return f"model.width {m.width} must be even: its positions are sines and cosines"
    return None


def _variants_go_together(config: Config) -> str | None:
    m = config.model
    if m.posterior == "oh" and m.sequence == "tssm":
        return (
            "model.posterior oh needs model.sequence rssm: the transformer reads all z_t at once, "
            "before there is any h_t; choose --model.posterior o"
        )
    if m.prior == "autoregressive" and m.latent == "vector":
        return (
            "model.prior autoregressive goes from position to position and model.latent vector has "
            "only one: choose --model.prior maskgit or linear"
        )
    return None


def _decode_steps(config: Config) -> str | None:
    most = config.tokens if config.model.prior == "maskgit" else math.inf
    if not 0 <= config.behavior.decode_steps <= most:
        return (
            f"behavior.decode_steps {config.behavior.decode_steps} must lie between 0 and the "
            f"{config.tokens} tokens of a latent state"
        )
    return None


def _starts_exist(config: Config) -> str | None:
    if config.behavior.start_stride > config.replay.length:
        return (
            f"behavior.start_stride {config.behavior.start_stride} leaves no start in sequences of "
            f"replay.length {config.replay.length}: choose a smaller stride"
        )
    return None


def _search(config: Config) -> str | None:
    replay, hold = config.replay, config.behavior.noise_hold
    if hold > 10_000:
        return f"behavior.noise_hold is {hold}: no game needs more than 10000 steps"
    if replay.best_of > 1 and replay.sampler == "windows":
        return "replay.best_of is for replay.sampler streams: windows know no episodes"
    if replay.best_of > 1 and replay.batch < 4:
        return (
            "replay.best_of is for every fourth sequence, and replay.batch "
            f"{replay.batch} has fewer than four: choose a larger batch, or --replay.best-of 1"
        )
    return None


def _replay_holds_a_batch(config: Config) -> str | None:
    rows = config.replay.capacity // config.envs.count
    if rows <= config.replay.length:
        return (
            f"replay.capacity {config.replay.capacity} keeps {rows} steps of each of "
            f"{config.envs.count} environments, fewer than replay.length {config.replay.length}: "
            f"choose at least {(config.replay.length + 1) * config.envs.count}"
        )
    if config.replay.prefill < config.replay.length * config.envs.count:
        return (
            f"replay.prefill {config.replay.prefill} is less than one sequence per environment: "
            f"choose at least {config.replay.length * config.envs.count}"
        )
    return None


def _optim(config: Config) -> str | None:
    if config.optim.micro_batch < 0:
        return f"optim.micro_batch is {config.optim.micro_batch}: it must not be negative"
    return None


def _log(config: Config) -> str | None:
    log = config.log
    for name, value in {
        "max_minutes": config.max_minutes,
        "log.pictures": log.pictures,
        "log.eval_episodes": log.eval_episodes,
    }.items():
        if value < 0:
            return f"{name} is {value}: it must not be negative"
    if not log.checkpoint_minutes > 0:
        return f"log.checkpoint_minutes is {log.checkpoint_minutes}: it must be positive"
    return None


#: Asked in this order.
RULES = (
    _positive,
    _envs,
    _grid_reachable,
    _widths_divide,
    _variants_go_together,
    _decode_steps,
    _starts_exist,
    _search,
    _replay_holds_a_batch,
    _optim,
    _log,
)
