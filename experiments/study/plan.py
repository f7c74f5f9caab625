"""What an experiment file declares: variants, scales and metrics."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from emerald_jax.config import Config
from emerald_jax.presets import get_preset

#: Prefix of ``Variant.data`` for the memory probe; its delay follows.
PROBE = "probe:"

#: Metrics of imagined frames, with their headings in tables.
DREAM_METRICS = {
    "dream_error": "dream error",
    "moved": "moved pixels dreamt right",
    "reward_error": "reward error",
}
_LATENT = {"token_accuracy": "token accuracy", "nats": "nats per latent"}
#: Metrics and points of studies of the decoding.
DECODING: dict[str, Any] = {
    "metrics": {**_LATENT, **DREAM_METRICS, "decode_us": "decoding, us per latent"},
    "points": _LATENT,
}
#: Metric -> the same metric without a model: its name, label and line style.
BASELINES = {
    "dream_error": ("still_error", "the last frame read", "--"),
    "moved": ("still_moved", "the last frame read", "--"),
    "reward_error": ("zero_error", "no reward ever", ":"),
}


@dataclass(frozen=True, kw_only=True)
class Scale:
    """The size of a study."""

    preset: str  # the configuration that variants change
    env: str = ""  # environment to record; empty takes the preset's
    records: int  # environment steps to record, where no data set is given
    updates: int  # gradient steps of a world model
    seeds: int  # of every variant
    windows: int  # held-out windows that are measured
    context: int  # real frames read before the dream
    horizon: int  # imagined steps measured
    changes: dict[str, Any] = field(default_factory=dict)  # dotted settings that variants share
    agent_preset: str = ""  # of the agents trained for their score; empty trains none
    agent_changes: dict[str, Any] = field(default_factory=dict)  # dotted settings of those


@dataclass(frozen=True, kw_only=True)
class Variant:
    """One row of a comparison, or one for each of its readings.

    ``readings`` are dotted settings, by label, with which one trained model is measured. ``data``
    is empty for the scale's data set, ``probe:K`` for the memory probe.
    """

    label: str  # its name in tables and figures
    changes: dict[str, Any] = field(default_factory=dict)  # such as {"model.latent": "vector"}
    readings: dict[str, dict[str, Any]] = field(default_factory=lambda: {"": {}})
    data: str = ""
    agent: bool = False  # train an agent for its score, instead of a world model
    updates: int | None = None  # gradient steps; None takes the scale's


@dataclass(frozen=True, kw_only=True)
class Study:
    """What an experiment file declares; metrics are given with their headings.

    With ``swept``, labels end in ``, SWEPT = NUMBER`` and points are drawn against that number.
    Paired differences from the row labelled ``against`` are tabulated, unless it is empty.
    """

    name: str  # of its file and its results
    claim: str  # one line, the docstring's first
    scales: dict[str, Scale] = field(default_factory=lambda: SCALES)
    variants: Callable[[Scale], Sequence[Variant]]
    metrics: dict[str, str]  # columns; decode_us also times the decoding
    curves: dict[str, str] = field(default_factory=lambda: DREAM_METRICS)  # over imagined steps
    points: dict[str, str] = field(default_factory=dict)  # drawn as points
    swept: str = ""
    against: str = ""
    samples: str = "held-out windows"  # behind a number, for the notes below tables


def config_of(scale: Scale, variant: Variant) -> Config:
    """The configuration of a variant at a scale."""
    preset, shared = scale.preset, scale.changes
    if variant.agent:
        preset, shared = scale.agent_preset, scale.agent_changes
    return change(get_preset(preset), {**shared, **variant.changes})


def change(config: Config, settings: dict[str, Any]) -> Config:
    """``config`` with dotted settings changed; ConfigError where one does not exist."""
    values = config.to_dict()
    for name, value in settings.items():
        group, _, last = name.rpartition(".")
        (values[group] if group else values)[last] = value
    return Config.from_dict(values)


#: Below the paper's floor of one nat a small prior learns nothing, so the floors are lower.
_SMALL = {"optim.model_lr": 1e-3, "loss.free_nats": 0.1, "loss.mask_free_nats": 0.1}
#: Settings of ``cpu``. Its images have a quarter of the pixels, so their loss weighs four times.
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
    "replay.length": 16,
    **_SMALL,
}
#: One minute, to show that a study works; its numbers mean nothing.
SMOKE = Scale(preset="tiny", records=900, updates=30, seeds=1, windows=16, context=3, horizon=5)
#: A small model of Crafter on a CPU.
_CPU_SIZES = dict(records=24_000, updates=600, seeds=3, windows=32, context=8, horizon=50)
CPU = Scale(preset="crafter-small", changes=CPU_WORLD, **_CPU_SIZES)
#: Breakout-MinAtar at one pixel a cell. Give a data set of a trained agent: random play loses the
#: ball too early. Floors and images are those of the committed results: the preset of today has a
#: tenth of the floors, centred images, and reads the best episodes more often.
_PLAIN = {**_SMALL, "model.center": False, "optim.anneal": False, "replay.best_of": 1}
_MINATAR_SIZES = dict(records=100_000, updates=4000, seeds=1, windows=128, context=8, horizon=16)
MINATAR = Scale(preset="minatar", changes=_PLAIN, **_MINATAR_SIZES)
#: The published sizes, for a GPU.
_PAPER_SIZES = dict(records=200_000, updates=50_000, windows=256, context=16)
PAPER = replace(CPU, preset="crafter", changes={}, **_PAPER_SIZES)
#: The scales of all studies of recorded play, by the name that ``--scale`` takes.
SCALES = {"smoke": SMOKE, "cpu": CPU, "minatar": MINATAR, "paper": PAPER}


def latent_changes(scale: Scale, kind: str) -> dict[str, Any]:
    """Settings of a ``spatial`` or a ``vector`` latent, with the preset's groups as in the paper.

    At ``minatar`` the vector has 32 groups: 4 groups of 8 classes distinguish 4,096 pictures, fewer
    than 30 bricks can form.
    """
    more = {"model.groups": 32} if (kind, scale.preset) == ("vector", "minatar") else {}
    return {"model.latent": kind, **more}
