"""Breakout-MinAtar: does the model know how a lost game could have been saved?

Every game that an agent lost is rewound by some steps. From there the paddle is driven to each of
the ten columns, in the game and in a dream of the same actions. The agent dreams on by itself too.

Command: python -m experiments.last_ball [RUN] (four minutes on one CPU core)
Result: results/last_ball: in nine of ten dreams it does; the policy mostly loses in its own.
"""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import gymnax
import jax
import jax.numpy as jnp
import numpy as np

import emerald_jax as ej
from benchmarks.suite.machine import machine_line
from emerald_jax.envs.gymnax import render_grid
from emerald_jax.reports.runs import Table
from emerald_jax.run.directory import write_json
from emerald_jax.run.machine import prepare_jax
from emerald_jax.types import Array
from experiments.study.page import RESULT_FILE, write_page

GAME, COLUMNS, LIMIT = "Breakout-MinAtar", 10, 1000
#: Real frames before a dream, and imagined steps after the one that lost the game.
CONTEXT, BEYOND = 16, 4
STAY, LEFT, RIGHT = range(3)
#: What is measured, a share of games or of dreams.
MEANING = {
    "savable": "games that some column saves",
    "saving": "dreams that continue: paddle to a column that saves",
    "fatal": "dreams that continue: to a column that does not",
    "played": "dreams that continue: actions as played",
    "policy": "dreams that continue: actions of the policy",
}


class Games(NamedTuple):
    """Games of G environments, T steps in all of them, time first.

    Attributes:
        image: `[T + 1, G, height, width, 3]` uint8.
        action: `[T, G]`, from ``image[t]`` to ``image[t + 1]``.
        state: the game's own states `[T + 1, G]`.
        length: `[G]` steps until the game was lost, 0 where it was not.
        bricks: `[G]`.
    """

    image: np.ndarray
    action: np.ndarray
    state: Any
    length: np.ndarray
    bricks: np.ndarray


def main() -> None:
    """Play, rewind, drive and dream; write the result and its page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("run", nargs="?", default="pretrained/breakout", help="run or export (%(default)s)")
    add("--games", type=int, default=64)
    add("--rewind", type=int, default=10, help="steps before the end (%(default)s)")
    add("--out", type=Path, default=Path(__file__).parent / "results" / "last_ball")
    options = parser.parse_args()
    prepare_jax()
    agent = ej.load(options.run)
    games = play(agent, options.games)
    found = measure(agent, games, options.rewind)
    count = len(found["savable"])
    result = {
        "run": options.run,
        "games": count,
        "bricks": round(float(games.bricks.mean()), 2),
        "rewind": options.rewind,
        "machine": machine_line(),
        **{name: round(float(np.mean(found[name])), 3) for name in MEANING},
        "standard_error": {
            name: round(float(np.std(found[name]) / np.sqrt(count)), 3) for name in MEANING
        },
    }
    write_json(options.out / RESULT_FILE, result)
    rows = [
        (text, f"{result[name]:.2f}", f"{result['standard_error'][name]:.2f}")
        for name, text in MEANING.items()
    ]
    facts = f"{options.run}: {count} lost games of {result['bricks']} bricks, rewound by "
    facts += f"{options.rewind} steps. Hardware and commit: {result['machine']}."
    table = Table(columns=("", "share", "standard error"), rows=rows).markdown()
    about = f"[`python -m experiments.last_ball`](../../last_ball.py): {__doc__.splitlines()[0]}"
    print(write_page(options.out, about, [facts, table]).read_text())


def play(agent: ej.Agent, count: int) -> Games:
    """Play ``count`` games side by side until all are lost or over."""
    game, params = load_game()
    size = agent.config.envs.image_size
    draw = jax.jit(jax.vmap(lambda grid: render_grid(grid, size)))
    step = jax.jit(jax.vmap(partial(step_game, game, params)))
    grid, state = jax.vmap(lambda key: game.reset_env(key, params))(
        jax.random.split(jax.random.key(0), count)
    )
    mind, first = agent.initial(count), np.ones(count, bool)
    images, actions, states = [np.asarray(draw(grid))], [], [jax.device_get(state)]
    length, bricks = np.zeros(count, int), np.zeros(count)
    for t in range(LIMIT):
        action, mind = agent.act(images[-1], mind, jax.random.key(t), is_first=first)
        first = np.zeros(count, bool)
        grid, state, reward, lost = step(state, action)
        playing = length == 0
        bricks += playing * np.asarray(reward)
        length[playing & np.asarray(lost)] = t + 1
        images.append(np.asarray(draw(grid)))
        actions.append(action)
        states.append(jax.device_get(state))
        if length.all():
            break
    state = jax.tree.map(lambda *x: np.stack(x), *states)
    return Games(np.stack(images), np.stack(actions), state, length, bricks)


def measure(agent: ej.Agent, games: Games, rewind: int) -> dict[str, np.ndarray]:
    """The values of every :data:`MEANING`; a dream counts by its probability to continue.

    One for each lost game, of ``saving`` and ``fatal`` one for each of its columns.
    """
    lost = np.flatnonzero(games.length >= CONTEXT + rewind)
    start, horizon = games.length[lost] - rewind, rewind + BEYOND
    state = jax.tree.map(lambda x: x[start, lost], games.state)
    driven, saved = jax.device_get(drive_all(state, horizon))

    def cut(x: np.ndarray, first: int, steps: int) -> np.ndarray:
        """`[G, steps, ...]` from ``first`` steps after the start of the dream."""
        return x[start[:, None] + np.arange(first, first + steps), lost[:, None]]

    image, action = cut(games.image, 1 - CONTEXT, CONTEXT), cut(games.action, -CONTEXT, CONTEXT)
    played = np.pad(cut(games.action, 0, rewind), ((0, 0), (0, BEYOND)), constant_values=STAY)
    columns = np.stack(
        [survival(agent, image, action, horizon, driven[:, x]) for x in range(COLUMNS)], axis=1
    )
    return {
        "savable": saved.any(1),
        "saving": columns[saved],
        "fatal": columns[~saved],
        "played": survival(agent, image, action, horizon, played),
        "policy": survival(agent, image, action, horizon, None),
    }


def survival(
    agent: ej.Agent,
    image: np.ndarray,
    action: np.ndarray,
    horizon: int,
    future: np.ndarray | None,
) -> np.ndarray:
    """Probability `[G]` that a dream after ``image`` `[G, T, ...]` continues for ``horizon`` steps.

    ``action`` `[G, T]` led into the images; ``future`` `[G, H]` are the actions of the dream.
    """
    dream = agent.imagine(image, action, key=jax.random.key(1), horizon=horizon, future=future)
    return dream.continues.prod(axis=1)


def drive_all(state: Any, horizon: int) -> tuple[Array, Array]:
    """Drive the paddle to every column from the states `[G]`, then keep it there.

    Returns the actions `[G, COLUMNS, H]` and whether the game goes on, `[G, COLUMNS]`.
    """
    game, params = load_game()

    def drive(state: Any, column: Array) -> tuple[Array, Array]:
        def body(loop: tuple[Any, Array], _: None) -> tuple[tuple[Any, Array], Array]:
            state, lost = loop
            way = column - state.pos
            action = jnp.where(way == 0, STAY, jnp.where(way < 0, LEFT, RIGHT))
            _, state, _, over = step_game(game, params, state, action)
            return (state, lost | over), action

        (_, lost), actions = jax.lax.scan(body, (state, jnp.bool_(False)), length=horizon)
        return actions, ~lost

    every = jax.vmap(jax.vmap(drive, (None, 0)), (0, None))
    return jax.jit(every)(state, jnp.arange(COLUMNS))


def load_game() -> tuple[Any, Any]:
    """The game and its parameters."""
    return gymnax.make(GAME)


def step_game(game: Any, params: Any, state: Any, action: Array) -> tuple[Array, Any, Array, Array]:
    """One step of a game, in which nothing is random after its start."""
    grid, state, reward, over, _ = game.step_env(jax.random.key(0), state, action, params)
    return grid, state, reward, over


if __name__ == "__main__":
    main()
