"""What ``emerald-jax inspect`` shows: a run's rows, its recorded frames, and its model at work.

Every section stands for itself: what a run does not have is said in its place, so that a run of
one minute, a running one, or an export can be looked at too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from emerald_jax.config import Config
from emerald_jax.envs.base import EnvError
from emerald_jax.ops.scores import crafter_score, success_rates
from emerald_jax.presets import PRESETS
from emerald_jax.replay import ReplayError
from emerald_jax.saving.durable import CheckpointError
from emerald_jax.saving.files import write_atomic
from emerald_jax.saving.rundir import EPISODES_FILE, METRICS_FILE, read_config, read_rows
from emerald_jax.trained.inspection_model import ModelSections
from emerald_jax.trained.loaded import load
from emerald_jax.trained.recordings import Recordings
from emerald_jax.viz import panels
from emerald_jax.viz.curves import curve_figure, rolling_mean
from emerald_jax.viz.page import Picture, Section, Table, html_report, settings_table

Rows = list[dict[str, Any]]

#: Episodes whose achievements are counted.
RECENT_EPISODES = 100


def inspect_run(
    run: str | Path, out: str | Path, *, checkpoint: int | None = None, seed: int = 0
) -> Path:
    """Write the report of a run.

    Args:
        run: a run directory, or an export; it is only read.
        out: the HTML file to write.
        checkpoint: its step; None takes the newest sound one.
        seed: of the frames that are looked at, and of the dreams.

    Returns:
        ``out``.

    Raises:
        ConfigError: ``run`` is no run directory.
        CheckpointError: it does not hold the checkpoint that was asked for.
    """
    run, out = Path(run), Path(out)
    config = read_config(run)
    metrics, episodes = read_rows(run / METRICS_FILE), read_rows(run / EPISODES_FILE)
    sections = [
        _settings(config),
        _try("Learning curves", lambda: _curves(run)),
        *([_success(episodes)] if any(_achievements(row) for row in episodes) else []),
        *_model_sections(run, checkpoint, seed),
        _try("Imagined and real reward over training", lambda: _reward_drift(metrics, episodes)),
        _metric(metrics, "Return scale", ("behavior/return_scale",), _RETURN_SCALE),
        _metric(metrics, "Values", ("behavior/value", "behavior/return"), _VALUES),
        _metric(metrics, "Entropy", ("behavior/policy_entropy",), _ENTROPY),
        _metric(
            metrics,
            "Latent entropy",
            ("model/posterior_entropy", "model/prior_entropy"),
            "How uncertain encoder and prediction are about a latent position, in nats: a gap that "
            "grows says that the world surprises the model.",
        ),
        _metric(metrics, "Pixel error", ("model/pixel_error",), _PIXELS),
        _time(metrics),
    ]
    steps = max((row.get("step", 0) for row in [*metrics, *episodes]), default=0)
    subtitle = f"{config.env}, preset {config.preset}, {steps:,} environment steps"
    page = html_report(str(run), subtitle, sections)
    write_atomic(out, page.encode())
    return out


_RETURN_SCALE = (
    "What advantages are divided by: the range of imagined returns, never below 1. A scale that "
    "keeps rising while episodes do not get better warns of a model that is being exploited."
)
_VALUES = (
    "What the critic expects of imagined states, and the returns that it learns from. Values that "
    "drift away from what episodes give, or from their own returns, promise what is not there."
)
_ENTROPY = (
    "Of the policy, in nats. Near zero it explores no more; near its maximum it has learnt nothing."
)
_PIXELS = "Mean squared error of the reconstructions on the unit scale."


def _try(title: str, make: Callable[[], Section]) -> Section:
    """A section, or the reason why there is none."""
    try:
        return make()
    except (ReplayError, EnvError, ValueError) as error:
        return Section(title, missing=" ".join(str(error).split()))


def _settings(config: Config) -> Section:
    preset = PRESETS.get(config.preset)
    defaults = _flat(preset[1].to_dict()) if preset else None
    table = settings_table(_flat(config.to_dict()), defaults)
    return Section("Settings", parts=(table,))


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = value
    return flat


def _curves(run: Path) -> Section:
    picture = Picture(panels.png_of(curve_figure(run)), "return and losses against steps")
    return Section("Learning curves", parts=(picture,))


def _achievements(row: Mapping[str, Any]) -> Mapping[str, int]:
    return row.get("achievements") or (row.get("extra") or {}).get("achievements") or {}


def _success(episodes: Rows) -> Section:
    unlocked = [_achievements(row) for row in episodes if _achievements(row)][-RECENT_EPISODES:]
    rates = success_rates(unlocked, sorted({name for row in unlocked for name in row}))
    ordered = dict(sorted(rates.items(), key=lambda item: -item[1]))
    about = (
        f"Share of the last {len(unlocked)} training episodes that unlocked each achievement. "
        f"The score over these episodes is {crafter_score(rates):.2f} %; published scores pool "
        "other episodes."
    )
    picture = Picture(
        panels.bars(ordered, title="Success rates", unit="per cent of episodes"),
        "success rate of every achievement",
    )
    return Section("Success rates", about, (picture,))


def _model_sections(run: Path, checkpoint: int | None, seed: int) -> list[Section]:
    """What needs weights and frames."""
    try:
        agent, recordings = load(run, checkpoint), Recordings(run)
    except (CheckpointError, EnvError, ReplayError) as error:
        if checkpoint is not None:
            raise
        reason = " ".join(str(error).split())
        return [Section("The model at work", missing=reason)]
    look = ModelSections(agent, recordings, seed)
    parts = [(title, make) for title, make in look.sections().items()]
    return [_try(title, make) for title, make in parts]


def _series(rows: Rows, names: tuple[str, ...]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Metrics by name; those that no row has are left out."""
    found = {}
    for name in names:
        points = [(row["step"], row[name]) for row in rows if row.get(name) is not None]
        if points:
            steps, values = np.array(points, np.float64).T
            found[name] = (steps, values)
    return found


def _metric(rows: Rows, title: str, names: tuple[str, ...], about: str) -> Section:
    series = _series(rows, names)
    if not series:
        return Section(title, missing=f"no row of {METRICS_FILE} has {' or '.join(names)}")
    short = {name.rpartition("/")[2].replace("_", " "): s for name, s in series.items()}
    picture = Picture(panels.lines(short, title=title), f"{title} against environment steps")
    return Section(title, about, (picture,))


def _reward_drift(metrics: Rows, episodes: Rows) -> Section:
    """Imagined reward per step beside the real one."""
    title = "Imagined and real reward over training"
    series = _series(metrics, ("behavior/imagined_reward",))
    rows = [r for r in episodes if r.get("score") is not None and r.get("length")]
    if rows:
        steps = np.array([row["step"] for row in rows], np.float64)
        scores, lengths = (np.array([row[k] for row in rows]) for k in ("score", "length"))
        series["real"] = (steps, rolling_mean(scores) / rolling_mean(lengths))
    if not series:
        return Section(title, missing="the run has neither imagined nor real rewards yet")
    short = {name.rpartition("/")[2].replace("_", " "): s for name, s in series.items()}
    about = (
        "Mean reward of a step, imagined in updates and real over the last 100 training episodes. "
        "Imagination that promises ever more than reality gives is being exploited. Imagined steps "
        "count by the chance that the dream has gone on so far."
    )
    picture = Picture(panels.lines(short, title="Reward per step"), title)
    return Section(title, about, (picture,))


def _time(metrics: Rows) -> Section:
    """Where the time goes, from whatever shares and rates the run logged."""
    title = "Time"
    names = sorted(
        {name for row in metrics for name in row if name.startswith(("speed/", "time/"))}
    )
    shares = {n: s for n, s in _series(metrics, tuple(names)).items() if "share" in n}
    rates = {n: s for n, s in _series(metrics, tuple(names)).items() if n not in shares}
    if not names:
        return Section(title, missing=f"no row of {METRICS_FILE} has a speed")
    parts: list[Picture | Table] = []
    if shares:
        plain = {_plain(name): series for name, series in shares.items()}
        drawn = panels.lines(plain, title="Shares of the loop's time", share=True)
        parts.append(Picture(drawn, "shares of the loop's time against environment steps"))
    if rates:
        rows = [(_plain(n), f"{np.median(v):.3g}", f"{v[-1]:.3g}") for n, (_, v) in rates.items()]
        parts.append(Table([("", "median", "latest"), *rows]))
    about = (
        "Waiting for environments, waiting for the device, and copying batches out of the replay: "
        "the larger of the first two decides the pace."
    )
    return Section(title, about, tuple(parts))


def _plain(name: str) -> str:
    return name.partition("/")[2].replace("_", " ")
