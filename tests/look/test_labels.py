"""Long names break no picture: no text is cut off, and the axes keep half of each side."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.text import Text

from emerald_jax.look import figures
from emerald_jax.look.film import Film, film_frames, film_sheet
from emerald_jax.run.pictures import BACKGROUND, Canvas
from experiments.evidence import seeds_figure

SETTINGS = (
    "ours: crafter, behavior.policy_entropy_scale 0.0003, optim.model_learning_rate 0.0001, "
    "replay.best_of_previous_episodes 12, envs.time_limit_of_episode 1000, 26 more changed"
)
NAMES = {"settings": SETTINGS, "one word": "W" * 90}
RNG = np.random.default_rng(0)
STEPS = np.arange(50.0) * 1000


def series(name: str, count: int) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    return {f"{i} {name}": (STEPS, RNG.random(50)) for i in range(count)}


def bars(name: str, count: int) -> list[figures.Bar]:
    return [
        figures.Bar(label=f"{i} {name}", value=i, low=i - 1, high=i + 2, ours=i > 1, meets=i > 2)
        for i in range(count)
    ]


#: One example of every figure, with a name wherever a run or a user may put one.
EXAMPLES: dict[str, Callable[[str], Figure]] = {
    "lines": lambda name: figures.lines(series(name, 6), title=name),
    "shares": lambda name: figures.lines(series(name, 1), title=name, share=True),
    "actions": lambda name: figures.action_histogram(
        [f"{i} {name}" for i in range(17)], {f"{i} {name}": RNG.random(17) for i in range(2)}
    ),
    "attention": lambda name: figures.attention_map(RNG.random((2, 4, 9)), [0, 1, 2, 4, 8]),
    "rewards": lambda name: figures.imagined_rewards(*RNG.random((3, 3, 19)), 4),
    "seeds": lambda name: seeds_figure(series(name, 3), title=name, goal=0.5),
    "bars": lambda name: figures.bar_figure(
        {f"{i} {name}": bars(name, 7) for i in (0, 1)}, unit=name
    ),
    "one bar": lambda name: figures.bar_figure({name: bars(name, 1)}, unit=name),
    "rates": lambda name: figures.rates_figure(
        {f"{i} {name}": {f"{name}_{j}": 50.0 for j in range(22)} for i in range(6)}, 4
    ),
    "returns": lambda name: figures.returns_figure(
        {k: [v, v] for k, v in series(name, 12).items()}, 0.2, title=name
    ),
}


def texts(figure: Figure) -> Iterator[Text]:
    """Every text that is drawn; tick labels outside the axes are not."""
    hidden = set()
    for axes in figure.axes:
        for axis in (axes.xaxis, axes.yaxis):
            low, high = sorted(axis.get_view_interval())
            for tick in (*axis.get_major_ticks(), *axis.get_minor_ticks()):
                if not low <= tick.get_loc() <= high:
                    hidden |= {tick.label1, tick.label2}
    for text in figure.findobj(Text):
        if text.get_visible() and text.get_text() and text not in hidden:
            yield text


def check(figure: Figure) -> None:
    """Measure the figure with the renderer that draws it."""
    figure.draw_without_rendering()
    renderer, width, height = figure.canvas.get_renderer(), *figure.bbox.size
    for text in texts(figure):
        box = text.get_window_extent(renderer)
        inside = box.x0 >= -1 and box.y0 >= -1 and box.x1 <= width + 1 and box.y1 <= height + 1
        assert inside, f"{text.get_text()!r} is cut off: {box}, the figure is {width} x {height}"
    for axes in figure.axes:
        rows = [label.get_window_extent(renderer) for label in axes.get_yticklabels()]
        rows = sorted((box for box in rows if box.width), key=lambda box: box.y0)
        gaps = [upper.y0 - lower.y1 for lower, upper in pairwise(rows)]
        assert min(gaps, default=0) > -2, "the names of two rows overlap"
    boxes = [axes.get_window_extent(renderer) for axes in figure.axes if axes.get_subplotspec()]
    covered_x, covered_y = np.zeros(int(width), bool), np.zeros(int(height), bool)
    for box in boxes:
        covered_x[max(0, int(box.x0)) : int(box.x1)] = True
        covered_y[max(0, int(box.y0)) : int(box.y1)] = True
    assert covered_x.mean() >= 0.5
    assert covered_y.mean() >= 0.5


@pytest.mark.parametrize("name", NAMES.values(), ids=NAMES)
@pytest.mark.parametrize("example", EXAMPLES)
def test_a_figure_keeps_its_axes_and_cuts_no_text(example: str, name: str) -> None:
    check(EXAMPLES[example](name))


@pytest.mark.parametrize("name", NAMES.values(), ids=NAMES)
def test_the_learning_curve_of_a_run(name: str, tmp_path: Path) -> None:
    episodes = [{"step": 9 * i, "score": 1e6 * (i % 3)} for i in range(200)]
    metrics = [
        {"step": i, **{f"loss/{j} {name}": 5.0 / (i + 1) for j in range(8)}} for i in range(9)
    ]
    for file, rows in (("episodes", episodes), ("metrics", metrics)):
        (tmp_path / f"{file}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    check(figures.curve_figure(tmp_path))


@pytest.mark.parametrize("lines", [1, 2, 3])
def test_wrapped_text_fits(lines: int) -> None:
    text = figures.wrap(SETTINGS, 2.0, lines=lines)
    assert text.count("\n") == lines - 1
    assert text.endswith(" …")
    assert figures.wrap("short", 2.0) == "short"
    assert figures.wrap("", 2.0) == ""


def test_two_agents_differ_in_colour_or_in_line() -> None:
    styles = [(s["color"], s["linestyle"]) for s in figures.LINES]
    assert len(set(styles)) == len(styles) == 21


def film(action: str, steps: int = 3) -> Film:
    unknown = np.full(steps, np.nan)
    return Film(
        real=np.full((steps, 16, 16, 3), 40, np.uint8),
        dream=np.full((steps, 16, 16, 3), 90, np.uint8),
        context=1,
        known=steps,
        reward=unknown,
        real_reward=unknown,
        cont=np.full(steps, 0.1),
        confidence=np.ones((steps, 4, 4)),
        actions=(action,) * steps,
    )


def test_a_film_shortens_long_action_names() -> None:
    for frame in film_frames(film("turn the left wheel slowly " * 9)):
        # Margins and the gap between the two frames stay free of letters.
        assert (frame[:30, 237:243] == BACKGROUND).all()
        assert (frame[:30, -11:] == BACKGROUND).all()


def test_the_picture_of_a_short_film_has_room_for_its_captions() -> None:
    picture = film_sheet(film("", steps=2))
    assert (picture[:, -11:] == BACKGROUND).all()
    caption = "reward: predicted (bars), real (dots), full scale 0.1"
    assert picture.shape[1] >= Canvas.width_of(caption)
