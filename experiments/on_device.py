"""Which settings make an agent learn? Many agents of one game in one program, the game included.

Command: python -m experiments.on_device minatar --seeds 0 1 --agent behavior.gamma=0.97 \
        --agent behavior.gamma=0.97,optim.actor_lr=3e-4 --out DIR
    Every --agent trains one agent for each seed, with these changes to the preset ("" for none).
Time: with 10 agents 51 updates of each per second on an H200; on a CPU use `emerald-jax train`.
Result: results/on_device: on Breakout none of 19 other sets of settings is clearly better than
    minatar's own.

The update, the acting step and the game are those of `emerald-jax train`. Replay and sampler are
written again here, for the device: they draw with the same probabilities, not the same numbers.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import json
import shlex
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.suite.machine import machine_line
from emerald_jax.agent import Observation, act_numbered
from emerald_jax.agent.state import Learner, TrainState, build_learner, init_carry, init_state
from emerald_jax.config import Config
from emerald_jax.envs.gymnax import GymnaxVectorEnv
from emerald_jax.look import figures
from emerald_jax.presets import get_preset
from emerald_jax.reports.runs import Table
from emerald_jax.run.directory import write_json
from emerald_jax.run.machine import prepare_jax
from emerald_jax.training.played import due_steps, nothing_played, with_step
from emerald_jax.training.update import train_step
from emerald_jax.types import Array, Batch, Carry, Key, Played, key_of
from experiments.evidence import refuse
from experiments.study.page import write_page
from experiments.study.plan import change

#: Settings that may differ between the agents of one program.
VARIED = (
    *("optim.model_lr", "optim.actor_lr", "optim.critic_lr", "behavior.gamma", "behavior.lam"),
    *("behavior.entropy", "behavior.real_weight", "behavior.detours", "behavior.slow_rate"),
    "replay.best_of",
)
#: Those of them that are whole numbers.
_WHOLE = ("replay.best_of",)
#: Episodes of one agent that can be held, and candidates when one is drawn.
EPISODES, DRAWS = 2**15, 16
#: Leading episodes that a vector step may forget.
_FORGOTTEN = 64
#: Metrics that are kept, as means over the updates of a point.
METRICS = ("behavior/policy_entropy", "behavior/imagined_continue", "loss/model")


class Episodes(NamedTuple):
    """The newest episodes begun, in the order of their begin; number i is at ``i % EPISODES``.

    Attributes:
        start: `[EPISODES]` int32, row of the first record.
        env: `[EPISODES]` int32, environment.
        length: `[EPISODES]` int32, records so far.
        score: `[EPISODES]` float32, sum of rewards so far.
        oldest: `[]` int32, number of the oldest episode that may still be held.
        count: `[]` int32, episodes begun.
        running: `[E]` int32, number of each environment's newest episode.
    """

    start: Array
    env: Array
    length: Array
    score: Array
    oldest: Array
    count: Array
    running: Array


class Pupil(NamedTuple):
    """One agent in training: all that changes.

    Attributes:
        state: parameters and optimisers.
        carry: :class:`Carry` `[B]` of the sequences that are replayed.
        memory: :class:`Carry` `[E]` of the acting agent.
        game: state of the environments.
        record: the newest records `[E]`, without ``reset`` and ``carry``.
        replay: the same, `[R, E]`; row r is at ``r % R``.
        episodes: where they lie.
        played: :class:`Played` `[E, W]`, which the update learns from too.
        away: `[2, E]` int32, steps left of each environment's detour, and its action.
        slots: `[2, B]` int32, environment and next row of each sequence; row -1: nothing read yet.
        keys: `[3]` base keys of acting, updates and sampling.
    """

    state: TrainState
    carry: Carry
    memory: Carry
    game: Any
    record: Batch
    replay: Batch
    episodes: Episodes
    played: Played
    away: Array
    slots: Array
    keys: Key


class Trainer:
    """Training as pure functions of one :class:`Pupil` and its ``values``, which vmap maps.

    ``values`` are numbers by the names of :data:`VARIED`.
    """

    def __init__(self, config: Config) -> None:
        """Make the game; SystemExit where the settings do not fit."""
        if not config.env.startswith("gymnax:"):
            refuse(f"{config.env} does not run on a device: choose a gymnax: game", "on_device")
        every = 1 / config.updates_per_vector_step
        if (
            every != int(every)
            or config.replay.sampler != "streams"
            or config.replay.best_of > DRAWS
        ):
            refuse(
                "it needs whole vector steps between two updates, replay.sampler streams and "
                f"replay.best_of of at most {DRAWS}: change train_ratio or these",
                "on_device",
            )
        self.config, self.every = config, int(every)
        game = config.env.partition(":")[2]
        self.env = GymnaxVectorEnv(config.env, game, config.envs, seed=config.seed)
        self.rows = config.replay.capacity // config.envs.count
        #: Vector steps of random play before the first update.
        self.prefill = config.replay.prefill // config.envs.count

    def learner(self, values: dict[str, Array]) -> Learner:
        """Networks and optimisers with an agent's own settings."""
        return build_learner(with_values(self.config, values), self.env.spec.actions)

    def begin(self, seed: Array, values: dict[str, Array]) -> Pupil:
        """A fresh agent before the first frames of its games."""
        learner, config = self.learner(values), self.config
        count, batch = config.envs.count, config.replay.batch
        key = jax.random.fold_in(key_of(0), seed)
        init, games, *keys = jax.random.split(key, 5)
        game, image = jax.vmap(self.env._begin_one)(jax.random.split(games, count))
        none, no = jnp.full(count, -1), jnp.zeros(count, bool)
        record = Batch(image, none, jnp.zeros(count), ~no, no, no, None)
        replay = jax.tree.map(lambda x: jnp.zeros((self.rows, *x.shape), x.dtype), record)
        blank, zero = jnp.zeros(EPISODES, jnp.int32), jnp.int32(0)
        episodes = Episodes(
            blank, blank, blank, jnp.zeros(EPISODES), zero, zero, jnp.zeros(count, jnp.int32)
        )
        pupil = Pupil(
            state=init_state(learner, init),
            carry=init_carry(learner, batch),
            memory=init_carry(learner, count),
            game=game,
            record=record,
            replay=replay,
            episodes=episodes,
            played=jax.tree.map(jnp.asarray, nothing_played(learner, count)),
            away=jnp.zeros((2, count), jnp.int32),
            slots=jnp.stack([jnp.zeros(batch, jnp.int32), jnp.full(batch, -1)]),
            keys=jnp.stack(keys),
        )
        return self.remember(pupil, record, zero)

    def remember(self, pupil: Pupil, record: Batch, row: Array) -> Pupil:
        """Store records `[E]` as row ``row`` `[]`."""
        replay = jax.tree.map(lambda x, new: x.at[row % self.rows].set(new), pupil.replay, record)
        old, first = pupil.episodes, record.is_first
        running = jnp.where(first, old.count + jnp.cumsum(first) - 1, old.running)
        place = running % EPISODES
        begun = jnp.where(first, place, EPISODES)  # others outside, where nothing is written

        def put(column: Array, value: Any) -> Array:
            return column.at[begun].set(value, mode="drop")

        start, length = put(old.start, row), put(old.length, 0).at[place].add(1)
        ahead = old.oldest + jnp.arange(_FORGOTTEN)
        count = old.count + first.sum(dtype=jnp.int32)
        gone = (start + length)[ahead % EPISODES] <= self.oldest(row + 1)
        gone = jnp.cumprod(gone & (ahead < count)).sum(dtype=jnp.int32)
        episodes = Episodes(
            start=start,
            env=put(old.env, jnp.arange(len(first))),
            length=length,
            score=put(old.score, 0).at[place].add(record.reward),
            oldest=old.oldest + gone,
            count=count,
            running=running,
        )
        return pupil._replace(record=record, replay=replay, episodes=episodes)

    def oldest(self, written: Array) -> Array:
        """The oldest row held after ``written`` rows."""
        return jnp.maximum(0, written - self.rows)

    def act(self, pupil: Pupil, values: dict[str, Array], number: Array) -> Pupil:
        """Vector step ``number``: act on the newest records, row ``number``, and store the next."""
        record, act_key, sample_key = pupil.record, pupil.keys[0], pupil.keys[2]
        seen = Observation(record.image, record.action, record.is_first)
        options = {"learner": self.learner(values)}
        acted = act_numbered(
            pupil.state.params, pupil.memory, seen, act_key, number.astype(jnp.uint32), **options
        )
        key, shape = jax.random.fold_in(sample_key, 2 * number), acted.action.shape
        random = jax.random.randint(key, shape, 0, self.env.spec.num_actions)
        early = number < self.prefill
        away = self.detour(pupil.away, values, random, record.is_first, key)
        own = away[0] == 0
        action = jnp.where(early, random, jnp.where(own, acted.action, away[1]))
        away = jnp.where(early, pupil.away, away.at[0].add(jnp.where(own, 0, -1)))
        told = record.reward, record.is_first, record.is_terminal
        step = Played(acted.state, action, acted.log_prob, *told, own & ~early)
        played = with_step(pupil.played, step, jnp.concatenate)
        pupil = pupil._replace(played=played, away=away)
        memory = jax.tree.map(partial(jnp.where, early), pupil.memory, acted.carry)
        game, outcome = jax.vmap(self.env._step_or_begin_one)(pupil.game, action)
        first = record.is_last
        record = Batch(
            image=outcome.image,
            action=jnp.where(first, -1, action),
            reward=jnp.where(first, 0.0, outcome.reward),
            is_first=first,
            is_last=outcome.terminated | outcome.truncated,
            is_terminal=outcome.terminated,
            reset=None,
        )
        return self.remember(pupil._replace(game=game, memory=memory), record, number + 1)

    def detour(
        self, away: Array, values: dict[str, Array], random: Array, first: Array, key: Key
    ) -> Array:
        """Detours `[2, E]` of this step, as ``training/detours.py`` draws them."""
        longest, count = self.config.behavior.horizon, len(first)
        chance, length = jax.random.split(key)
        left = jnp.where(first, 0, away[0])
        rates = values["behavior.detours"] * (2 * jnp.arange(count) + 1) / count
        begins = (left == 0) & (jax.random.uniform(chance, (count,)) < rates)
        drawn = jax.random.randint(length, (count,), 1, longest + 1)
        return jnp.stack([jnp.where(begins, drawn, left), jnp.where(begins, random, away[1])])

    def sample(self, pupil: Pupil, values: dict[str, Array], row: Array) -> tuple[Pupil, Batch]:
        """A batch `[B, L]` as ``StreamSampler`` draws it; ``row`` is the newest row."""
        size, episodes, oldest = self.config.replay, pupil.episodes, self.oldest(row + 1)
        best_of = jnp.where(jnp.arange(size.batch) % 4 == 0, values["replay.best_of"], 1)

        def read(slots: Array, key: Key) -> tuple[Array, tuple[Array, Array, Array]]:
            """The next record of every slot, of an episode's own or of a new one."""
            (env, at), (pick, offset) = slots, jax.random.split(key)
            held = episodes.count - episodes.oldest
            drawn = episodes.oldest + jax.random.randint(pick, (size.batch, DRAWS), 0, held)
            drawn = drawn % EPISODES
            usable = (episodes.start + episodes.length)[drawn] > oldest
            usable &= jnp.cumsum(usable, axis=1) <= best_of[:, None]
            best = jnp.argmax(jnp.where(usable, episodes.score[drawn], -jnp.inf), axis=1)
            chosen = drawn[jnp.arange(size.batch), best]
            start = jnp.maximum(episodes.start[chosen], oldest)
            rest = episodes.start[chosen] + episodes.length[chosen] - start
            skipped = jnp.floor(jax.random.uniform(offset, rest.shape) * rest).astype(jnp.int32)
            start += jnp.where(at < oldest, skipped, 0)  # new, or overwritten: anywhere in it
            follows = (at >= oldest) & (at <= row) & ~pupil.replay.is_first[at % self.rows, env]
            env = jnp.where(follows, env, episodes.env[chosen])
            at = jnp.where(follows, at, start)
            return jnp.stack([env, at + 1]), (env, at, ~follows)

        keys = jax.random.split(jax.random.fold_in(pupil.keys[2], 2 * row + 1), size.length)
        slots, found = jax.lax.scan(read, pupil.slots, keys)
        env, at, fresh = (x.T for x in found)
        batch = jax.tree.map(lambda x: x[at % self.rows, env], pupil.replay)
        return pupil._replace(slots=slots), batch._replace(reset=fresh, carry=pupil.carry)

    def fill(self, pupil: Pupil, values: dict[str, Array]) -> Pupil:
        """Random play before the first update."""

        def step(pupil: Pupil, number: Array) -> tuple[Pupil, None]:
            return self.act(pupil, values, number), None

        return jax.lax.scan(step, pupil, jnp.arange(self.prefill))[0]

    def round(
        self, pupil: Pupil, values: dict[str, Array], update: Array
    ) -> tuple[Pupil, dict[str, Array]]:
        """The vector steps before update number ``update``, and the update.

        Returns the sum of the scores of the episodes that ended, their number, and metrics.
        """
        first = self.prefill + update * self.every

        def step(pupil: Pupil, i: Array) -> tuple[Pupil, tuple[Array, Array]]:
            pupil = self.act(pupil, values, first + i)
            last, episodes = pupil.record.is_last, pupil.episodes
            score = episodes.score[episodes.running % EPISODES]
            return pupil, (jnp.where(last, score, 0).sum(), last.sum())

        pupil, (scores, ends) = jax.lax.scan(step, pupil, jnp.arange(self.every))
        pupil, batch = self.sample(pupil, values, first + self.every)
        keys = jax.random.split(jax.random.fold_in(pupil.keys[1], update), len(batch.action))
        played, batch = pupil.played, batch._replace(played=pupil.played)
        due = played.due.at[:, : due_steps(self.config)].set(False)
        state, carry, metrics = train_step(pupil.state, batch, keys, learner=self.learner(values))
        found = {"score": scores.sum(), "episodes": ends.sum().astype(jnp.float32)}
        found |= {name: metrics[name] for name in METRICS}
        played = played._replace(due=due)
        return pupil._replace(state=state, carry=carry, played=played), found


def with_values(config: Config, values: dict[str, Array]) -> Config:
    """``config`` with traced values, which its checks could not read."""
    config = copy.copy(config)
    for name, value in values.items():
        part, field = name.split(".")
        inner = copy.copy(getattr(config, part))
        object.__setattr__(inner, field, value)
        object.__setattr__(config, part, inner)
    return config


def values_of(configs: Sequence[Config]) -> dict[str, Array]:
    """What differs between agents, `[agents]` by name."""
    found = {}
    for name in VARIED:
        part, field = name.split(".")
        numbers = [getattr(getattr(config, part), field) for config in configs]
        found[name] = jnp.asarray(numbers, jnp.int32 if name in _WHOLE else jnp.float32)
    return found


def parse_changes(text: str) -> dict[str, Any]:
    """``a.b=1,c.d=x`` as settings and values."""
    found = {}
    for part in filter(None, text.split(",")):
        name, _, value = part.partition("=")
        try:
            found[name] = json.loads(value)
        except ValueError:  # a word
            found[name] = value
    return found


def train(
    trainer: Trainer, agents: Sequence[tuple[str, int]], updates: int, every: int, minutes: float
) -> dict[str, Any]:
    """Train all ``agents``, pairs of changes and seed, for so many updates or minutes.

    Returns curves with a point for every ``every`` updates: the mean score of the episodes that
    ended between two points, None without any, and :data:`METRICS`.
    """
    began = time.monotonic()
    values = values_of([change(trainer.config, parse_changes(text)) for text, _ in agents])

    @jax.jit
    def start(seeds: Array) -> Pupil:
        return jax.vmap(lambda s, v: trainer.fill(trainer.begin(s, v), v))(seeds, values)

    @partial(jax.jit, donate_argnums=0)
    def go(pupils: Pupil, first: Array) -> tuple[Pupil, dict[str, Array]]:
        def body(pupils: Pupil, i: Array) -> tuple[Pupil, dict[str, Array]]:
            return jax.vmap(trainer.round, (0, 0, None))(pupils, values, first + i)

        pupils, found = jax.lax.scan(body, pupils, jnp.arange(every))
        return pupils, jax.tree.map(lambda x: x.sum(0), found)

    pupils = start(jnp.asarray([seed for _, seed in agents]))
    program = go.lower(pupils, jnp.int32(0)).compile()
    first, done, points = time.monotonic(), 0, []
    while done < updates and not (minutes and time.monotonic() - began > 60 * minutes):
        pupils, found = program(pupils, jnp.int32(done))
        found, done = jax.device_get(found), done + every
        ended = found["episodes"]
        score = np.where(ended > 0, found["score"] / np.maximum(ended, 1), np.nan)
        points.append({"score": score, **{name: found[name] / every for name in METRICS}})
        steps = done * trainer.every * trainer.config.envs.count
        print(f"{steps:,} steps: " + " ".join(f"{x:.2f}" for x in score), flush=True)
    seconds = time.monotonic() - first
    columns = {name: np.stack([point[name] for point in points], 1) for name in points[0]}
    per_point = every * trainer.every * trainer.config.envs.count
    return {
        "updates_per_s": round(done / seconds, 2),
        "seconds": round(time.monotonic() - began, 1),
        "env_steps": [per_point * (i + 1) for i in range(len(points))],
        "agents": [
            {"changes": text, "seed": seed, **{n: _digits(x[i]) for n, x in columns.items()}}
            for i, (text, seed) in enumerate(agents)
        ],
    }


def _digits(values: np.ndarray) -> list[float | None]:
    return [float(f"{x:.4g}") if np.isfinite(x) else None for x in values]


def write_results(folder: Path) -> Path:
    """The figure and the page of a folder of results."""
    tables = []
    for path in sorted(folder.glob("*.json")):
        result = json.loads(path.read_text())
        steps = result["env_steps"][-1]
        series, rows = {}, []
        for text in dict.fromkeys(agent["changes"] for agent in result["agents"]):
            own = [agent for agent in result["agents"] if agent["changes"] == text]
            scores = np.array([agent["score"] for agent in own], float)
            ends = ", ".join(f"{x:.1f}" for x in scores[:, -4:].mean(1))
            spread = np.mean([agent["behavior/policy_entropy"][-1] for agent in own])
            name = ", ".join(part.partition(".")[2] for part in text.split(",")) or "none"
            rows.append((name, ends, f"{spread:.2f}"))
            series[name] = (result["env_steps"], scores.mean(0))
        figure = figures.lines(series, title=f"{path.stem}: mean return of the seeds")
        figures.save(figure, folder / f"{path.stem}.png")
        about = f"`{path.stem}`, {steps:,} steps, {result['updates_per_s']} updates of each agent "
        about += f"per second. `{result['command']}`. {result['machine']}."
        columns = ("changes", "return at the end, by seed", "policy entropy")
        tables += [about, Table(columns=columns, rows=rows).markdown()]
    about = f"[`python -m experiments.on_device`](../../on_device.py): {__doc__.splitlines()[0]}"
    return write_page(folder, about, tables)


def main(arguments: Sequence[str] | None = None) -> None:
    """Train, and write a result, its figure and the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("preset")
    add("--env", default="", help="another gymnax: game")
    add("--agent", action="append", default=[], help="changes of one set of agents")
    add("--all", default="", help="changes of all agents")
    add("--seeds", type=int, nargs="+", default=[0])
    add("--steps", type=int, default=0, help="environment steps (the preset's)")
    add("--updates", type=int, default=0, help="stop after so many (all)")
    add("--minutes", type=float, default=0.0, help="stop after so many (never)")
    add("--every", type=int, default=125, help="updates of a point (%(default)s)")
    add("--name", default="agents", help="of the result (%(default)s)")
    add("--out", type=Path, default=Path("runs/on_device"))
    options = parser.parse_args(arguments)
    prepare_jax()
    config = get_preset(options.preset)
    known = {"env": options.env or config.env, "steps": options.steps or config.steps}
    config = change(dataclasses.replace(config, **known), parse_changes(options.all))
    for text in options.agent:
        if fixed := parse_changes(text).keys() - set(VARIED):
            refuse(f"agents cannot differ in {', '.join(sorted(fixed))}: use --all", "on_device")
    agents = [(text, seed) for text in options.agent or [""] for seed in options.seeds]
    trainer = Trainer(config)
    updates = options.updates or config.total_updates
    found = train(trainer, agents, updates, options.every, options.minutes)
    words = [options.preset, "--env", config.env, "--steps", config.steps, "--all", options.all]
    words += ["--seeds", *options.seeds, *(x for text in options.agent for x in ("--agent", text))]
    command = f"python -m experiments.on_device {shlex.join(map(str, words))}"
    result = {"command": command, "machine": machine_line(), **found}
    write_json(options.out / f"{options.name}.json", result)
    print(write_results(options.out))


if __name__ == "__main__":
    main()
