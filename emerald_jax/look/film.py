"""Films of episodes, and of dreams: real frames on the left, imagined ones on the right.

Uncertain latent positions are tinted. Below the frames stand the predicted reward (with the real
one where it is known) and the predicted probability that the episode continues.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import imageio.v2 as imageio
import numpy as np
from jaxtyping import UInt8

from emerald_jax.actions import absent
from emerald_jax.agent import Agent, Dream
from emerald_jax.config import ConfigError
from emerald_jax.envs.base import EnvSpec, VectorEnv, VectorStep
from emerald_jax.envs.registry import make_vector_env
from emerald_jax.replay import ReplayError
from emerald_jax.run import pictures
from emerald_jax.run.pictures import Canvas, enlarge, enlargement, tint
from emerald_jax.run.recordings import Recordings
from emerald_jax.types import key_of

#: File endings of a dream film.
ENDINGS = (".mp4", ".gif", ".png")
#: Minimum side in pixels of a frame in a film, and in its single picture.
FILM_PX, SHEET_PX = 224, 56
#: Maximum number of columns in the single picture, and the width of its row labels.
SHEET_COLUMNS, ROW_LABEL = 14, 56
MARGIN, GAP, PLOT_HEIGHT, HEADER = 12, 8, 44, 20
#: Pixels of the caption above a plot, and of a plot with its caption.
CAPTION = 16
PLOT = CAPTION + PLOT_HEIGHT + GAP
#: Colours of the entries of an action, which repeat.
CURVES = (pictures.ACCENT, pictures.BLUE, pictures.INK, pictures.FAINT)
#: Grey level of frames that do not exist.
UNKNOWN = 232
#: Frames per second and approximate height in pixels of an episode film.
EPISODE_FPS, EPISODE_PX = 15, 256


@dataclass(frozen=True, kw_only=True)
class Film:
    """N steps to show, of which the model read the first ``context`` from real frames.

    Attributes:
        real: `[N, height, width, 3]` uint8.
        dream: the same shape, reconstructions up to ``context``.
        context: frames read before the dream begins, 1 to N - 1.
        known: number of frames of ``real`` that exist; the others are not shown.
        reward: `[N]` predicted reward, NaN where there is no prediction.
        real_reward: `[N]`, NaN where it is not known.
        cont: `[N]` predicted probability that the episode continues, NaN where there is none.
        confidence: `[N, h, w]` in [0, 1], of each latent position.
        actions: the name of the action that led to each step, or empty.
        curves: `[N, A]` in [-1, 1], the entries of the action that led to each step, NaN where
            there was none; or None for discrete actions. ``entries`` are their names.
    """

    real: np.ndarray
    dream: np.ndarray
    context: int
    known: int
    reward: np.ndarray
    real_reward: np.ndarray
    cont: np.ndarray
    confidence: np.ndarray
    actions: tuple[str, ...] = ()
    curves: np.ndarray | None = None
    entries: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        n = len(self.real)
        if self.real.shape != self.dream.shape or self.real.dtype != np.uint8:
            raise ValueError(f"real {self.real.shape} and dream {self.dream.shape} differ")
        if not 1 <= self.context < n:
            raise ValueError(f"context {self.context} must lie between 1 and {n - 1}")
        for name in ("reward", "real_reward", "cont", "confidence"):
            if len(getattr(self, name)) != n:
                raise ValueError(f"{name} has {len(getattr(self, name))} steps, not {n}")


def film_frames(film: Film, *, tinted: bool = True) -> Iterator[np.ndarray]:
    """Draw one picture `[height, width, 3]` uint8 per step, with even sides for video codecs."""
    factor, height, width = _enlarged(film, FILM_PX)
    right, top = MARGIN + width + GAP, MARGIN + HEADER
    size = (right + width + MARGIN, top + height + _plots(film) + MARGIN)
    for step in range(len(film.real)):
        canvas = Canvas(*(side + side % 2 for side in size))
        real, dream = _frames_of(film, step, factor, tinted)
        canvas.paste(real, MARGIN, top)
        canvas.paste(dream, right, top)
        above_real, above_dream = _headings(film, step)
        canvas.write(above_real, MARGIN, top - 6, room=width)
        colour = pictures.ACCENT if step >= film.context else pictures.FAINT
        canvas.write(above_dream, right, top - 6, colour, room=width)
        _draw_plots(canvas, film, MARGIN, right + width, top + height + GAP, upto=step)
        yield canvas.pixels()


def film_sheet(film: Film, *, tinted: bool = True) -> UInt8[np.ndarray, "height width 3"]:
    """Draw a film, at evenly spaced steps, as one picture: frames in two rows, the plots below."""
    steps = np.unique(np.linspace(0, len(film.real) - 1, SHEET_COLUMNS).round().astype(int))
    factor, height, width = _enlarged(film, SHEET_PX)
    left, top = MARGIN + ROW_LABEL, MARGIN + HEADER
    below = top + height + 2
    right = left + max(len(steps) * (width + 2), *map(Canvas.width_of, _captions(film)))
    canvas = Canvas(right + MARGIN, below + height + 2 + _plots(film) + MARGIN)
    for name, y in (("real", top), ("dream", below)):
        canvas.write(name, MARGIN, y + height // 2, anchor="lm")
    for column, step in enumerate(steps.tolist()):
        x = left + column * (width + 2)
        offset = step - film.context + 1
        label = f"+{offset}" if offset > 0 else str(offset)
        colour = pictures.ACCENT if offset > 0 else pictures.FAINT
        canvas.write(label, x + width // 2, top - 6, colour, anchor="ms")
        real, dream = _frames_of(film, step, factor, tinted)
        canvas.paste(real, x, top)
        canvas.paste(dream, x, below)
    _draw_plots(canvas, film, left, right, below + height + 2 + GAP, upto=len(film.real) - 1)
    return canvas.pixels()


def _enlarged(film: Film, least: int) -> tuple[int, int, int]:
    """Factor, height and width of frames of at least so many pixels."""
    height, width = film.real.shape[1:3]
    factor = enlargement(height, width, least)
    return factor, height * factor, width * factor


def save_film(film: Film, path: str | Path, *, fps: float = 8.0, tinted: bool = True) -> Path:
    """Write a film as .mp4 or .gif, or as one picture in .png; a failure leaves the old file.

    ``fps`` are steps per second; uncertain positions are ``tinted``. ValueError on another ending.
    """
    path = Path(path)
    ending = path.suffix.lower()
    if ending not in ENDINGS:
        raise ValueError(f"{path} must end in {', '.join(ENDINGS)}")
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.stem}.{os.getpid()}{ending}")
    try:
        if ending == ".png":
            imageio.imwrite(draft, film_sheet(film, tinted=tinted))
        else:
            with open_video(draft, fps) as writer:
                for frame in film_frames(film, tinted=tinted):
                    writer.append_data(frame)
        os.replace(draft, path)
    finally:
        draft.unlink(missing_ok=True)
    return path


def open_video(path: Path, fps: float) -> Any:
    """A writer of an .mp4 film (H.264, sides must be even) or of an endlessly repeated .gif."""
    if path.suffix.lower() == ".gif":
        return imageio.get_writer(path, duration=1000 / fps, loop=0)
    return imageio.get_writer(path, fps=fps, macro_block_size=2, quality=8)


class EpisodeFilm(ExitStack):
    """Write the first episode of environment 0 as .mp4; call it with every vector step.

    Pixels are repeated, not smoothed, so the film shows what the agent saw. A context manager: the
    file is complete when it exits.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._path, self._writer, self._over = path, None, False

    def __call__(self, record: VectorStep) -> None:
        """Add the image of environment 0, unless its first episode has ended."""
        if self._over:
            return
        if self._writer is None:
            self._writer = self.enter_context(open_video(self._path, EPISODE_FPS))
        image = record.image[0]
        self._writer.append_data(enlarge(image, max(1, round(EPISODE_PX / image.shape[0]))))
        self._over = bool(record.is_last[0])


def _frames_of(film: Film, step: int, factor: int, tinted: bool) -> tuple[np.ndarray, np.ndarray]:
    """The real and the dreamt frame of a step as they are drawn."""
    real = film.real[step] if step < film.known else np.full_like(film.real[0], UNKNOWN)
    dream = enlarge(film.dream[step], factor)
    if tinted and step >= film.context:
        dream = tint(dream, film.confidence[step])
    return enlarge(real, factor), dream


def _headings(film: Film, step: int) -> tuple[str, str]:
    """The lines above the real and the dreamt frame."""
    action = f", {film.actions[step]}" if step < len(film.actions) and film.actions[step] else ""
    real = f"real{action}" if step < film.known else "real: not known"
    offset = step - film.context + 1
    if offset <= 0:
        return real, "reconstructed"
    over = (film.cont[film.context : step] < 0.5).any()
    return real, f"dream +{offset}{' (past its end)' if over else ''}{action}"


def _full_scale(film: Film) -> float:
    """The largest absolute reward of a film, at least 0.1."""
    return float(np.nanmax(np.abs([*film.reward, *film.real_reward, 0.1])))


def _captions(film: Film) -> tuple[str, ...]:
    rewards = f"reward: predicted (bars), real (dots), full scale {_full_scale(film):.2g}"
    captions = (rewards, "predicted probability to continue, 0 to 1")
    if film.curves is None:
        return captions
    more = ", …" if len(film.entries) > len(CURVES) else ""
    return (*captions, f"action: {', '.join(film.entries[: len(CURVES)])}{more}")


def _plots(film: Film) -> int:
    """Height of all plots in pixels."""
    return len(_captions(film)) * PLOT


def _draw_plots(canvas: Canvas, film: Film, left: int, right: int, top: int, *, upto: int) -> None:
    """Draw the rewards, the predicted probability to continue and the actions, up to a step.

    ``top`` is that of the upper plot's caption, in pixels.
    """
    pen, wide = canvas.pen, (right - left) / len(film.real)
    begin, upper = left + film.context * wide, top + CAPTION
    lower = upper + PLOT
    for i, caption in enumerate(_captions(film)):
        y = upper + i * PLOT
        pen.rectangle((left, y, right, y + PLOT_HEIGHT), outline=pictures.LINE, fill=pictures.PAPER)
        pen.line((begin, y, begin, y + PLOT_HEIGHT), fill=pictures.ACCENT)
        canvas.write(caption, left, y - 5, pictures.FAINT)
    zero = upper + PLOT_HEIGHT / 2
    pen.line((left, zero, right, zero), fill=pictures.LINE)
    scale = (PLOT_HEIGHT / 2 - 4) / _full_scale(film)
    bar, points = max(1.0, 0.3 * wide), []
    for step in range(upto + 1):
        x = left + (step + 0.5) * wide
        if np.isfinite(film.reward[step]):
            y = zero - scale * film.reward[step]
            pen.rectangle((x - bar, min(y, zero), x + bar, max(y, zero)), pictures.ACCENT)
        if np.isfinite(film.real_reward[step]):
            y = zero - scale * film.real_reward[step]
            pen.ellipse((x - 2, y - 2, x + 2, y + 2), fill=pictures.BLUE)
        if np.isfinite(film.cont[step]):
            points.append((x, lower + PLOT_HEIGHT - 4 - (PLOT_HEIGHT - 8) * film.cont[step]))
    if len(points) > 1:
        pen.line(points, fill=pictures.ACCENT, width=2)
    if film.curves is not None:
        middle, half = lower + PLOT + PLOT_HEIGHT / 2, PLOT_HEIGHT / 2 - 4
        for entry, values in enumerate(film.curves[: upto + 1].T):
            xs = left + (np.arange(len(values)) + 0.5) * wide
            known = np.isfinite(values)
            points = [*zip(xs[known], middle - half * values[known], strict=True)]
            if len(points) > 1:
                pen.line(points, fill=CURVES[entry % len(CURVES)], width=2)


Actions = Literal["recorded", "policy", "random"] | tuple[int | tuple[float, ...], ...]

#: Added to a seed, so that these episodes differ from those of training and evaluation.
_SEED_OFFSET = 2_000_003


@dataclass(frozen=True, kw_only=True)
class FilmPlan:
    """What to film.

    Attributes:
        source: ``real`` begins with recorded frames, ``reset`` with a new episode.
        actions: of the dream: those of the ``policy``, ``random`` ones, given ones (which also set
            the horizon), or, from recorded frames, the ``recorded`` ones.
        horizon: imagined steps.
        context: frames read before the dream begins; fewer in a short episode.
        seed: decides the recorded clip or the episode, and the dream.
        steps: decoding steps; None uses the run's setting.
        temperature: of the tokens.
    """

    source: Literal["real", "reset"] = "real"
    actions: Actions = "policy"
    horizon: int = 50
    context: int = 4
    seed: int = 0
    steps: int | None = None
    temperature: float = 1.0


def film_run(agent: Agent, run: str | Path, plan: FilmPlan) -> Film:
    """Let an agent dream, and collect the dream and the real frames next to it.

    ``run`` is its directory, which holds the recorded frames. A dream from a new episode is
    compared with the environment under the same actions. ReplayError: recorded frames are requested
    and there are none. EnvError: the environment cannot be made on this machine.
    """
    if plan.source == "real":
        return _film_recorded(agent, Recordings(run), plan)
    envs = replace(agent.config.envs, count=1, workers="inline")
    seed = plan.seed + _SEED_OFFSET
    with closing(make_vector_env(agent.config.env, envs, seed=seed)) as env:
        return _film_reset(agent, env, plan)


#: Real frames `[K, …]` with the actions `[K]` and the rewards `[K]` that led to them.
_Real = tuple[np.ndarray, np.ndarray, np.ndarray]


def _film_recorded(agent: Agent, recordings: Recordings, plan: FilmPlan) -> Film:
    if not len(recordings):
        raise ReplayError("the run holds no recorded frames to begin with: use --from reset")
    rng = np.random.default_rng(plan.seed)
    clip = recordings.draw(plan.context + plan.horizon, rng)
    context = min(plan.context, len(clip) - 1)
    if context < 1:
        raise ReplayError("no recorded episode is two frames long: use --from reset")
    known = context
    if plan.actions == "recorded":
        taken = [a if isinstance(a, int) else tuple(a) for a in clip.action[context:].tolist()]
        known, plan = len(clip), replace(plan, actions=tuple(taken))
    real = (clip.image[:known], clip.action[:known], clip.reward[:known])
    return _as_film(agent.spec, real, _imagine(agent, real, context, plan, rng), context)


def _film_reset(agent: Agent, env: VectorEnv, plan: FilmPlan) -> Film:
    player = agent.player(1, key_of(plan.seed + _SEED_OFFSET))
    records = [env.reset()]
    while len(records) < plan.context and not records[-1].is_last[0]:
        records.append(env.step(player(records[-1])))
    context, rng = len(records), np.random.default_rng(plan.seed)
    made = _imagine(agent, _real_of(records), context, plan, rng)
    for action in made.actions:
        if records[-1].is_last[0]:
            break
        records.append(env.step(action[None]))
    return _as_film(agent.spec, _real_of(records), made, context)


def _real_of(records: list[VectorStep]) -> _Real:
    """The columns of environment 0."""
    names = ("image", "action", "reward")
    return tuple(np.stack([getattr(record, name)[0] for record in records]) for name in names)


def _imagine(
    agent: Agent, real: _Real, context: int, plan: FilmPlan, rng: np.random.Generator
) -> Dream:
    future = None
    if plan.actions == "random":
        future = agent.spec.actions.sample(rng, plan.horizon, dtype=np.int64)
    elif not isinstance(plan.actions, str):
        future = np.array(plan.actions)
    horizon = plan.horizon if future is None else len(future)
    options = dict(future=future, steps=plan.steps, temperature=plan.temperature)
    past = (real[0][:context], real[1][:context])
    return agent.imagine(*past, key=key_of(plan.seed), horizon=horizon, **options)


def _as_film(spec: EnvSpec, real: _Real, made: Dream, context: int) -> Film:
    images, actions, rewards = real
    missing = context + len(made.frames) - len(images)
    unseen = np.full(context, np.nan)
    confidence = made.confidence.mean(-1)
    taken = np.concatenate([actions[:context], made.actions])
    curves = None if spec.actions.discrete else spec.actions.scaled(taken)
    return Film(
        real=np.concatenate([images, np.zeros((missing, *images.shape[1:]), np.uint8)]),
        dream=np.concatenate([made.seen, made.frames]),
        context=context,
        known=len(images),
        reward=np.concatenate([unseen, made.rewards]),
        real_reward=np.concatenate([rewards, np.full(missing, np.nan)]),
        cont=np.concatenate([unseen, made.continues]),
        confidence=np.concatenate([np.ones((context, *confidence.shape[1:])), confidence]),
        actions=tuple(action_name(spec, a) for a in taken),
        curves=curves,
        entries=() if curves is None else entry_names(spec),
    )


def action_name(spec: EnvSpec, action: int | np.integer | np.ndarray) -> str:
    """The readable name of an action, or the entries of a vector; empty for no action."""
    if absent(np.asarray(action)):
        return ""
    if spec.actions.discrete:
        names = spec.action_names
        return names[action].replace("_", " ") if names else f"action {action}"
    parts = zip(entry_names(spec), spec.action_sizes, action, strict=True)
    return ", ".join(f"{name} {x:.0f}" if size else f"{name} {x:+.2f}" for name, size, x in parts)


def entry_names(spec: EnvSpec) -> tuple[str, ...]:
    """The readable names of the entries of an action that is a vector."""
    names = spec.action_names or [f"entry {i}" for i in range(1, len(spec.action_sizes) + 1)]
    return tuple(name.replace("_", " ") for name in names)


def read_actions(path: str | Path, spec: EnvSpec) -> tuple[int | tuple[float, ...], ...]:
    """Read actions from a JSON list or a file with one per line, as numbers or names.

    A vector is a list, or a line, of numbers.

    Raises ConfigError where the file cannot be read, or holds something that is not an action.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        entries = json.loads(text) if text.lstrip().startswith("[") else lines
    except json.JSONDecodeError as error:
        raise ConfigError(f"{path} is no JSON list of actions: {error}") from error
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is no text"
        raise ConfigError(f"the actions in {path} cannot be read: {reason}") from error
    if not entries:
        raise ConfigError(f"{path} holds no actions")
    if not spec.actions.discrete:
        return tuple(_vector(f"{path}: action {i}", x, spec) for i, x in enumerate(entries, 1))
    numbers = {str(i): i for i in range(spec.num_actions)}
    choices = numbers | {name: i for i, name in enumerate(spec.action_names)}
    for place, entry in enumerate(entries, 1):
        if isinstance(entry, bool) or str(entry) not in choices:
            names = f", or a name such as {spec.action_names[0]}" if spec.action_names else ""
            known = f"{spec.name} takes 0 … {spec.num_actions - 1}{names}"
            raise ConfigError(f"{path}: action {place} is {entry!r}; {known}")
    return tuple(choices[str(entry)] for entry in entries)


def _vector(what: str, entry: Any, spec: EnvSpec) -> tuple[float, ...]:
    """A line or a list of numbers as an action; ConfigError, about ``what``, where it is none."""
    space = spec.actions
    try:
        values = entry.replace(",", " ").split() if isinstance(entry, str) else entry
        action = space.checked(np.array([float(x) for x in values]))
    except (TypeError, ValueError):
        action = space.none()
    if space.wrong(action):
        raise ConfigError(f"{what} is {entry!r}; {spec.name} takes {space.valid}")
    return tuple(action.tolist())
