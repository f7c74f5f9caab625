"""A report as one HTML file that opens from disk: pictures inside, no script, no request.

The sections of a report that need a trained model and recorded frames.

What ``emerald-jax inspect`` shows: a run's rows, its recorded frames, and its model at work.

Every section stands for itself: what a run does not have is said in its place, so that a run of
one minute, a running one, or an export can be looked at too.
"""

from __future__ import annotations

import base64
import html
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property, partial
from importlib import resources
from pathlib import Path
from string import Template
from typing import Any, NamedTuple

import jax
import numpy as np

from emerald_jax.agent.agent import Agent, Dream
from emerald_jax.agent.state import count_parameters
from emerald_jax.config import Config
from emerald_jax.envs.base import EnvError
from emerald_jax.look import figures
from emerald_jax.look.figures import curve_figure, rolling_mean
from emerald_jax.look.film import action_name
from emerald_jax.look.inside import attention_weights, by_distance, decoding_trace
from emerald_jax.presets import PRESETS
from emerald_jax.replay import ReplayError
from emerald_jax.run.directory import EPISODES_FILE, METRICS_FILE, read_config, read_rows
from emerald_jax.run.files import CheckpointError, write_atomic
from emerald_jax.run.pictures import report_strip
from emerald_jax.run.recordings import Clip, Recordings
from emerald_jax.run.weights import load
from emerald_jax.scores import crafter_score, success_rates
from emerald_jax.types import Batch


class Table(NamedTuple):
    """Rows of text; ``marked`` ones are bold.

    Attributes:
        rows: cells, the first of each row is its name.
        marked: indices of rows that stand out.
        folded: a title under which the table is folded away; empty shows it.
    """

    rows: Sequence[Sequence[str]]
    marked: frozenset[int] = frozenset()
    folded: str = ""


class Picture(NamedTuple):
    """A PNG or GIF.

    Attributes:
        data: the file's bytes.
        alt: what it shows, for those who cannot see it.
        wide: keep its size and scroll, instead of shrinking it to the page.
    """

    data: bytes
    alt: str
    wide: bool = False


class Section(NamedTuple):
    """One part of a report.

    Attributes:
        title: its heading.
        about: one or two sentences on what is to be seen.
        parts: tables and pictures.
        missing: why there is nothing to be seen; empty when there is.
    """

    title: str
    about: str = ""
    parts: tuple[Table | Picture, ...] = ()
    missing: str = ""


def html_report(title: str, subtitle: str, sections: Iterable[Section]) -> str:
    """The whole page.

    Args:
        title: of the page.
        subtitle: one line under it.
        sections: in order.

    Returns:
        HTML that needs nothing else.
    """
    sections = list(sections)
    page = resources.files("emerald_jax.look").joinpath("report.html").read_text(encoding="utf-8")
    links = (f'<a href="#s{i}">{html.escape(s.title)}</a>' for i, s in enumerate(sections))
    return Template(page).substitute(
        title=html.escape(title),
        subtitle=html.escape(subtitle),
        contents="\n".join(links),
        sections="\n".join(_section(i, s) for i, s in enumerate(sections)),
    )


def settings_table(values: Mapping[str, object], defaults: Mapping[str, object] | None) -> Table:
    """Every setting, those that differ from the preset's marked and first.

    Args:
        values: full name to value.
        defaults: the preset's; None marks nothing.
    """
    changed = [n for n in values if defaults is not None and defaults.get(n) != values[n]]
    names = [*changed, *(name for name in values if name not in changed)]
    rows = [(name, str(values[name])) for name in names]
    title = f"{len(values)} settings, {len(changed)} other than the preset's"
    return Table(rows, frozenset(range(len(changed))), title)


def _section(index: int, section: Section) -> str:
    parts = [f'<h2 id="s{index}">{html.escape(section.title)}</h2>']
    if section.about and not section.missing:
        parts.append(f"<p>{html.escape(section.about)}</p>")
    if section.missing:
        parts.append(f'<p class="none">Not shown: {html.escape(section.missing)}.</p>')
    parts += [_table(p) if isinstance(p, Table) else _picture(p) for p in section.parts]
    return "\n".join(parts)


def _picture(picture: Picture) -> str:
    kind = "gif" if picture.data.startswith(b"GIF8") else "png"
    data = base64.b64encode(picture.data).decode()
    image = f'<img src="data:image/{kind};base64,{data}" alt="{html.escape(picture.alt)}">'
    return f'<div class="wide">{image}</div>' if picture.wide else image


def _table(table: Table) -> str:
    rows = []
    for i, (name, *cells) in enumerate(table.rows):
        kind = ' class="changed"' if i in table.marked else ""
        inside = "".join(f"<td>{html.escape(cell)}</td>" for cell in cells)
        rows.append(f"<tr{kind}><th>{html.escape(name)}</th>{inside}</tr>")
    body = f'<div class="wide"><table>{"".join(rows)}</table></div>'
    if not table.folded:
        return body
    return f"<details><summary>{html.escape(table.folded)}</summary>{body}</details>"


#: Clips looked at, the frames seen of each, and the steps dreamt after them.
CLIPS, CONTEXT, HORIZON = 3, 4, 15
#: Decoding steps shown, where the run's own are fewer.
LEAST_STEPS = 3
#: Recorded actions counted, and steps of the policy's dream.
COUNTED, DREAMT = 20_000, 50


class ModelSections:
    """Makes the sections, each on demand."""

    def __init__(self, agent: Agent, recordings: Recordings, seed: int) -> None:
        """Prepare; nothing is computed yet.

        Args:
            agent: the trained agent.
            recordings: of its run.
            seed: of the clips that are looked at, and of the dreams.
        """
        self.agent, self.recordings, self.seed = agent, recordings, seed

    def sections(self) -> dict[str, Callable[[], Section]]:
        """Title to what makes it; making one may raise ReplayError or ValueError."""
        return {
            "Parameters": self._parameters,
            "Reconstructions and dreams": self._dreams,
            "Imagined against real reward": self._rewards,
            "Decoding steps": self._decoding,
            "Attention over the past": self._attention,
            "Actions": self._actions,
        }

    @cached_property
    def clips(self) -> list[Clip]:
        """Recorded stretches of equal length, as long as there are any."""
        rng = np.random.default_rng(self.seed)
        found = [self.recordings.draw(CONTEXT + HORIZON, rng) for _ in range(4 * CLIPS)]
        longest = max(len(clip) for clip in found)
        if longest <= CONTEXT:
            raise ReplayError(f"no recorded episode is longer than {CONTEXT} frames")
        whole = [clip for clip in found if len(clip) == longest]
        different = {(clip.env, clip.row): clip for clip in whole}
        return list(different.values())[:CLIPS]

    @cached_property
    def dream(self) -> Dream:
        """The clips' beginnings, dreamt on under the recorded actions."""
        image, action = (np.stack([getattr(c, n) for c in self.clips]) for n in ("image", "action"))
        return self.agent.imagine(
            image[:, :CONTEXT],
            action[:, :CONTEXT],
            key=jax.random.key(self.seed),
            horizon=image.shape[1] - CONTEXT,
            future=action[:, CONTEXT:],
        )

    def _parameters(self) -> Section:
        counts = count_parameters(self.agent.params)
        rows = [(name.replace("_", " "), f"{count:,}") for name, count in counts.items()]
        about = f"Weights after {self.agent.updates:,} updates."
        return Section("Parameters", about, (Table(rows),))

    def _dreams(self) -> Section:
        image = np.stack([clip.image for clip in self.clips])
        action = np.stack([clip.action for clip in self.clips])
        key = jax.random.key(self.seed)
        decoded = self.agent.imagine(image, action, key=key, horizon=1, steps=1).seen
        strip = report_strip(image, decoded, self.dream.frames, CONTEXT)
        about = (
            f"The model sees {CONTEXT} recorded frames; right of the orange line it dreams on with "
            "the recorded actions alone. The error row is brighter the further the dream is off."
        )
        picture = Picture(figures.png_of(strip), "real frames, reconstructions, dream, error", True)
        return Section("Reconstructions and dreams", about, (picture,))

    def _rewards(self) -> Section:
        real = np.stack([clip.reward for clip in self.clips])
        unseen = np.full((len(real), CONTEXT), np.nan)
        predicted, cont = (
            np.concatenate([unseen, x], axis=1) for x in (self.dream.rewards, self.dream.continues)
        )
        about = "The same dreams: what they promised, and what the recorded episodes gave."
        picture = Picture(
            figures.rewards(real, predicted, cont, CONTEXT), "imagined and real reward by step"
        )
        return Section("Imagined against real reward", about, (picture,))

    def _decoding(self) -> Section:
        learner = self.agent.learner
        prior = getattr(self.agent.config.model, "prior", "maskgit")
        if prior != "maskgit":
            return Section("Decoding steps", missing=f"this run's prior is {prior}")
        clip, steps = self.clips[0], max(LEAST_STEPS, self.agent.config.behavior.decode_steps)
        at = len(clip) // 2
        h = self._hidden(clip)[at]
        trace = jax.jit(partial(decoding_trace, learner=learner, steps=steps))(
            self.agent.params, h, jax.random.key(self.seed)
        )
        side = round(trace.masked.shape[1] ** 0.5)
        masked, sure = (
            np.asarray(x).mean(-1).reshape(steps, side, side)
            for x in (trace.masked, trace.confidence)
        )
        strip = figures.decoding_strip(np.asarray(trace.frame), masked, sure, clip.image[at])
        tokens = trace.masked[0].size
        counts = ", ".join(str(int(n)) for n in np.asarray(trace.masked).sum((1, 2)))
        about = (
            f"The prediction of one recorded frame from its past, in {steps} steps; {counts} of "
            f"{tokens} tokens were masked when each began. Dots: one for each tenth of a place's "
            "tokens that was masked. Tint: how unsure the model is there. A token that is drawn "
            "again later stands at its likeliest class."
        )
        return Section("Decoding steps", about, (Picture(figures.png_of(strip), "decoding steps"),))

    def _attention(self) -> Section:
        model = self.agent.config.model
        kind = getattr(model, "sequence", "tssm")
        if kind != "tssm":
            return Section("Attention over the past", missing=f"the {kind} has no attention")
        clip = self._past(model.context + 1)
        weights = jax.jit(partial(attention_weights, learner=self.agent.learner))(
            self.agent.params, self._sequence(clip), jax.random.key(self.seed)
        )
        # The newest steps see the most of the past.
        newest = by_distance(np.asarray(weights), model.context)[:, :, -(len(clip) // 4 + 1) :]
        ages = [0, *(2**i for i in range(12) if 2**i >= model.context / 16)]
        picture = figures.attention_map(newest.mean(axis=2), ages)
        about = (
            f"Mean attention of the last quarter of {len(clip)} recorded steps by distance; each "
            "block looks back at most "
            f"{model.context} steps, {model.blocks} blocks together "
            f"{model.blocks * model.context}."
        )
        return Section("Attention over the past", about, (Picture(picture, "attention"),))

    def _actions(self) -> Section:
        spec = self.agent.spec
        rows = self.recordings.newest(COUNTED)
        taken = rows["action"][~rows["is_first"]]
        starts = [clip for clip in self.clips for _ in range(8)]
        dream = self.agent.imagine(
            np.stack([clip.image[:CONTEXT] for clip in starts]),
            np.stack([clip.action[:CONTEXT] for clip in starts]),
            key=jax.random.key(self.seed),
            horizon=DREAMT,
        )
        shares = {
            f"recorded, the last {taken.size:,}": _shares(taken, spec.num_actions),
            f"the policy in dreams, {dream.actions.size:,}": _shares(
                dream.actions, spec.num_actions
            ),
        }
        names = [action_name(spec, i) for i in range(spec.num_actions)]
        about = "A policy that has collapsed to few actions shows here before losses tell."
        picture = Picture(figures.action_histogram(names, shares), "shares of the actions")
        return Section("Actions", about, (picture,))

    def _past(self, length: int) -> Clip:
        rng = np.random.default_rng(self.seed)
        return self.recordings.draw(length, rng)

    def _hidden(self, clip: Clip) -> np.ndarray:
        """h of every frame of a clip, `[T, D]`."""
        model, params = self.agent.learner.model, self.agent.params["world_model"]
        passed = jax.jit(lambda p, s, k: model.apply({"params": p}, s, k).state.h)
        return passed(params, self._sequence(clip), jax.random.key(self.seed))

    def _sequence(self, clip: Clip) -> Batch:
        """A clip as a sequence about whose past nothing is known."""
        reset = np.zeros(len(clip), bool)
        reset[0] = True
        carry = jax.tree.map(lambda x: x[0], self.agent.initial(1).carry)
        return Batch(*clip[:6], reset=reset, carry=carry)


def _shares(actions: np.ndarray, count: int) -> np.ndarray:
    counts = np.bincount(actions.ravel(), minlength=count)
    return counts / max(1, counts.sum())


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
    picture = Picture(figures.png_of(curve_figure(run)), "return and losses against steps")
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
        figures.bars(ordered, title="Success rates", unit="per cent of episodes"),
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
    picture = Picture(figures.lines(short, title=title), f"{title} against environment steps")
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
    picture = Picture(figures.lines(short, title="Reward per step"), title)
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
        drawn = figures.lines(plain, title="Shares of the loop's time", share=True)
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
