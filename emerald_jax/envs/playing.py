"""Play vector environments: complete episodes, random actions, and a check of every rule.

Every environment plays the same number of episodes, decided before the first step. Stopping after
a number of steps, or after the first N episodes to end, would count short episodes too often.
:func:`check_env` lists the rules of ``base.py`` that an environment breaks.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import json
import logging
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from emerald_jax.actions import ActionSpace
from emerald_jax.config import EnvsConfig
from emerald_jax.envs.base import BOTH_ENDS, EnvError, EnvSpec, Episode, VectorEnv, VectorStep
from emerald_jax.envs.registry import make_vector_env, make_vector_env_of

if TYPE_CHECKING:
    from emerald_jax.envs.workers import EnvFactory

_LOG = logging.getLogger(__name__)

#: Newest records -> actions `[E]` or `[E, A]`.
Policy = Callable[[VectorStep], np.ndarray]
Watcher = Callable[[VectorStep], None]
#: Seeds that count up from here are far from those of training.
FAR = 1_000_003
#: Steps after which an evaluation cuts an episode; an Atari game has at most 27,000.
MAX_STEPS = 30_000
#: Steps of one episode after which an evaluation mentions that limit.
_LONG = 2_000
#: A check plays two environments, with episodes short enough that many end.
SHORT = EnvsConfig(count=2, time_limit=25)
_DARK = 32
_STILL = "the image never changes"
#: Steps to wait for a game that shows a still picture before it begins, or for an episode's end.
_PATIENCE, _MOST, _SECONDS = 500, 1000, 20.0


def play_episodes(
    env: VectorEnv,
    episodes: int,
    policy: Policy,
    watch: Watcher | None = None,
    *,
    max_steps: int | None = None,
) -> Iterator[Episode]:
    """Play complete episodes; the environments' shares differ by at most one episode.

    ``env`` is reset first and left open; ``watch`` is called with every vector step, the reset
    included. An episode that a fault cut (see ``host.py``) is yielded too, and another is played
    for it. An episode that does not end within ``max_steps`` (None: :data:`MAX_STEPS`, or twice a
    longer time limit) is cut there and counts; its environment, which cannot begin another one
    alone, plays no more. This is logged.
    """
    limit = max_steps or max(MAX_STEPS, 2 * env.spec.time_limit)
    record, left, patient = env.reset(), share_out(episodes, env.num_envs), True
    if watch:
        watch(record)
    while left.any():
        record = env.step(policy(record))
        if watch:
            watch(record)
        for episode in record.episodes:
            if left[episode.env] > 0:
                left[episode.env] -= is_whole(episode)
                yield episode
        if patient and not env.spec.time_limit and env.length.max() >= min(_LONG, limit):
            patient = False
            _LOG.warning("%s", endless_notice(env.spec, limit))
        for index in np.flatnonzero((env.length >= limit) & ~record.is_last & (left > 0)).tolist():
            _LOG.warning(
                "%s: environment %d: no end after %d steps: the episode is cut and counts",
                *(env.spec.name, index, limit),
            )
            left[index] = 0
            sums = {"score": float(env.score[index]), "length": int(env.length[index])}
            yield Episode(env=index, **sums, terminal=False, extra={"capped": limit})


def endless_notice(spec: EnvSpec, max_steps: int | None = None) -> str:
    """A line about an environment without a time limit; empty for one that has a limit."""
    steps = f"{max_steps or MAX_STEPS:,} steps (the setting envs.time_limit gives it one)"
    notice = f"{spec.name} has no time limit: evaluation cuts an episode after {steps}"
    return "" if spec.time_limit else notice


def share_out(episodes: int, count: int) -> np.ndarray:
    """Episodes of each of ``count`` environments, `[count]`; they differ by one at most."""
    return episodes // count + (np.arange(count) < episodes % count)


def is_whole(episode: Episode) -> bool:
    """Whether an episode reached its own end or limit, so that its score counts."""
    return not episode.fault


def random_policy(actions: ActionSpace | int, count: int, seed: int) -> Policy:
    """Uniformly random ``actions``, or so many discrete ones, whatever the records."""
    rng, space = np.random.default_rng(seed), ActionSpace.of(actions)
    return lambda record: space.sample(rng, count)


def play_randomly(
    name: str, envs: EnvsConfig, episodes: int, seed: int = 0, *, max_steps: int | None = None
) -> tuple[EnvSpec, tuple[Episode, ...]]:
    """The spec of an environment, and episodes of random play; see :func:`play_episodes`."""
    with contextlib.closing(make_vector_env(name, envs, seed=seed + FAR)) as env:
        policy = random_policy(env.spec.actions, env.num_envs, seed)
        return env.spec, tuple(play_episodes(env, episodes, policy, max_steps=max_steps))


def check_env(
    env: str | EnvFactory | VectorEnv, envs: EnvsConfig = SHORT, *, steps: int = 100, seed: int = 0
) -> tuple[str, ...]:
    """Play an environment at random; returns one line per broken rule, none if it is correct.

    Checked are: the spec; the shape and type of every record; finite numbers; that the environment
    does not raise, hang or die; where episodes begin and end, and their scores and lengths; a reset
    in the middle of an episode; and that ``seed`` decides everything. A host environment is played
    twice, as ``envs.workers`` chooses and in this process; both runs must agree. ``env`` is a name,
    a factory of a Gymnasium environment, or a vector environment, which is played only once.
    """
    if hasattr(env, "step_async"):
        return tuple(dict.fromkeys(_play(env, steps, seed)[1]))
    findings, runs = [], []
    for settings in (envs, dataclasses.replace(envs, workers="inline")):
        try:
            with contextlib.closing(_make(env, settings, seed)) as made:
                records, found = _play(made, steps, seed)
                findings += found
                runs.append(records)
                findings += _check_state(made, seed)
            if _STILL in findings and _moves(env, settings, seed):
                findings.remove(_STILL)
        except EnvError as error:
            findings.append(f"it fails: {error}")
            break
    if len(runs) == 2 and not findings:
        findings += _compare(*runs, what=f"two runs with seed {seed}")
    return tuple(dict.fromkeys(findings))


def remark(env: str | EnvFactory, envs: EnvsConfig = SHORT, *, seed: int = 0) -> str:
    """A line about an environment that ends episodes terminated and truncated at once, or empty.

    It breaks no rule: ``envs.both_ends`` decides how such episodes are stored. One environment
    plays at random for at most 1000 steps or 20 seconds, without the limit of ``envs``.
    """
    from emerald_jax.envs.host import HostVectorEnv

    settings = dataclasses.replace(envs, count=1, workers="inline", processes=0, time_limit=0)
    with contextlib.closing(_make(env, settings, seed)) as made:
        if not isinstance(made, HostVectorEnv):  # those set one of the two
            return ""
        made.reset()
        deadline = time.monotonic() + _SECONDS
        for action in _actions(made, min(max(made.spec.time_limit, _PATIENCE), _MOST), seed):
            made.step(action)
            if BOTH_ENDS in made.warnings:
                return made.warnings[BOTH_ENDS]
            if time.monotonic() > deadline:
                break
    return ""


def _make(env: Any, envs: EnvsConfig, seed: int) -> VectorEnv:
    if isinstance(env, str):
        return make_vector_env(env, envs, seed=seed)
    if not callable(env):
        raise EnvError(f"{type(env).__name__} is not a name, a factory or a vector environment")
    return make_vector_env_of(getattr(env, "__name__", "factory"), env, envs, seed=seed)


def _play(env: VectorEnv, steps: int, seed: int) -> tuple[list[VectorStep], list[str]]:
    """The records of random play with a reset halfway, and the findings."""
    findings = list(_check_spec(env.spec, env.num_envs))
    if findings:
        return [], findings
    actions, failed, records = _actions(env, steps, seed), env.faults, []
    halves = actions[: steps // 2], actions[steps // 2 :]
    parts = [[env.reset(), *(env.step(a) for a in half)] for half in halves]
    for part, played in zip(parts, halves, strict=True):
        findings += _check_part(env.spec, part, played)
        records += part
    if env.faults > failed:
        cut = [e for record in records for e in record.episodes if e.fault]
        faults = sorted({f"environment {e.env} {e.fault}" for e in cut})  # none of failed resets
        reasons = f": {'; '.join(faults)}" if faults else ""
        findings.append(f"it fails while it is played{reasons}")
    warnings = getattr(env, "warnings", {})
    findings += [line for kind, line in warnings.items() if kind != BOTH_ENDS]
    if not findings:
        findings += _check_images(records)
    return records, findings


def _actions(env: VectorEnv, steps: int, seed: int) -> np.ndarray:
    """Random actions `[steps, E]` or `[steps, E, A]`."""
    rng = np.random.default_rng(seed)
    return env.spec.actions.sample(rng, steps, env.num_envs, dtype=np.int64)


def _check_spec(spec: EnvSpec, count: int) -> Iterator[str]:
    """Findings in a spec."""
    shape, sizes, names = spec.image_shape, spec.actions.sizes, len(spec.action_names)
    actions = len(sizes) if spec.action_sizes else spec.num_actions
    choice = spec.num_actions > 1 or set(spec.action_sizes) - {1}
    rgb = shape[2:] == (3,) and min(shape) > 0
    sound = {
        f"spec.image_shape is {shape}, not (height, width, 3)": rgb,
        f"spec.num_actions is {spec.num_actions}: an agent needs a choice": choice,
        f"spec.action_names has {names} names, not {actions}": names in (0, actions),
        f"spec.time_limit is {spec.time_limit}": spec.time_limit >= 0,
        f"num_envs is {count}": count > 0,
    }
    return (finding for finding, holds in sound.items() if not holds)


def _check_part(spec: EnvSpec, records: list[VectorStep], actions: np.ndarray) -> list[str]:
    """Findings in the records that follow one reset."""
    count = actions.shape[1]
    findings = [line for record in records for line in _check_arrays(spec, record, count)]
    if findings:
        return findings
    if not records[0].is_first.all() or records[0].is_last.any():
        findings.append("reset: not every record is a first frame and nothing else")
    for before, record, action in zip(records, records[1:], actions, strict=False):
        findings += _check_step(spec.actions, before, record, action)
    return findings + list(_check_episodes(spec, records))


def _check_arrays(spec: EnvSpec, record: VectorStep, count: int) -> Iterator[str]:
    """Findings in the shapes, types and numbers of one record."""
    dtypes = {"image": np.uint8, "action": spec.actions.dtype, "reward": np.float32}
    shapes = {"image": spec.image_shape, "action": spec.actions.shape}
    for name in VectorStep._fields[:-1]:
        value, dtype = getattr(record, name), dtypes.get(name, np.bool_)
        shape = (count, *shapes.get(name, ()))
        if not isinstance(value, np.ndarray) or value.dtype != dtype or value.shape != shape:
            found = f"{getattr(value, 'dtype', type(value))} {getattr(value, 'shape', '')}"
            yield f"{name} is {found}, not {np.dtype(dtype)} {shape}"
    if not np.isfinite(record.reward).all():
        yield "a reward is not finite"


def _check_step(
    space: ActionSpace, before: VectorStep, record: VectorStep, action: np.ndarray
) -> Iterator[str]:
    """Findings in one record, given the one before and the action between them."""
    first, last = record.is_first, record.is_last
    given = space.replaced(action, first, space.none())
    other = (record.action != given) & ~(np.isnan(record.action) & np.isnan(given))
    wrong = {
        "is_first does not follow is_last, or follows something else": first != before.is_last,
        "action is not the one that was given, or not none on a first frame": other,
        "a first frame has a reward": record.reward[first],
        "a first frame is also a last frame": first & last,
        "is_terminal without is_last": record.is_terminal & ~last,
    }
    return (finding for finding, where in wrong.items() if where.any())


def _check_episodes(spec: EnvSpec, records: list[VectorStep]) -> Iterator[str]:
    """Compare the episodes' scores and lengths with our own count."""
    count = len(records[0].is_first)
    score, length = np.zeros(count), np.zeros(count, int)
    for record in records:
        score = np.where(record.is_first, 0, score + record.reward)
        length = np.where(record.is_first, 0, length + 1)
        ended = {episode.env: episode for episode in record.episodes}
        if sorted(ended) != np.flatnonzero(record.is_last).tolist():
            yield "episodes do not match is_last"
            continue
        if spec.time_limit and (length > spec.time_limit).any():
            yield f"an episode outlasts spec.time_limit {spec.time_limit}"
        for env, episode in ended.items():
            if episode.length != length[env]:
                yield f"an episode of {length[env]} steps reports length {episode.length}"
            if not np.isclose(episode.score, score[env], rtol=1e-4, atol=1e-4):
                yield f"an episode's rewards add up to {score[env]}, it reports {episode.score}"
            if episode.terminal != record.is_terminal[env]:
                yield "an episode's `terminal` is not its last frame's is_terminal"
            try:
                json.dumps(episode.extra, allow_nan=False)
            except (TypeError, ValueError) as error:
                yield f"an episode's `extra` is not plain JSON: {error}"


def _check_images(records: list[VectorStep]) -> Iterator[str]:
    """Images from which an agent could not learn."""
    images = np.stack([record.image for record in records])
    if (images == images[0]).all():
        yield _STILL
    elif images.max() < _DARK:
        yield (
            f"no pixel is above {images.max()} of 255: these look like symbols, not colours "
            "(envs.image_key `render` shows the result of env.render())"
        )


def _moves(env: Any, envs: EnvsConfig, seed: int) -> bool:
    """Whether the image changes in longer episodes."""
    with contextlib.closing(_make(env, dataclasses.replace(envs, time_limit=0), seed)) as made:
        first, actions = made.reset().image, _actions(made, _PATIENCE, seed)
        return any((made.step(action).image != first).any() for action in actions)


def _check_state(env: VectorEnv, seed: int) -> list[str]:
    """Compare two runs from one saved state; no findings where states cannot be saved."""
    state = env.get_state()
    if state is None:
        return []
    actions, copies = _actions(env, 10, seed), [copy.deepcopy(state) for _ in range(2)]
    runs = [[env.set_state(saved), *map(env.step, actions)] for saved in copies]
    return list(_compare(*runs, what="two runs from one saved state"))


def _compare(one: list[VectorStep], other: list[VectorStep], what: str) -> Iterator[str]:
    """The first step and array in which two runs differ."""
    for t, (a, b) in enumerate(zip(one, other, strict=True)):
        for name in VectorStep._fields:
            if not np.array_equal(getattr(a, name), getattr(b, name), equal_nan=name == "action"):
                yield f"{what} differ in {name} at record {t}"
                return
