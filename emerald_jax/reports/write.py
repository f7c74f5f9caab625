"""Write a report: report.md, and one or two pictures per benchmark."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from emerald_jax.look.figures import Bar, bar_figure, rates_figure, returns_figure
from emerald_jax.look.style import save
from emerald_jax.reports import atari, crafter, returns
from emerald_jax.reports.runs import RunFacts, read_runs
from emerald_jax.run.directory import write_atomic
from emerald_jax.scores import crafter_score

REPORT_FILE = "report.md"


def write_report(paths: Iterable[str | Path], out: str | Path, *, random_episodes: int = 0) -> str:
    """Compare runs with the published numbers.

    Args:
        paths: run directories; they are only read.
        out: directory for report.md and its pictures; created if missing.
        random_episodes: of random play in each environment that has no published protocol; 0 uses
            the episodes that the runs themselves played before their first update.

    Returns:
        The text of report.md.

    Raises:
        ConfigError: one of ``paths`` is no run directory, or is given twice.
        EnvError: random play is requested in an environment that cannot be made on this machine.
    """
    runs, out = read_runs(paths), Path(out)
    out.mkdir(parents=True, exist_ok=True)
    parts = ["# Report\n"]
    for title, section in _sections(runs).items():
        plain = partial(_returns, random_episodes=random_episodes)
        write = {"Crafter": _crafter, "Atari 100k": _atari}.get(title, plain)
        parts.append(f"## {title}\n\n{write(section, out)}")
    parts.append(_runs_section(runs))
    text = "\n".join(parts)
    write_atomic(out / REPORT_FILE, text.encode())
    return text


def _sections(runs: Sequence[RunFacts]) -> dict[str, list[RunFacts]]:
    """Runs by benchmark; every environment without a benchmark has its own section."""
    found: dict[str, list[RunFacts]] = {"Crafter": [], "Atari 100k": []}
    for run in runs:
        family, _, game = run.config.env.partition(":")
        known = family == "atari" and game in atari.games()
        title = "Crafter" if run.config.env == "crafter" else run.config.env
        found.setdefault("Atari 100k" if known else title, []).append(run)
    return {title: section for title, section in found.items() if section}


def _crafter(runs: list[RunFacts], out: Path) -> str:
    ours = crafter.entries(runs)
    panels = {}
    for protocol in (crafter.TRAINING, crafter.EVALUATION):
        bars = [_crafter_bar(entry) for entry in ours if entry.protocol == protocol]
        known = crafter.published_scores(protocol).items()
        bars += [Bar(label=name.replace("_", " "), value=row["score"]) for name, row in known]
        panels[f"Crafter, {protocol} (hatched: not the protocol)"] = bars
    save(bar_figure(panels, unit="score, %"), out / "crafter.png")
    text = crafter.table(runs, ours).markdown() + "\n![Crafter scores](crafter.png)\n"
    if ours:
        pooled = [(crafter_score(entry.pooled_rates), entry) for entry in ours]
        rates = {f"score {score:.1f} %: {e.title}": e.pooled_rates for score, e in pooled}
        figure = rates_figure(rates | crafter.published_rates(), len(ours))
        save(figure, out / "crafter-rates.png")
        text += f"\n{crafter.rates_table(ours).markdown()}\n![Success rates](crafter-rates.png)\n"
    return text


def _crafter_bar(entry: crafter.Entry) -> Bar:
    """The mean score, and the range over seeds where there are several."""
    scores = [seed.score for seed in entry.results]
    low, high = (min(scores), max(scores)) if len(scores) > 1 else (np.nan, np.nan)
    shown = {"value": entry.score, "low": low, "high": high, "meets": not entry.deviations}
    return Bar(label=entry.label, ours=True, **shown)


def _atari(runs: list[RunFacts], out: Path) -> str:
    ours = atari.entries(runs)
    panels = {}
    for name in atari.AGGREGATES:
        bars = [_atari_bar(entry, name) for entry in ours]
        known = atari.published_aggregates().items()
        bars += [Bar(label=method, value=row[name]) for method, row in known if name in row]
        title = name.upper() if name == "iqm" else name
        panels[f"Atari 100k, {title} over games (hatched: not the protocol)"] = bars
    save(bar_figure(panels, unit="human-normalised score"), out / "atari100k.png")
    text = atari.table(runs, ours).markdown() + "\n![Aggregates](atari100k.png)\n"
    return text + (f"\n{atari.games_table(ours).markdown()}" if ours else "")


def _atari_bar(entry: atari.Entry, name: str) -> Bar:
    shown = {"label": f"{entry.coverage}: {entry.label}", "meets": entry.meets}
    return Bar(**shown, **entry.aggregates[name]._asdict(), ours=True)


def _returns(runs: list[RunFacts], out: Path, random_episodes: int) -> str:
    chance = returns.chance_before_training(runs)
    if random_episodes:
        chance = returns.chance_played(runs[0], random_episodes)
    env, ours = runs[0].config.env, returns.entries(runs, chance)
    curves: dict[str, list] = {}
    for run in runs:
        points = np.array([(row["step"], row["score"]) for row in run.episodes], float)
        if len(points):
            curves.setdefault(run.label, []).append(tuple(points.T))
    level = float(np.mean(chance.scores)) if chance.scores else None
    name = f"{re.sub(r'[^A-Za-z0-9._]+', '-', env)}.png"
    save(returns_figure(curves, level, title=env), out / name)
    return f"{returns.table(runs, ours).markdown()}\n![Learning curve]({name})\n"


def _runs_section(runs: Sequence[RunFacts]) -> str:
    lines = [
        f"- `{run.path}`: {run.config.env}, {run.label.removeprefix('ours: ')}, seed "
        f"{run.config.seed}, {run.env_steps:,} of {run.config.steps:,} steps, "
        f"{len(run.episodes):,} training episodes, {len(run.evaluations)} evaluations"
        for run in runs
    ]
    return "## Runs\n\n" + "\n".join(lines) + "\n"
