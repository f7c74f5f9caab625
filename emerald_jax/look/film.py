"""A dream beside reality, as a film or as one picture, from plain arrays.

Left what really happened, right what the model imagined, uncertain places tinted; underneath, the
predicted reward (with the real one where it is known) and the predicted probability to go on.

A dream of a loaded agent beside what really happened, ready to be drawn.

From a recorded stretch of the run, or from a fresh episode whose environment is stepped with the
very actions that were dreamt.

A film of one environment's first episode, written while it is played.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import imageio.v2 as imageio
import jax
import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image, ImageDraw, ImageFont

from emerald_jax.agent.agent import Agent, Dream
from emerald_jax.config import ConfigError
from emerald_jax.envs.base import EnvSpec, VectorEnv, VectorStep
from emerald_jax.envs.registry import make_vector_env
from emerald_jax.replay import ReplayError
from emerald_jax.run.pictures import ACCENT, BACKGROUND, FAINT, INK, enlarge, enlargement
from emerald_jax.run.recordings import Recordings

#: Endings a dream can be saved as.
ENDINGS = (".mp4", ".gif", ".png")
#: Sides of the frames in a film and in the one picture, in pixels at least.
FILM_PX, SHEET_PX = 224, 56
#: Columns of the one picture at most.
SHEET_COLUMNS = 14
#: A place of confidence 0 is covered by this share of the tint.
TINT_SHARE = 0.6
MARGIN, GAP, STRIP_HEIGHT, HEADER = 12, 8, 44, 20
#: Pixels of a strip's caption, which stands above it.
CAPTION = 16
#: Pixels of both strips with their captions.
STRIPS = 2 * (CAPTION + STRIP_HEIGHT + GAP)
#: What frames that never were are painted with.
UNKNOWN = 232
BLUE = (31, 95, 168)

#: What Pillow's default font is, with FreeType and without.
Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


@dataclass(frozen=True, kw_only=True)
class Film:
    """What is shown: N steps, of which the first ``context`` were really seen.

    Attributes:
        real: `[N, height, width, 3]` uint8.
        dream: the same shape, reconstructions up to ``context``.
        context: frames seen before the dream began, 1 to N - 1.
        known: frames of ``real`` that did happen; the others are not shown.
        reward: `[N]` predicted reward; NaN where there is none.
        real_reward: `[N]`; NaN where it is not known.
        cont: `[N]` predicted probability to go on; NaN where there is none.
        confidence: `[N, h, w]` in [0, 1], of each latent position.
        actions: what was done at each step, one word each, or empty.
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

    def __post_init__(self) -> None:
        n = len(self.real)
        if self.real.shape != self.dream.shape or self.real.dtype != np.uint8:
            raise ValueError(f"real {self.real.shape} and dream {self.dream.shape} differ")
        if not 1 <= self.context < n:
            raise ValueError(f"context {self.context} must lie between 1 and {n - 1}")
        for name in ("reward", "real_reward", "cont", "confidence"):
            if len(getattr(self, name)) != n:
                raise ValueError(f"{name} has {len(getattr(self, name))} steps, not {n}")


def tint(
    frame: UInt8[np.ndarray, "height width 3"], confidence: Float[np.ndarray, "h w"]
) -> UInt8[np.ndarray, "height width 3"]:
    """Cover the latent positions of a frame with orange, the more the less sure the model was.

    Args:
        frame: `[height, width, 3]` uint8.
        confidence: `[h, w]` in [0, 1]; h and w divide height and width.

    Returns:
        `[height, width, 3]` uint8.
    """
    height, width, _ = frame.shape
    rows, columns = confidence.shape
    share = TINT_SHARE * (1 - np.clip(confidence, 0, 1))
    share = share.repeat(-(-height // rows), axis=0)[:height]
    share = share.repeat(-(-width // columns), axis=1)[:, :width, None]
    mixed = frame * (1 - share) + np.array(ACCENT) * share
    return np.round(mixed).astype(np.uint8)


def film_frames(film: Film, *, tinted: bool = True) -> Iterator[np.ndarray]:
    """The pictures of a film, one a step, sides even as video codecs want them.

    Args:
        film: what to show.
        tinted: tint uncertain places.

    Yields:
        `[height, width, 3]` uint8.
    """
    height, width = film.real.shape[1:3]
    factor = enlargement(height, width, FILM_PX)
    height, width = height * factor, width * factor
    right = MARGIN + width + GAP
    size = (right + width + MARGIN, MARGIN + HEADER + height + STRIPS + MARGIN)
    size = tuple(side + side % 2 for side in size)
    font = ImageFont.load_default(12)
    for step in range(len(film.real)):
        canvas = Image.new("RGB", size, BACKGROUND)
        pen = ImageDraw.Draw(canvas)
        real = film.real[step] if step < film.known else np.full_like(film.real[0], UNKNOWN)
        dream = film.dream[step]
        if tinted and step >= film.context:
            dream = tint(enlarge(dream, factor), film.confidence[step])
        else:
            dream = enlarge(dream, factor)
        canvas.paste(Image.fromarray(enlarge(real, factor)), (MARGIN, MARGIN + HEADER))
        canvas.paste(Image.fromarray(dream), (right, MARGIN + HEADER))
        left_words, right_words = _headings(film, step)
        base = MARGIN + HEADER - 6
        pen.text((MARGIN, base), left_words, INK, font, anchor="ls")
        ink = ACCENT if step >= film.context else FAINT
        pen.text((right, base), right_words, ink, font, anchor="ls")
        top = MARGIN + HEADER + height + GAP + CAPTION
        box = (MARGIN, top, right + width, top + STRIP_HEIGHT)
        _draw_strips(pen, font, film, box, upto=step)
        yield np.asarray(canvas)


def film_sheet(film: Film, *, tinted: bool = True) -> UInt8[np.ndarray, "height width 3"]:
    """The whole film as one picture: frames in two rows, the strips underneath.

    Args:
        film: what to show; of a long one evenly spaced steps are taken.
        tinted: tint uncertain places.

    Returns:
        `[height, width, 3]` uint8.
    """
    steps = np.unique(np.linspace(0, len(film.real) - 1, SHEET_COLUMNS).round().astype(int))
    height, width = film.real.shape[1:3]
    factor = enlargement(height, width, SHEET_PX)
    height, width = height * factor, width * factor
    label = 56
    right = MARGIN + label + len(steps) * (width + 2)
    top = MARGIN + HEADER
    size = (right + MARGIN, top + 2 * (height + 2) + STRIPS + MARGIN)
    canvas = Image.new("RGB", size, BACKGROUND)
    pen, font = ImageDraw.Draw(canvas), ImageFont.load_default(12)
    for row, name in enumerate(("real", "dream")):
        y = top + row * (height + 2)
        pen.text((MARGIN, y + height // 2), name, INK, font, anchor="lm")
    for column, step in enumerate(steps):
        x = MARGIN + label + column * (width + 2)
        dreamt = step >= film.context
        offset = step - film.context + 1
        words = f"+{offset}" if dreamt else str(offset)
        pen.text((x + width // 2, top - 6), words, ACCENT if dreamt else FAINT, font, anchor="ms")
        real = film.real[step] if step < film.known else np.full_like(film.real[0], UNKNOWN)
        dream = enlarge(film.dream[step], factor)
        if tinted and dreamt:
            dream = tint(dream, film.confidence[step])
        canvas.paste(Image.fromarray(enlarge(real, factor)), (x, top))
        canvas.paste(Image.fromarray(dream), (x, top + height + 2))
    y = top + 2 * (height + 2) + GAP + CAPTION
    box = (MARGIN + label, y, right, y + STRIP_HEIGHT)
    _draw_strips(pen, font, film, box, upto=len(film.real) - 1)
    return np.asarray(canvas)


def save_film(film: Film, path: str | Path, *, fps: float = 8.0, tinted: bool = True) -> Path:
    """Write a film as .mp4 or .gif, or all of it as one .png; whole or not at all.

    Args:
        film: what to show.
        path: where to; the ending decides.
        fps: steps a second.
        tinted: tint uncertain places.

    Returns:
        ``path``.

    Raises:
        ValueError: on another ending.
    """
    path = Path(path)
    ending = path.suffix.lower()
    if ending not in ENDINGS:
        raise ValueError(f"{path} must end in {', '.join(ENDINGS)}")
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.stem}.{os.getpid()}{ending}")
    try:
        if ending == ".png":
            Image.fromarray(film_sheet(film, tinted=tinted)).save(draft)
        else:
            write_video(draft, film_frames(film, tinted=tinted), fps)
        os.replace(draft, path)
    finally:
        draft.unlink(missing_ok=True)
    return path


def write_video(path: Path, frames: Iterator[np.ndarray] | np.ndarray, fps: float) -> None:
    """Write `[height, width, 3]` uint8 frames as .mp4 (H.264) or endless .gif through imageio.

    Args:
        path: the ending decides; sides must be even for .mp4.
        frames: the pictures.
        fps: pictures a second.
    """
    if path.suffix.lower() == ".gif":
        options = {"duration": 1000 / fps, "loop": 0}
    else:
        options = {"fps": fps, "macro_block_size": 2, "quality": 8}
    with imageio.get_writer(path, **options) as writer:
        for frame in frames:
            writer.append_data(frame)


def _headings(film: Film, step: int) -> tuple[str, str]:
    """What stands over the two frames of a step."""
    action = f", {film.actions[step]}" if step < len(film.actions) and film.actions[step] else ""
    real = f"real{action}" if step < film.known else "real: not known"
    offset = step - film.context + 1
    if offset <= 0:
        return real, "reconstructed"
    over = (film.cont[film.context : step] < 0.5).any()
    return real, f"dream +{offset}{action}{': past its end' if over else ''}"


def _draw_strips(
    pen: ImageDraw.ImageDraw, font: Font, film: Film, box: tuple, *, upto: int
) -> None:
    """Predicted reward and, below it, predicted continue, up to a step.

    Args:
        pen: what draws.
        font: of the labels.
        film: what is drawn.
        box: left, top, right and bottom of the upper strip, in pixels.
        upto: the newest step.
    """
    left, top, right, bottom = box
    count = len(film.real)
    known = np.concatenate([film.reward, film.real_reward])
    known = np.abs(known[np.isfinite(known)])
    most = max(float(known.max()) if known.size else 0.0, 0.1)

    def x(step: float) -> float:
        return left + (step + 0.5) * (right - left) / count

    middle, half = (top + bottom) / 2, (bottom - top) / 2 - 4
    begin = left + film.context * (right - left) / count
    lower = bottom + GAP + CAPTION
    for y0, y1 in ((top, bottom), (lower, lower + bottom - top)):
        pen.rectangle((left, y0, right, y1), outline=(222, 222, 218), fill=(255, 255, 255))
        pen.line((begin, y0, begin, y1), fill=ACCENT)
    pen.line((left, middle, right, middle), fill=(222, 222, 218))
    bar = max(1.0, 0.3 * (right - left) / count)
    floor = lower + (bottom - top) - 4
    points = []
    for step in range(upto + 1):
        if np.isfinite(film.reward[step]):
            y = middle - half * film.reward[step] / most
            pen.rectangle((x(step) - bar, min(y, middle), x(step) + bar, max(y, middle)), ACCENT)
        if np.isfinite(film.real_reward[step]):
            y = middle - half * film.real_reward[step] / most
            pen.ellipse((x(step) - 2, y - 2, x(step) + 2, y + 2), fill=BLUE)
        if np.isfinite(film.cont[step]):
            points.append((x(step), floor - (bottom - top - 8) * film.cont[step]))
    if len(points) > 1:
        pen.line(points, fill=ACCENT, width=2)
    scale = f", full scale {most:.2g}" if known.size else ""
    words = f"reward: predicted (bars), real (dots){scale}"
    pen.text((left, top - 5), words, FAINT, font, anchor="ls")
    pen.text((left, lower - 5), "predicted chance to go on, 0 to 1", FAINT, font, anchor="ls")


Actions = Literal["recorded", "policy", "random"] | tuple[int, ...]

#: Added to a seed, so that these episodes are not those of training or evaluation.
_SEED_OFFSET = 2_000_003


@dataclass(frozen=True, kw_only=True)
class FilmPlan:
    """What to film.

    Attributes:
        source: ``real`` begins with recorded frames, ``reset`` with a fresh episode.
        actions: who steers the dream: the ``policy``, ``random`` ones, given ones (then they set
            the horizon), or, from recorded frames, those ``recorded``.
        horizon: imagined steps.
        context: frames seen before the dream begins; a short episode gives fewer.
        seed: decides the stretch or the episode, and the dream.
        steps: decoding steps; None takes the run's.
        temperature: of the tokens.
    """

    source: Literal["real", "reset"] = "real"
    actions: Actions = "policy"
    horizon: int = 50
    context: int = 4
    seed: int = 0
    steps: int | None = None
    temperature: float = 1.0


class _Reality:
    """Frames, actions and rewards as they really came, growing."""

    def __init__(self) -> None:
        self.images: list[np.ndarray] = []
        self.actions: list[int] = []
        self.rewards: list[float] = []

    def add(self, image: np.ndarray, action: int, reward: float) -> None:
        self.images.append(image.copy())
        self.actions.append(int(action))
        self.rewards.append(float(reward))


def film_run(agent: Agent, run: str | Path, plan: FilmPlan) -> Film:
    """Make the film.

    Args:
        agent: from :func:`loaded.load`.
        run: its run directory, where recorded frames lie.
        plan: what to film.

    Returns:
        :class:`Film`.

    Raises:
        ReplayError: recorded frames are asked for and there are none.
        EnvError: the environment cannot be made here.
    """
    if plan.source == "real":
        return _film_recorded(agent, Recordings(run), plan)
    envs = replace(agent.config.envs, count=1, workers="inline")
    env = make_vector_env(agent.config.env, envs, seed=plan.seed + _SEED_OFFSET)
    try:
        return _film_reset(agent, env, plan)
    finally:
        env.close()


def _film_recorded(agent: Agent, recordings: Recordings, plan: FilmPlan) -> Film:
    if not len(recordings):
        raise ReplayError("the run holds no recorded frames to begin with: use --from reset")
    rng = np.random.default_rng(plan.seed)
    clip = recordings.draw(plan.context + plan.horizon, rng)
    context = min(plan.context, len(clip) - 1)
    if context < 1:
        raise ReplayError("no recorded episode is two frames long: use --from reset")
    horizon, actions = plan.horizon, plan.actions
    if actions == "recorded":
        horizon = len(clip) - context
        actions = tuple(clip.action[context:].tolist())
    reality = _Reality()
    for t in range(len(clip) if plan.actions == "recorded" else context):
        reality.add(clip.image[t], clip.action[t], clip.reward[t])
    made = _imagine(agent, reality, context, replace(plan, horizon=horizon, actions=actions), rng)
    return _as_film(agent.spec, reality, made, context)


def _film_reset(agent: Agent, env: VectorEnv, plan: FilmPlan) -> Film:
    reality, key = _Reality(), jax.random.key(plan.seed + _SEED_OFFSET)
    record, state = env.reset(), agent.initial(1)
    reality.add(record.image[0], -1, 0.0)
    for t in range(plan.context - 1):
        action, state = agent.act(record.image, state, jax.random.fold_in(key, t))
        record = env.step(action)
        reality.add(record.image[0], action[0], record.reward[0])
        if record.is_last[0]:
            break
    context = len(reality.images)
    made = _imagine(agent, reality, context, plan, np.random.default_rng(plan.seed))
    for action in made.actions:
        if record.is_last[0]:
            break
        record = env.step(np.array([action], np.int32))
        reality.add(record.image[0], action, record.reward[0])
    return _as_film(agent.spec, reality, made, context)


def _imagine(
    agent: Agent,
    reality: _Reality,
    context: int,
    plan: FilmPlan,
    rng: np.random.Generator,
) -> Dream:
    future = None
    if plan.actions == "random":
        future = rng.integers(agent.spec.num_actions, size=plan.horizon)
    elif not isinstance(plan.actions, str):
        future = np.array(plan.actions)
    return agent.imagine(
        np.stack(reality.images[:context]),
        np.array(reality.actions[:context]),
        key=jax.random.key(plan.seed),
        horizon=plan.horizon if future is None else len(future),
        future=future,
        steps=plan.steps,
        temperature=plan.temperature,
    )


def _as_film(spec: EnvSpec, reality: _Reality, made: Dream, context: int) -> Film:
    total = context + len(made.frames)
    known = len(reality.images)
    rest = total - known
    unseen = np.full(context, np.nan)
    actions = (*reality.actions[:context], *made.actions.tolist())
    confidence = made.confidence.mean(-1)
    return Film(
        real=np.concatenate(
            [np.stack(reality.images), np.zeros((rest, *made.frames.shape[1:]), np.uint8)]
        ),
        dream=np.concatenate([made.seen, made.frames]),
        context=context,
        known=known,
        reward=np.concatenate([unseen, made.rewards]),
        real_reward=np.array(reality.rewards + [np.nan] * rest),
        cont=np.concatenate([unseen, made.continues]),
        confidence=np.concatenate([np.ones((context, *confidence.shape[1:])), confidence]),
        actions=tuple(action_name(spec, a) for a in actions),
    )


def action_name(spec: EnvSpec, action: int) -> str:
    """What an action is called; empty for -1, no action."""
    if action < 0:
        return ""
    return spec.action_names[action].replace("_", " ") if spec.action_names else f"action {action}"


def read_actions(path: str | Path, spec: EnvSpec) -> tuple[int, ...]:
    """Actions from a file: a JSON list, or one a line; numbers or the environment's names.

    Args:
        path: the file.
        spec: of the environment they are meant for.

    Raises:
        ConfigError: in one line, when it cannot be read or holds what is no action.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is no text"
        raise ConfigError(f"the actions in {path} cannot be read: {reason}") from error
    if text.lstrip().startswith("["):
        try:
            words = json.loads(text)
        except ValueError as error:
            raise ConfigError(f"{path} is no JSON list of actions: {error}") from error
    else:
        words = [line.strip() for line in text.splitlines() if line.strip()]
    if not words:
        raise ConfigError(f"{path} holds no actions")
    return tuple(_read_action(word, i, path, spec) for i, word in enumerate(words, 1))


def _read_action(word: object, place: int, path: Path, spec: EnvSpec) -> int:
    if isinstance(word, str) and word in spec.action_names:
        return spec.action_names.index(word)
    number = word if isinstance(word, int) and not isinstance(word, bool) else None
    if isinstance(word, str) and word.lstrip("-").isdecimal():
        number = int(word)
    if number is None or not 0 <= number < spec.num_actions:
        names = f", or a name such as {spec.action_names[0]}" if spec.action_names else ""
        raise ConfigError(
            f"{path}: action {place} is {word!r}; {spec.name} takes 0 … "
            f"{spec.num_actions - 1}{names}"
        )
    return number


#: Frames per second, and the height wanted in pixels; both are for the eye alone.
FPS, HEIGHT = 15, 256


class EpisodeFilm:
    """Shown every vector step, it keeps the first episode of environment 0 as an mp4.

    Pixels are repeated, not blended, so that what is seen is what the agent saw. A context manager:
    the file is whole when it is left.
    """

    def __init__(self, path: Path) -> None:
        """Nothing is written before the first frame.

        Args:
            path: the file, ending in ``.mp4``.
        """
        self._path = path
        self._writer: Any = None
        self._over = False

    def __enter__(self) -> EpisodeFilm:
        return self

    def __exit__(self, *exc_info: object) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def __call__(self, record: VectorStep) -> None:
        """Film a vector step."""
        if self._over:
            return
        if self._writer is None:
            self._writer = imageio.get_writer(self._path, fps=FPS, macro_block_size=2)
        image = record.image[0]
        self._writer.append_data(enlarge(image, max(1, round(HEIGHT / image.shape[0]))))
        self._over = bool(record.is_last[0])
