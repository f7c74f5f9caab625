"""The report itself: report.md and one picture or two per benchmark."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from emerald_jax.look.figures import Bar, bar_figure, rates_figure, returns_figure
from emerald_jax.reports import atari, crafter, returns
from emerald_jax.reports.runs import RunFacts, read_runs
from emerald_jax.run.files import write_atomic
from emerald_jax.scores import crafter_score

REPORT_FILE = "report.md"


def write_report(paths: Iterable[str | Path], out: str | Path, *, random_episodes: int = 0) -> str:
    """Compare runs with the published numbers.

    Args:
        paths: run directories; they are only read.
        out: directory for report.md and its pictures; made when there is none.
        random_episodes: of random play in each environment that has no published protocol; 0 takes
            what the runs themselves played before their first update.

    Returns:
        The text of report.md.

    Raises:
        ConfigError: one of ``paths`` is no run directory, or is given twice.
        EnvError: random play is wanted in an environment that cannot be made here.
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
    """Runs by benchmark; environments without one each have their own section."""
    found: dict[str, list[RunFacts]] = {}
    for run in runs:
        family, _, game = run.config.env.partition(":")
        known = family == "atari" and game in atari.games()
        title = "Crafter" if run.config.env == "crafter" else run.config.env
        found.setdefault("Atari 100k" if known else title, []).append(run)
    first = [title for title in ("Crafter", "Atari 100k") if title in found]
    return {title: found[title] for title in dict.fromkeys([*first, *found])}


def _crafter(runs: list[RunFacts], out: Path) -> str:
    ours = crafter.entries(runs)
    panels = {}
    for protocol in (crafter.TRAINING, crafter.EVALUATION):
        bars = [
            Bar(
                label=entry.label,
                value=entry.score,
                low=min(seed.score for seed in entry.seeds) if len(entry.seeds) > 1 else np.nan,
                high=max(seed.score for seed in entry.seeds) if len(entry.seeds) > 1 else np.nan,
                ours=True,
                meets=not entry.deviations,
            )
            for entry in ours
            if entry.protocol == protocol
        ]
        known = crafter.published_scores(protocol).items()
        bars += [Bar(label=name.replace("_", " "), value=row["score"]) for name, row in known]
        panels[f"Crafter, {protocol} (hatched: not the protocol)"] = bars
    bar_figure(panels, out / "crafter.png", unit="score, %")
    text = crafter.table(runs, ours).markdown() + "\n![Crafter scores](crafter.png)\n"
    if ours:
        rates = {_who(entry): entry.pooled_rates for entry in ours}
        rates["EMERALD, released runs (published)"] = crafter.released_rates()
        rates["human experts (published)"] = crafter.human_rates()
        rates_figure(rates, len(rates) - 2, out / "crafter-rates.png")
        text += f"\n{crafter.rates_table(ours).markdown()}\n![Success rates](crafter-rates.png)\n"
    return text


def _who(entry: crafter.Entry) -> str:
    """An entry in one line, for a legend."""
    return f"{entry.title}, score {crafter_score(entry.pooled_rates):.1f} %"


def _atari(runs: list[RunFacts], out: Path) -> str:
    ours = atari.entries(runs)
    panels = {}
    for name in ("mean", "median", "iqm"):
        bars = []
        for entry in ours:
            found = entry.aggregates[name]
            label = f"{entry.label} ({len(entry.returns)} of {len(atari.games())} games)"
            bars.append(Bar(label=label, **found._asdict(), ours=True, meets=entry.meets))
        bars += [
            Bar(label=method, value=row[name])
            for method, row in atari.published_aggregates().items()
            if name in row
        ]
        title = name.upper() if name == "iqm" else name
        panels[f"Atari 100k, {title} over games (hatched: not the protocol)"] = bars
    bar_figure(panels, out / "atari100k.png", unit="human-normalised score")
    text = atari.table(runs, ours).markdown() + "\n![Aggregates](atari100k.png)\n"
    return text + (f"\n{atari.games_table(ours).markdown()}" if ours else "")


def _returns(runs: list[RunFacts], out: Path, random_episodes: int) -> str:
    if random_episodes:
        chance = returns.chance_played(runs[0], random_episodes)
    else:
        chance = returns.chance_before_training(runs)
    env, ours = runs[0].config.env, returns.entries(runs, chance)
    curves: dict[str, list] = {}
    for run in runs:
        points = np.array([(row["step"], row["score"]) for row in run.episodes], float)
        if len(points):
            curves.setdefault(run.label, []).append(tuple(points.T))
    level = float(np.mean(chance.scores)) if chance.scores else None
    name = f"{re.sub(r'[^A-Za-z0-9._]+', '-', env)}.png"
    returns_figure(curves, level, out / name, title=env)
    return f"{returns.table(runs, ours).markdown()}\n![Learning curve]({name})\n"


def _runs_section(runs: Sequence[RunFacts]) -> str:
    """Which runs these were."""
    lines = [
        f"- `{run.path}`: {run.config.env}, {run.label.removeprefix('ours: ')}, seed "
        f"{run.config.seed}, {run.env_steps:,} of {run.config.steps:,} steps, "
        f"{len(run.episodes):,} training episodes, {len(run.evaluations)} evaluations"
        for run in runs
    ]
    return "## Runs\n\n" + "\n".join(lines) + "\n"
