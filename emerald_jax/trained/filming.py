"""A dream of a loaded agent beside what really happened, ready to be drawn.

From a recorded stretch of the run, or from a fresh episode whose environment is stepped with the
very actions that were dreamt.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import jax
import numpy as np

from emerald_jax.config import ConfigError
from emerald_jax.envs.base import EnvSpec, VectorEnv
from emerald_jax.envs.registry import make_vector_env
from emerald_jax.replay import ReplayError
from emerald_jax.trained.loaded import Dream, LoadedAgent
from emerald_jax.trained.recordings import Recordings
from emerald_jax.viz.dream import Film

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


def film_run(agent: LoadedAgent, run: str | Path, plan: FilmPlan) -> Film:
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


def _film_recorded(agent: LoadedAgent, recordings: Recordings, plan: FilmPlan) -> Film:
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


def _film_reset(agent: LoadedAgent, env: VectorEnv, plan: FilmPlan) -> Film:
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
    agent: LoadedAgent,
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
