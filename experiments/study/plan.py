"""What an experiment file declares: variants, scales and what is measured."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

from emerald_jax.config import Config
from emerald_jax.presets import get_preset

#: ``data`` of a variant that is the memory probe, with its delay.
PROBE = "probe:"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scale:
    """How large a study is.

    Attributes:
        preset: the configuration that variants change.
        env: what is recorded; empty takes the preset's.
        records: environment steps to record, where no data set is given.
        updates: gradient steps of a world model.
        seeds: seeds of every variant.
        windows: held-out windows that are measured.
        context: real frames read before the dream.
        horizon: imagined steps measured.
        changes: dotted settings that all variants share, such as ``model.width``.
        agent_preset: preset of the agents trained for their score; empty trains none.
        agent_changes: dotted settings of those.
    """

    preset: str
    env: str = ""
    records: int
    updates: int
    seeds: int
    windows: int
    context: int
    horizon: int
    changes: dict[str, Any] = dataclasses.field(default_factory=dict)
    agent_preset: str = ""
    agent_changes: dict[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Variant:
    """One thing that is compared.

    Attributes:
        label: as tables and figures call it.
        changes: dotted settings, such as ``{"model.latent": "vector"}``.
        readings: label -> dotted settings with which one trained model is measured.
        data: empty for the scale's data set, ``probe:K`` for the memory probe.
        agent: train an agent for its score, instead of a world model.
        updates: gradient steps, where they are not the scale's.
    """

    label: str
    changes: dict[str, Any] = dataclasses.field(default_factory=dict)
    readings: dict[str, dict[str, Any]] = dataclasses.field(default_factory=lambda: {"": {}})
    data: str = ""
    agent: bool = False
    updates: int | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Study:
    """What an experiment file declares.

    Attributes:
        name: of its results.
        claim: one line, the docstring's first.
        scales: by name.
        variants: the variants at a scale.
        metrics: metric -> heading of its column.
        curves: metrics over imagined steps that are drawn, with their headings.
        points: metrics that are drawn as points, with their headings.
        timed: whether decoding is timed as well.
        swept: labels end in ``, SWEPT = NUMBER``, and points are drawn against that number.
        against: row that the others are told apart from, window by window; empty compares none.
        samples: what the numbers of a cell are of, for the notes below tables.
    """

    name: str
    claim: str
    scales: dict[str, Scale]
    variants: Callable[[Scale], Sequence[Variant]]
    metrics: dict[str, str]
    curves: dict[str, str] = dataclasses.field(default_factory=dict)
    points: dict[str, str] = dataclasses.field(default_factory=dict)
    timed: bool = False
    swept: str = ""
    against: str = ""
    samples: str = "held-out windows"


def updates_of(scale: Scale, variant: Variant) -> int:
    """Gradient steps of a variant at a scale."""
    return scale.updates if variant.updates is None else variant.updates


def config_of(scale: Scale, variant: Variant) -> Config:
    """The configuration of a variant at a scale."""
    if variant.agent:
        return change(get_preset(scale.agent_preset), {**scale.agent_changes, **variant.changes})
    return change(get_preset(scale.preset), {**scale.changes, **variant.changes})


def change(config: Config, settings: dict[str, Any]) -> Config:
    """``config`` with dotted settings changed.

    Raises:
        ConfigError: a setting does not exist.
    """
    values = config.to_dict()
    for name, value in settings.items():
        group, _, field = name.rpartition(".")
        (values[group] if group else values)[field] = value
    return Config.from_dict(values)


#: What is drawn against imagined steps.
DREAM_CURVES = {
    "dream_error": "squared pixel error of the dream",
    "moved": "moved pixels dreamt right",
    "reward_error": "error of the imagined reward",
}

#: Settings of the small world model that studies train at ``cpu``: Crafter at 32 x 32 pixels.
#: Loss weights and floors are the quickstart's reasoning: an image of a quarter of the pixels
#: weighs four times as much, and below the paper's floor of one nat a small prior learns nothing.
CPU_WORLD: dict[str, Any] = {
    "envs.image_size": 32,
    "model.width": 128,
    "model.groups": 8,
    "model.classes": 16,
    "model.latent_width": 32,
    "model.context": 32,
    "model.bins": 63,
    "model.predictor_width": 64,
    "loss.image": 4.0,
    "loss.free_nats": 0.1,
    "loss.mask_free_nats": 0.1,
    "optim.model_lr": 1e-3,
    "replay.length": 16,
}


def smoke_scale(**changes: Any) -> Scale:
    """Shows in a minute that a study works, and nothing else."""
    sizes: dict[str, Any] = dict(
        preset="tiny", records=900, updates=30, seeds=1, windows=16, context=3, horizon=5
    )
    return Scale(**{**sizes, **changes})


def cpu_scale(**changes: Any) -> Scale:
    """A small model on a CPU; what is measured where is the same for all studies."""
    sizes: dict[str, Any] = dict(
        preset="crafter-small",
        records=24_000,
        updates=600,
        seeds=3,
        windows=32,
        context=8,
        horizon=50,
        changes=CPU_WORLD,
    )
    return Scale(**{**sizes, **changes})


def minatar_scale(**changes: Any) -> Scale:
    """A board at one pixel a cell, of which a CPU learns a model that dreams what happens.

    Random play of Breakout loses the ball before there is anything to learn, so a data set of a
    trained agent's play is to be given.
    """
    sizes: dict[str, Any] = dict(
        preset="minatar",
        records=100_000,
        updates=4000,
        seeds=1,
        windows=128,
        context=8,
        horizon=16,
        changes={
            "optim.model_lr": 1e-3,
            # As the committed results have them; the preset's own are a tenth of these since.
            "loss.free_nats": 0.1,
            "loss.mask_free_nats": 0.1,
        },
    )
    return Scale(**{**sizes, **changes})


def paper_scale(**changes: Any) -> Scale:
    """The published sizes, for a GPU."""
    sizes: dict[str, Any] = dict(
        preset="crafter",
        records=200_000,
        updates=50_000,
        seeds=3,
        windows=256,
        context=16,
        horizon=50,
    )
    return Scale(**{**sizes, **changes})


def latent_changes(scale: Scale, kind: str) -> dict[str, Any]:
    """Settings of a spatial or a vector latent at a scale.

    Both have the preset's groups, as the paper's have, but for ``minatar``: 4 groups of 8 classes
    can name 4,096 pictures, and a board of 30 bricks has more. The vector has 32 groups there.

    Args:
        scale: of the study.
        kind: ``spatial`` or ``vector``.
    """
    more = {"model.groups": 32} if kind == "vector" and scale.preset == "minatar" else {}
    return {"model.latent": kind, **more}


def standard_scales() -> dict[str, Scale]:
    """The scales of all studies of recorded play, by the name that ``--scale`` takes."""
    return {
        "smoke": smoke_scale(),
        "cpu": cpu_scale(),
        "minatar": minatar_scale(),
        "paper": paper_scale(),
    }
