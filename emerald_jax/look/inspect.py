"""``emerald-jax inspect``: one HTML file with a run's curves, recorded frames and model at work.

The file opens from disk: pictures are inside, it has no script and sends no request. A section that
a run has no data for states the reason, so a run of one minute, a running one, or an export can be
inspected too. :func:`decoding_trace` and :func:`attention_weights` look inside the world model.
"""

from __future__ import annotations

import base64
import html
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from importlib import resources
from pathlib import Path
from string import Template
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Float32
from matplotlib.figure import Figure

from emerald_jax.agent import Agent, Dream
from emerald_jax.agent.dream import read, show
from emerald_jax.agent.state import Learner, count_parameters
from emerald_jax.config import Config
from emerald_jax.envs.base import EnvError, is_crafter_like
from emerald_jax.imagination import maskgit_decode
from emerald_jax.look import figures
from emerald_jax.look.film import action_name, entry_names
from emerald_jax.models.tssm import RelativeAttention
from emerald_jax.models.world_model import WorldModel
from emerald_jax.presets import PRESETS
from emerald_jax.replay import ReplayError
from emerald_jax.run.directory import (
    EPISODES_FILE,
    METRICS_FILE,
    CheckpointError,
    compare_settings,
    read_config,
    read_rows,
    write_atomic,
)
from emerald_jax.run.log import achievements_of
from emerald_jax.run.pictures import report_strip
from emerald_jax.run.recordings import Clip, Recordings
from emerald_jax.run.weights import load
from emerald_jax.scores import crafter_score, success_rates
from emerald_jax.types import Array, Batch, Before, Key, Params, State, key_of

#: Number of clips shown, the frames read of each, and the steps imagined after them.
CLIPS, CONTEXT, HORIZON = 3, 4, 15
#: Minimum number of decoding steps shown.
LEAST_STEPS = 3
#: Recorded actions counted, and steps of the policy's dream.
COUNTED, DREAMT = 20_000, 50
#: Episodes whose achievements are counted.
RECENT_EPISODES = 100

Rows = list[dict[str, Any]]
#: A sentence about a section, and its tables and pictures as HTML.
Section = tuple[str, list[str]]


def inspect_run(
    run: str | Path, out: str | Path, *, checkpoint: int | None = None, seed: int = 0
) -> Path:
    """Write the report of a run or of an export, which is only read, to the HTML file ``out``.

    ``checkpoint`` is its step; None uses the newest valid one. ``seed``: of the choice of frames,
    and of the dreams. ConfigError: ``run`` is no run directory. CheckpointError: it does not hold
    the requested checkpoint.
    """
    run, out = Path(run), Path(out)
    config = read_config(run)
    metrics, episodes = read_rows(run / METRICS_FILE), read_rows(run / EPISODES_FILE)
    achievements = [found for row in episodes if (found := achievements_of(row))]
    sections: dict[str, Callable[[], Section]] = {
        "Settings": partial(_settings, config),
        "Learning curves": lambda: ("", [_picture(figures.curve_figure(run), "learning curves")]),
    }
    if achievements:
        sections["Success rates"] = lambda: _success(config.env, achievements[-RECENT_EPISODES:])
    try:
        source = Source(load(run, checkpoint), Recordings(run), seed)
        sections |= {title: partial(make, source) for title, make in MODEL_SECTIONS.items()}
    except (CheckpointError, EnvError, ReplayError) as error:
        if checkpoint is not None:
            raise
        sections["The model at work"] = partial(_missing, error)
    sections["Imagined and real reward over training"] = lambda: _reward_drift(metrics, episodes)
    for title, (names, about) in METRICS.items():
        sections[title] = partial(_metric, metrics, title, names, about)
    sections["Time"] = lambda: _time(metrics)
    steps = max((row.get("step", 0) for row in [*metrics, *episodes]), default=0)
    played = f"recorded data {config.data}" if config.data else f"{steps:,} environment steps"
    subtitle = f"{config.env or 'no environment'}, preset {config.preset}, {played}"
    write_atomic(out, _page(str(run), subtitle, sections).encode())
    return out


def _page(title: str, subtitle: str, sections: Mapping[str, Callable[[], Section]]) -> str:
    page = resources.files("emerald_jax.look").joinpath("report.html").read_text(encoding="utf-8")
    links = (f'<a href="#s{i}">{html.escape(name)}</a>' for i, name in enumerate(sections))
    parts = (_section(i, *item) for i, item in enumerate(sections.items()))
    texts = dict(title=html.escape(title), subtitle=html.escape(subtitle))
    return Template(page).substitute(texts, contents="\n".join(links), sections="\n".join(parts))


def _section(index: int, title: str, make: Callable[[], Section]) -> str:
    """A section as HTML, or the reason why it is missing."""
    try:
        about, parts = make()
        about = f"<p>{html.escape(about)}</p>" if about else ""
    except (CheckpointError, EnvError, ReplayError, ValueError) as error:
        reason = html.escape(" ".join(str(error).split()))
        about, parts = f'<p class="none">Not shown: {reason}.</p>', []
    return "\n".join([f'<h2 id="s{index}">{html.escape(title)}</h2>', about, *parts])


def _missing(error: Exception) -> Section:
    raise error


def _picture(picture: Figure | np.ndarray, alt: str, *, wide: bool = False) -> str:
    """A picture as HTML; a wide one keeps its size and scrolls."""
    data = base64.b64encode(figures.png_of(picture)).decode()
    image = f'<img src="data:image/png;base64,{data}" alt="{html.escape(alt)}">'
    return f'<div class="wide">{image}</div>' if wide else image


def _table(rows: Sequence[Sequence[str]], *, bold: int = 0) -> str:
    """A table as HTML; the first cell of a row is its name; the first ``bold`` rows are bold."""
    lines = []
    for i, (name, *cells) in enumerate(rows):
        kind = ' class="changed"' if i < bold else ""
        inside = "".join(f"<td>{html.escape(cell)}</td>" for cell in cells)
        lines.append(f"<tr{kind}><th>{html.escape(name)}</th>{inside}</tr>")
    return f'<div class="wide"><table>{"".join(lines)}</table></div>'


def _settings(config: Config) -> Section:
    """Every setting; those that differ from the preset come first, in bold."""
    values: dict[str, Any] = {}
    for name, value in config.to_dict().items():
        group = value if isinstance(value, dict) else {"": value}
        values |= {f"{name}.{key}".removesuffix("."): x for key, x in group.items()}
    preset = PRESETS[config.preset][1] if config.preset in PRESETS else config
    changed = {difference.name for difference in compare_settings(preset, config)}
    names = sorted(values, key=lambda name: name not in changed)
    table = _table([(name, str(values[name])) for name in names], bold=len(changed))
    summary = f"{len(values)} settings, {len(changed)} other than the preset's"
    return "", [f"<details><summary>{summary}</summary>{table}</details>"]


def _success(env: str, achievements: Sequence[Mapping[str, int]]) -> Section:
    rates = success_rates(achievements, sorted({name for row in achievements for name in row}))
    count = len(achievements)
    about = f"Share of the last {count} training episodes that unlocked each achievement."
    if is_crafter_like(env, rates):
        about += f" The score over these episodes is {crafter_score(rates):.2f} %; published scores"
        about += " pool other episodes."
    best_first = sorted(rates.items(), key=lambda item: -item[1])
    bars = [figures.Bar(label=k.replace("_", " "), value=v, ours=True) for k, v in best_first]
    figure = figures.bar_figure({"Success rates": bars}, unit="per cent of episodes")
    return about, [_picture(figure, "success rate of every achievement")]


@dataclass(frozen=True)
class Source:
    """A trained agent and the recorded frames of its run; ``seed`` chooses clips and dreams."""

    agent: Agent
    recordings: Recordings
    seed: int

    @property
    def key(self) -> jax.Array:
        """The key of all draws."""
        return key_of(self.seed)

    @cached_property
    def clips(self) -> list[Clip]:
        """Recorded clips of equal length, the longest available."""
        rng = np.random.default_rng(self.seed)
        found = [self.recordings.draw(CONTEXT + HORIZON, rng) for _ in range(4 * CLIPS)]
        longest = max(len(clip) for clip in found)
        if longest <= CONTEXT:
            raise ReplayError(f"no recorded episode is longer than {CONTEXT} frames")
        different = {(clip.env, clip.row): clip for clip in found if len(clip) == longest}
        return list(different.values())[:CLIPS]

    def stack(self, name: str) -> np.ndarray:
        """One column of all clips, `[clips, T, …]`."""
        return np.stack([getattr(clip, name) for clip in self.clips])

    @cached_property
    def dream(self) -> Dream:
        """The beginnings of the clips, continued under the recorded actions."""
        image, action = self.stack("image"), self.stack("action")
        past, future = (image[:, :CONTEXT], action[:, :CONTEXT]), action[:, CONTEXT:]
        return self.agent.imagine(*past, key=self.key, horizon=future.shape[1], future=future)


def _parameters(source: Source) -> Section:
    counts = count_parameters(source.agent.params)
    rows = [(name.replace("_", " "), f"{count:,}") for name, count in counts.items()]
    return f"Weights after {source.agent.updates:,} updates.", [_table(rows)]


def _dreams(source: Source) -> Section:
    image, action = source.stack("image"), source.stack("action")
    decoded = source.agent.imagine(image, action, key=source.key, horizon=1, steps=1).seen
    strip = report_strip(image, decoded, source.dream.frames, CONTEXT)
    about = (
        f"The model reads {CONTEXT} recorded frames; right of the orange line it imagines under "
        "the recorded actions alone. The error row is brighter where the dream is less accurate."
    )
    return about, [_picture(strip, "real frames, reconstructions, dream, error", wide=True)]


def _rewards(source: Source) -> Section:
    real = source.stack("reward")
    unseen = np.full((len(real), CONTEXT), np.nan)
    dream = (source.dream.rewards, source.dream.continues)
    predicted, cont = (np.concatenate([unseen, x], axis=1) for x in dream)
    figure = figures.imagined_rewards(real, predicted, cont, CONTEXT)
    about = "The same dreams: the rewards they predict, and those of the recorded episodes."
    return about, [_picture(figure, "imagined and real reward by step")]


def _decoding(source: Source) -> Section:
    agent = source.agent
    prior = getattr(agent.config.model, "prior", "maskgit")
    if prior != "maskgit":
        raise ValueError(f"this run's prior is {prior}")
    clip, steps = source.clips[0], max(LEAST_STEPS, agent.config.behavior.decode_steps)
    at = len(clip) // 2
    reading = jax.jit(partial(read, learner=agent.learner))
    _, states = reading(agent.params, clip.image[:, None], clip.action[:, None], source.key)
    tracing = jax.jit(partial(decoding_trace, learner=agent.learner, steps=steps))
    before = Before(states.z[at - 1, 0], clip.action[at])
    trace = jax.device_get(tracing(agent.params, states.h[at, 0], before, source.key))
    side = round(trace.masked.shape[1] ** 0.5)
    shape = (steps, side, side, -1)
    masked, sure = (x.reshape(shape).mean(-1) for x in (trace.masked, trace.confidence))
    strip = figures.decoding_strip(trace.frame, masked, sure, clip.image[at])
    counts = ", ".join(str(int(n)) for n in trace.masked.sum((1, 2)))
    about = (
        f"The prediction of one recorded frame from its past, in {steps} steps; {counts} of "
        f"{trace.masked[0].size} tokens were masked at the start of each. Dots: one per tenth of a "
        "position's tokens that was masked. Tint: how uncertain the model is there. A token that "
        "a later step draws again is shown as its most probable class."
    )
    return about, [_picture(strip, "decoding steps")]


def _attention(source: Source) -> Section:
    agent, model = source.agent, source.agent.config.model
    kind = getattr(model, "sequence", "tssm")
    if kind != "tssm":
        raise ValueError(f"the {kind} has no attention")
    clip = source.recordings.draw(model.context + 1, np.random.default_rng(source.seed))
    carry = jax.tree.map(lambda x: x[0], agent.initial(1).carry)
    # Nothing is known about the past of the first frame.
    sequence = Batch(*clip[:6], reset=np.arange(len(clip)) == 0, carry=carry)
    weighing = jax.jit(partial(attention_weights, learner=agent.learner))
    weights = weighing(agent.params, sequence, source.key)
    # The newest steps see the most of the past.
    newest = by_distance(np.asarray(weights), model.context)[:, :, -(len(clip) // 4 + 1) :]
    ages = [0, *(2**i for i in range(12) if 2**i >= model.context / 16)]
    about = (
        f"Mean attention of the last quarter of {len(clip)} recorded steps by distance. Each block "
        f"looks back at most {model.context} steps, {model.blocks} blocks together "
        f"{model.blocks * model.context}."
    )
    return about, [_picture(figures.attention_map(newest.mean(axis=2), ages), "attention")]


def _actions(source: Source) -> Section:
    agent, spec = source.agent, source.agent.spec
    rows, space = source.recordings.newest(COUNTED), spec.actions
    taken = rows["action"][~rows["is_first"]]
    image, action = (source.stack(x)[:, :CONTEXT].repeat(8, axis=0) for x in ("image", "action"))
    dream = agent.imagine(image, action, key=source.key, horizon=DREAMT)
    dreamt = dream.actions.reshape(-1, *space.shape)
    about = "A policy that uses only a few actions is visible here before the losses show it."
    pictures = []
    if any(space.sizes):
        shares = {
            f"recorded, the last {len(taken):,}": np.concatenate(space.shares(taken)),
            f"the policy in dreams, {len(dreamt):,}": np.concatenate(space.shares(dreamt)),
        }
        names = [action_name(spec, i) for i in range(spec.num_actions)]
        if not space.discrete:
            named = zip(entry_names(spec), space.sizes, strict=True)
            names = [f"{name} {i}" for name, size in named for i in range(size)]
        pictures.append(_picture(figures.action_histogram(names, shares), "shares of the actions"))
    if not all(space.sizes):
        clip = source.recordings.draw(DREAMT + 1, np.random.default_rng(source.seed))
        curves = {
            "recorded": clip.action[~clip.is_first],
            "the policy in a dream": dream.actions[0],
        }
        curves = {name: space.scaled(x) for name, x in curves.items()}
        figure = figures.action_curves(entry_names(spec), curves)
        pictures.append(_picture(figure, "actions along an episode and a dream"))
    return about, pictures


#: Sections that need weights and recorded frames.
MODEL_SECTIONS: dict[str, Callable[[Source], Section]] = {
    "Parameters": _parameters,
    "Reconstructions and dreams": _dreams,
    "Imagined against real reward": _rewards,
    "Decoding steps": _decoding,
    "Attention over the past": _attention,
    "Actions": _actions,
}
#: Sections that plot metrics: the metrics, and a sentence about them.
METRICS = {
    "Return scale": (
        ("behavior/return_scale",),
        "The divisor of advantages: the range of imagined returns, at least 1. If it keeps rising "
        "while episodes do not improve, the policy may be exploiting errors of the model.",
    ),
    "Values": (
        ("behavior/value", "behavior/return"),
        "The critic's values of imagined states, and the returns it learns from. Values that drift "
        "away from real returns, or from their own targets, are unreliable.",
    ),
    "Entropy": (
        ("behavior/policy_entropy",),
        "Of the policy, in nats. Near zero it no longer explores; near its maximum it has learned "
        "nothing.",
    ),
    "Latent entropy": (
        ("model/posterior_entropy", "model/prior_entropy"),
        "The uncertainty of encoder and prediction about a latent position, in nats. A growing gap "
        "means that the model predicts the world worse.",
    ),
    "Pixel error": (
        ("model/pixel_error",),
        "Mean squared error of the reconstructions, for pixels between 0 and 1.",
    ),
}


def _short(series: figures.Series) -> figures.Series:
    return {name.rpartition("/")[2].replace("_", " "): s for name, s in series.items()}


def _metric(rows: Rows, title: str, names: Sequence[str], about: str) -> Section:
    series = figures.series_of(rows, names)
    if not series:
        raise ValueError(f"no row of {METRICS_FILE} has {' or '.join(names)}")
    figure = figures.lines(_short(series), title=title)
    return about, [_picture(figure, f"{title} against environment steps")]


def _reward_drift(metrics: Rows, episodes: Rows) -> Section:
    series = {}
    rows = [r for r in episodes if r.get("score") is not None and r.get("length")]
    if rows:
        table = np.array([(r["step"], r["score"], r["length"]) for r in rows], np.float64)
        steps, scores, lengths = table.T
        series["real"] = (steps, figures.rolling_mean(scores) / figures.rolling_mean(lengths))
    series |= figures.series_of(metrics, ["behavior/imagined_reward"])
    if not series:
        raise ValueError("the run has neither imagined nor real rewards yet")
    about = (
        "Mean reward of a step, imagined in updates and real over the last 100 training episodes. "
        "If imagined rewards rise ever further above real ones, the policy exploits errors of the "
        "model. Imagined steps are weighted by the probability that the dream has not ended."
    )
    figure = figures.lines(_short(series), title="Reward per step")
    return about, [_picture(figure, "imagined and real reward over training")]


def _time(metrics: Rows) -> Section:
    names = sorted({k for row in metrics for k in row if k.startswith(("speed/", "time/"))})
    if not names:
        raise ValueError(f"no row of {METRICS_FILE} has a speed")
    series = figures.series_of(metrics, names)
    shares = {name: points for name, points in series.items() if "share" in name}
    parts = []
    if shares:
        title = "Shares of the loop's time"
        figure = figures.lines(_short(shares), title=title, share=True)
        parts.append(_picture(figure, f"{title} against environment steps"))
    rates = _short({name: points for name, points in series.items() if name not in shares})
    if rates:
        rows = [(name, f"{np.median(v):.3g}", f"{v[-1]:.3g}") for name, (_, v) in rates.items()]
        parts.append(_table([("", "median", "latest"), *rows]))
    about = (
        "Waiting for environments, waiting for the device, and copying batches from the replay: "
        "the larger of the first two limits the speed."
    )
    return about, parts


class DecodingTrace(NamedTuple):
    """How one latent was decoded, step by step.

    Attributes:
        frame: `[S, height, width, 3]` uint8, the decoded image at the end of each step.
        masked: `[S, P, G]` bool, tokens that are MASK at the start of the step and drawn in it.
        tokens: `[S, P, G]` int32 after each step; a token drawn again later at its likeliest class.
        confidence: `[S, P, G]` float32, probability of each token when it was predicted.
    """

    frame: Array
    masked: Array
    tokens: Array
    confidence: Array


def decoding_trace(
    params: dict[str, Params],
    h: Float[Array, " D"],
    before: Before,
    key: Key,
    *,
    learner: Learner,
    steps: int,
) -> DecodingTrace:
    """Decode `h` `[D]` with MaskGIT in ``steps`` >= 1 and record the tokens after each step.

    ``before`` led into `h`. Makes the same draws as :func:`imagination.decode` with the same key
    and the run's settings of the decoding. Decoding in s steps is not a prefix of decoding in S
    steps, so all steps are taken from one decoding.
    """
    model, variables = learner.model, {"params": params["world_model"]}
    features = model.apply(variables, h, before, method=WorldModel.prior_features)
    # Record the prediction of each of the S steps.
    predicted: list[Array] = []

    def probs_fn(tokens: Array | None) -> Array:
        log_probs = model.apply(variables, features, tokens, method=WorldModel.masked_prior)
        predicted.append(jnp.exp(log_probs))
        return predicted[-1]

    shape = (features.shape[-2], model.config.groups)
    options = {"steps": steps, "shape": shape, **learner.config.behavior.decoding}
    decoded = maskgit_decode(probs_fn, key, **options)
    tokens, sure = [decoded.z], [jnp.exp(decoded.log_prob)]
    # The newest prediction of each token while it was masked.
    newest = predicted[:1]
    for s in range(1, steps - 1):
        newest.append(jnp.where(decoded.masked[s][..., None], predicted[s], newest[-1]))
    # Backwards: a token masked in step s + 1 had another class before; show its most likely one.
    for s in range(steps - 1, 0, -1):
        again = decoded.masked[s]
        best = newest[s - 1]
        tokens.insert(0, jnp.where(again, jnp.argmax(best, -1), tokens[0]))
        sure.insert(0, jnp.where(again, best.max(-1), sure[0]))
    z = jnp.stack(tokens)
    state = State(z, jnp.broadcast_to(h, (steps, *h.shape)))
    frame = show(params, state, learner=learner).frame
    return DecodingTrace(frame, jnp.stack(decoded.masked), z, jnp.stack(sure))


def attention_weights(
    params: dict[str, Params], sequence: Batch, key: Key, *, learner: Learner
) -> Float32[Array, "blocks heads L keys"]:
    """How strongly each step of a real sequence attends to each step of its past.

    ``sequence`` is a :class:`Batch` without its leading B, with its carry; the sequence model must
    be the transformer. Returns `[blocks, heads, L, C + L]` float32; each row sums to 1.
    """
    found: list[Array] = []

    # The transformer's own methods are intercepted, so the modules need no switch for it.
    def tap(run: Any, args: tuple, kwargs: dict, context: nn.module.InterceptorContext) -> Any:
        result = run(*args, **kwargs)
        if isinstance(context.module, RelativeAttention) and context.method_name == "weights":
            found.append(result)
        return result

    with nn.intercept_methods(tap):
        learner.model.apply({"params": params["world_model"]}, sequence, key)
    return jnp.stack(found)


def by_distance(
    weights: Float32[np.ndarray, "*n L keys"], context: int
) -> Float32[np.ndarray, "*n L {context}+1"]:
    """`[..., L, C + L]` weights by distance: `[..., L, C + 1]`, the newest token first."""
    length = weights.shape[-2]
    key = context + np.arange(length)[:, None] - np.arange(context + 1)[None]
    return np.take_along_axis(
        weights, np.broadcast_to(key, (*weights.shape[:-2], *key.shape)), axis=-1
    )
