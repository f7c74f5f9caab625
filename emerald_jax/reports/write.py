"""Write a report: report.md, and one or two pictures per benchmark."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from emerald_jax.look.figures import Bar, bar_figure, rates_figure, returns_figure, save
from emerald_jax.reports import atari, crafter, curves, runs
from emerald_jax.reports.runs import RunFacts
from emerald_jax.run.directory import write_atomic
from emerald_jax.scores import aggregate, atari100k, crafter_score

REPORT_FILE = "report.md"


def write_report(paths: Iterable[str | Path], out: str | Path, *, random_episodes: int = 0) -> str:
    """Compare runs, which are only read, with the published numbers; returns the text of report.md.

    ``out`` is the directory for report.md and its pictures. ``random_episodes`` are played at
    random in each environment that has no published protocol; 0 uses the episodes that the runs
    themselves played before their first update. ConfigError: one of ``paths`` is no run directory,
    or is given twice. EnvError: an environment for random play cannot be made on this machine.
    """
    read, out = runs.read_runs(paths), Path(out)
    out.mkdir(parents=True, exist_ok=True)
    parts = ["# Report\n"]
    for title, section in _sections(read).items():
        plain = partial(_returns, random_episodes=random_episodes)
        write = {
            "Crafter": _crafter,
            "Atari 100k": _atari,
            **{
                benchmark.title: partial(_curves, benchmark)
                for benchmark in (curves.ATARI, curves.PROCGEN, curves.CONTROL)
            },
        }.get(title, plain)
        parts.append(f"## {title}\n\n{write(section, out)}")
    lines = [
        f"- `{run.path}`: {runs.world_of(run.config)}, {run.label.removeprefix('ours: ')}, seed "
        f"{run.config.seed}, {run.env_steps:,} of {run.config.steps:,} steps, "
        f"{len(run.episodes):,} training episodes, {len(run.evaluations)} evaluations\n"
        for run in read
    ]
    text = "\n".join([*parts, f"## Runs\n\n{''.join(lines)}"])
    write_atomic(out / REPORT_FILE, text.encode())
    return text


def _sections(read: Sequence[RunFacts]) -> dict[str, list[RunFacts]]:
    """Runs by benchmark; every environment without a benchmark has its own section."""
    found: dict[str, list[RunFacts]] = {"Crafter": [], "Atari 100k": []}
    for run in read:
        family, _, game = run.config.env.partition(":")
        title = "Crafter" if run.config.env == "crafter" else runs.world_of(run.config)
        if benchmark := curves.benchmark_of(run.config):
            title = benchmark.title
        elif family == "atari" and game in atari.games():
            title = "Atari 100k"
        found.setdefault(title, []).append(run)
    return {title: section for title, section in found.items() if section}


def _crafter(read: list[RunFacts], out: Path) -> str:
    ours = crafter.entries(read)
    panels = {}
    for protocol in (crafter.TRAINING, crafter.EVALUATION):
        bars = []
        for entry in (entry for entry in ours if entry.protocol == protocol):
            scores = [seed.score for seed in entry.results]
            ends = {"low": min(scores), "high": max(scores)} if len(scores) > 1 else {}
            shown = {"meets": not entry.deviations, **ends}
            bars.append(Bar(label=entry.label, value=entry.score, ours=True, **shown))
        known = crafter.published_scores(protocol).items()
        bars += [Bar(label=name.replace("_", " "), value=row["score"]) for name, row in known]
        panels[f"Crafter, {protocol} (hatched: not the protocol)"] = bars
    save(bar_figure(panels, unit="score, %"), out / "crafter.png")
    text = crafter.table(read, ours).markdown() + "\n![Crafter scores](crafter.png)\n"
    if ours:
        pooled = [(crafter_score(entry.pooled_rates), entry) for entry in ours]
        rates = {f"score {score:.1f} %: {e.title}": e.pooled_rates for score, e in pooled}
        figure = rates_figure(rates | crafter.published_rates(), len(ours))
        save(figure, out / "crafter-rates.png")
        text += f"\n{crafter.rates_table(ours).markdown()}\n![Success rates](crafter-rates.png)\n"
    return text


def _atari(read: list[RunFacts], out: Path) -> str:
    ours = atari.entries(read)
    panels = {}
    for name in atari.AGGREGATES:
        bars = []
        for entry in ours:
            label = f"{atari.coverage(entry.returns)}: {entry.label}"
            shown = {"meets": not entry.all_deviations, **entry.aggregates[name]._asdict()}
            bars.append(Bar(label=label, ours=True, **shown))
        known = atari100k()["aggregate"].items()
        bars += [Bar(label=method, value=row[name]) for method, row in known if name in row]
        title = name.upper() if name == "iqm" else name
        panels[f"Atari 100k, {title} over games (hatched: not the protocol)"] = bars
    save(bar_figure(panels, unit="human-normalised score"), out / "atari100k.png")
    text = atari.table(read, ours).markdown() + "\n![Aggregates](atari100k.png)\n"
    return text + (f"\n{atari.games_table(ours).markdown()}" if ours else "")


def _curves(benchmark: curves.Benchmark, read: list[RunFacts], out: Path) -> str:
    ours, panels = curves.entries(benchmark, read), {}
    total = len(benchmark.numbers()["games"])
    for point in benchmark.numbers()["points"]:
        bars = []
        for entry in (entry for entry in ours if entry.protocol == f"{point:,}"):
            found = aggregate(entry.normalised)[benchmark.headline]
            few = len(entry.normalised) < total
            shown = {"meets": not (entry.deviations or few), **found._asdict()}
            label = f"{len(entry.normalised)} of {total} games: {entry.label}"
            bars.append(Bar(label=label, ours=True, **shown))
        for agent, scores in curves.published(benchmark, point).items():
            value = aggregate({game: [x] for game, x in scores.items()})[benchmark.headline].value
            bars.append(Bar(label=agent, value=value))
        title = f"{benchmark.title}, {benchmark.headline} over games at {point:,} frames"
        panels[f"{title} (hatched: not the protocol)"] = bars
    save(bar_figure(panels, unit="normalised score"), out / benchmark.file)
    text = curves.table(benchmark, read, ours).markdown()
    text += f"\n![Normalised scores]({benchmark.file})\n"
    return text + (f"\n{curves.games_table(benchmark, ours).markdown()}" if ours else "")


def _returns(read: list[RunFacts], out: Path, random_episodes: int) -> str:
    chance = runs.chance_before_training(read)
    if random_episodes:
        chance = runs.chance_played(read[0], random_episodes)
    env, ours = runs.world_of(read[0].config), runs.entries(read, chance)
    curves: dict[str, list] = {}
    for run in read:
        points = np.array([(row["step"], row["score"]) for row in run.episodes], float)
        if len(points):
            curves.setdefault(run.label, []).append(tuple(points.T))
    level = float(np.mean(chance.scores)) if chance.scores else None
    name = f"{re.sub(r'[^A-Za-z0-9._]+', '-', env)}.png"
    save(returns_figure(curves, level, title=env), out / name)
    return f"{runs.table(read, ours).markdown()}\n![Learning curve]({name})\n"
