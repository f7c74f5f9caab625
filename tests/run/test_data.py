"""Recorded data as a run reads them: collected play, folders of videos, Minari data sets."""

from __future__ import annotations

import dataclasses
import json

import imageio
import jax
import numpy as np
import pytest
from gymnasium.spaces import Box, Dict, Discrete, MultiBinary, MultiDiscrete, Tuple

from emerald_jax.actions import absent
from emerald_jax.config import Config, ConfigError, EnvsConfig
from emerald_jax.envs.base import EnvError
from emerald_jax.envs.gym import own_action, resize_area
from emerald_jax.replay import COLUMNS, Replay
from emerald_jax.run.data import open_data, with_data
from emerald_jax.run.directory import run_dir
from emerald_jax.run.recordings import write_dataset
from tests.replay_world import World, fill
from tests.run_cases import write_minari

SIZE = 16
FACTS = {"env": "gymnax:Catch-bsuite", "num_actions": 5, "action_names": [*"abcde"]}


def settings(data, size: int = SIZE, **envs) -> Config:
    return Config(data=str(data), envs=EnvsConfig(image_size=size, **envs))


def read(config: Config) -> Replay:
    data = open_data(config)
    shapes = (data.spec.image_shape, data.spec.action_sizes)
    replay = Replay(data.rows * data.num_envs, data.num_envs, *shapes)
    list(data.fill(replay))
    return replay


def film(path, frames: int, side: int = 32) -> None:
    """A film whose frame ``n`` is grey of level ``10 n``."""
    with imageio.get_writer(path, fps=30, macro_block_size=1, quality=10) as writer:
        for level in range(frames):
            writer.append_data(np.full((side, side, 3), 10 * level, np.uint8))


def levels(replay: Replay) -> list[int]:
    """The frame of its film that each record shows."""
    return np.rint(replay.columns["image"][:, 0].mean((1, 2, 3)) / 10).astype(int).tolist()


@pytest.fixture
def collected(tmp_path):
    replay = Replay(60, 3, (2, 2, 3))
    fill(replay, World([[4, 7], [3], [25]]), 20)
    write_dataset(tmp_path / "d", replay, FACTS)
    return tmp_path / "d", replay


def test_collected_play_comes_back_bit_for_bit(collected):
    folder, replay = collected
    data, found = open_data(settings(folder, 2)), read(settings(folder, 2))
    assert (data.env, data.spec.num_actions, data.spec.action_names) == (
        "gymnax:Catch-bsuite",
        5,
        ("a", "b", "c", "d", "e"),
    )
    for name in COLUMNS:
        np.testing.assert_array_equal(found.columns[name], replay.columns[name])
    assert found.num_episodes == replay.num_episodes


def test_collected_images_are_resized_and_nothing_else_changes(collected):
    folder, replay = collected
    found = read(settings(folder))
    assert found.columns["image"].shape == (20, 3, SIZE, SIZE, 3)
    expected = np.rint(resize_area(replay.columns["image"][7, 1], SIZE))
    np.testing.assert_array_equal(found.columns["image"][7, 1], expected)
    for name in COLUMNS.keys() - {"image"}:
        np.testing.assert_array_equal(found.columns[name], replay.columns[name])
    assert found.num_episodes == replay.num_episodes


def test_the_run_is_named_after_its_data(tmp_path, monkeypatch):
    folder = tmp_path / "my videos"
    folder.mkdir()
    monkeypatch.chdir(folder)
    for data, name in ((".", "my-videos"), (folder, "my-videos"), ("minari:own/a-v0", "a-v0")):
        config = dataclasses.replace(settings(data), preset="tiny")
        assert run_dir(config).name == f"tiny-{name}-0"


def test_data_decide_the_environment(collected, tmp_path):
    assert with_data(settings(collected[0])).env == "gymnax:Catch-bsuite"
    film(tmp_path / "a.mp4", 3)
    assert with_data(settings(tmp_path)).env == ""
    assert with_data(Config(env="crafter")).env == "crafter"


def test_videos_without_tables_have_one_action(tmp_path):
    film(tmp_path / "a.mp4", 4)
    film(tmp_path / "b.mp4", 3)
    data, replay = open_data(settings(tmp_path)), read(settings(tmp_path))
    assert (data.spec.num_actions, data.spec.action_names) == (1, ("none",))
    assert levels(replay) == [0, 1, 2, 3, 0, 1, 2]
    assert replay.columns["action"][:, 0].tolist() == [-1, 0, 0, 0, -1, 0, 0]
    assert np.flatnonzero(replay.columns["is_last"]).tolist() == [3, 6]
    assert not replay.columns["is_terminal"].any()
    assert not replay.columns["reward"].any()


TABLE = """action, reward, terminal
left, 1, 0
right, 2, 0
stay, 4, 1
left, 8, 0
right, 16, 0
"""


def test_the_action_of_a_row_leads_to_the_next_frame(tmp_path):
    film(tmp_path / "a.mp4", 6)
    (tmp_path / "a.csv").write_text(TABLE)
    data, replay = open_data(settings(tmp_path)), read(settings(tmp_path))
    assert data.spec.action_names == ("left", "right", "stay")
    assert levels(replay) == [0, 1, 2, 3, 4, 5]
    # Frame 3 ends the world: the action taken in it leads nowhere, frame 4 is a first one.
    assert replay.columns["action"][:, 0].tolist() == [-1, 0, 1, 2, -1, 1]
    assert replay.columns["reward"][:, 0].tolist() == [0, 1, 2, 4, 0, 16]
    assert replay.columns["is_first"][:, 0].tolist() == [True, False, False, False, True, False]
    assert replay.columns["is_terminal"][:, 0].tolist() == [False] * 3 + [True, False, False]
    assert replay.columns["is_last"][:, 0].tolist() == [False] * 3 + [True, False, True]


def test_an_episode_may_begin_with_the_last_frame(tmp_path):
    film(tmp_path / "a.mp4", 5)
    (tmp_path / "a.csv").write_text("action,terminal\n0,0\n1,0\n0,0\n1,1\n")
    (tmp_path / "b.csv").write_text("action,terminal\n0,0\n1,1\n0,0\n")
    film(tmp_path / "b.mp4", 4)
    replay = read(settings(tmp_path))
    assert levels(replay) == [0, 1, 2, 3, 4, 0, 1, 2, 3]
    assert replay.columns["action"][:, 0].tolist() == [-1, 0, 1, 0, 1, -1, 0, 1, -1]
    assert np.flatnonzero(replay.columns["is_terminal"]).tolist() == [4, 7]
    assert np.flatnonzero(replay.columns["is_first"]).tolist() == [0, 5, 8]
    assert np.flatnonzero(replay.columns["is_last"]).tolist() == [4, 7, 8]
    assert replay.num_episodes == 3


def test_skipped_frames_keep_their_rewards_and_the_end(tmp_path):
    film(tmp_path / "a.mp4", 6)
    (tmp_path / "a.csv").write_text(TABLE)
    replay = read(settings(tmp_path, frame_skip=2))
    # Episodes 0 … 3 and 4, 5: every second frame, and the terminal one.
    assert levels(replay) == [0, 2, 3, 4]
    assert replay.columns["action"][:, 0].tolist() == [-1, 0, 2, -1]
    assert replay.columns["reward"][:, 0].tolist() == [0, 3, 4, 0]
    assert replay.columns["is_terminal"][:, 0].tolist() == [False, False, True, False]


def test_actions_that_are_numbers_keep_them(tmp_path):
    film(tmp_path / "a.mp4", 4)
    (tmp_path / "a.csv").write_text("action\n0\n4\n2\n1\n")  # a row for the last frame too
    data, replay = open_data(settings(tmp_path)), read(settings(tmp_path))
    assert (data.spec.num_actions, data.spec.action_names) == (5, ())
    assert replay.columns["action"][:, 0].tolist() == [-1, 0, 4, 2]


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (None, "is no folder: give one that emerald-jax collect wrote"),
        ({}, r"holds neither dataset.json nor \.mp4"),
        ({"dataset.json": "{}"}, "dataset.json cannot be read: 'replay'"),
        ({"a.mp4": "no film"}, "a.mp4 cannot be read as a video: .*Invalid data"),
        ({"a.mp4": 1}, "fewer than two frames"),
        ({"a.mp4": 3, "b.mp4": 3, "a.csv": "action\n0\n1\n"}, "b.csv is missing: give every video"),
        ({"a.mp4": 3, "a.csv": "action\n0\n"}, "a.csv has 1 rows and a.mp4 3 frames"),
        ({"a.mp4": 3, "a.csv": "key\n0\n1\n"}, "line 2: no action; the header must name action"),
        ({"a.mp4": 3, "a.csv": "action,reward\n0,x\n1,0\n"}, "line 2: reward is 'x'"),
        ({"a.mp4": 3, "a.csv": "action,reward\n0,nan\n1,0\n"}, "must be finite"),
    ],
)
def test_other_data_are_refused_in_one_line(tmp_path, files, message):
    folder = tmp_path / "d"
    if files is not None:
        folder.mkdir()
    for name, content in (files or {}).items():
        if isinstance(content, int):
            film(folder / name, content)
        else:
            (folder / name).write_text(content)
    with pytest.raises(ConfigError, match=message) as error:
        open_data(settings(folder))
    assert "\n" not in str(error.value)


@pytest.fixture
def minari(tmp_path, monkeypatch):
    """:func:`write_minari`, into a folder of this test; skipped without the package."""
    pytest.importorskip("minari", reason="the extra `minari` is not installed")
    pytest.importorskip("h5py")
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    return write_minari


@pytest.mark.filterwarnings("ignore")  # minari's own, about authors
def test_a_minari_data_set_is_read(minari):
    episodes = minari("own/frames-v0")
    config = settings("minari:own/frames-v0")
    data, replay = open_data(config), read(config)
    assert (data.env, data.rows, data.spec.num_actions) == ("", 7, 3)
    json.dumps(data.spec.num_actions)  # it is saved with a run
    image = np.rint(resize_area(episodes[1][0][0], SIZE))
    np.testing.assert_array_equal(replay.columns["image"][4, 0], image)
    first, second = ([-1, *(int(a) - 1 for a in taken)] for _, taken in episodes)
    assert replay.columns["action"][:, 0].tolist() == [*first, *second]
    assert replay.columns["reward"][:, 0].tolist() == [0, 1, 2, 3, 0, 1, 2]
    assert np.flatnonzero(replay.columns["is_terminal"]).tolist() == [3]
    assert np.flatnonzero(replay.columns["is_last"]).tolist() == [3, 6]
    assert np.flatnonzero(replay.columns["is_first"]).tolist() == [0, 4]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("space", "sizes", "names"),
    [
        (Box(-2, 6, (2,), np.float32), (0, 0), ("action 1", "action 2")),
        (Box(0, 9, (), np.int64), (0,), ("action",)),
        (MultiDiscrete([3, 4], start=[1, 0]), (3, 4), ("action 1", "action 2")),
        (MultiBinary(2), (2, 2), ("action 1", "action 2")),
        (Tuple([Discrete(4, start=-1)]), (4,), ()),
        (  # Minari sorts the keys of a Dict
            Dict(press=Tuple([Discrete(3, start=1), MultiBinary(1)]), turn=Box(-1, 1, (2, 1))),
            (3, 2, 0, 0),
            ("press 1", "press 2", "turn 1", "turn 2"),
        ),
    ],
)
def test_actions_of_every_kind_are_read(minari, space, sizes, names):
    (_, first), (_, second) = minari("own/kinds-v0", actions=space)
    config = settings("minari:own/kinds-v0")
    spec = open_data(config).spec
    assert (spec.actions.sizes, spec.action_names) == (sizes, names)
    found = read(config).columns["action"][:, 0]
    assert np.flatnonzero(absent(found)).tolist() == [0, 4]
    for row, wanted in zip(found[[1, 2, 3, 5, 6]], first + second, strict=True):
        given = own_action(space, iter(np.ravel(row).tolist()))  # as the environment gets it
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), given, wanted)


@pytest.mark.filterwarnings("ignore")
def test_numbers_outside_their_bounds_are_cut_and_others_refused(minari):
    numbers = Box(0, 2, (1,), np.float32)
    taken = iter([1.0, 2.5, 0.0, 2.0, -1.0])
    minari("own/wide-v0", actions=numbers, sample=lambda: np.float32([next(taken)]))
    found = read(settings("minari:own/wide-v0")).columns["action"][:, 0, 0]
    np.testing.assert_array_equal(found, [np.nan, 0, 1, -1, np.nan, 1, -1])
    minari("own/nan-v0", actions=numbers, sample=lambda: np.float32([np.nan]))
    minari("own/far-v0", actions=Discrete(3, start=1), sample=lambda: np.int64(4))
    for name in ("nan", "far"):
        with pytest.raises(ConfigError, match=f"own/{name}-v0 holds actions outside of its space"):
            read(settings(f"minari:own/{name}-v0"))


@pytest.mark.filterwarnings("ignore")
def test_unsuitable_minari_data_are_refused(minari):
    minari("own/endless-v0", actions=Box(-np.inf, np.inf, (2,)))
    with pytest.raises(EnvError, match=r"takes Box\[2\] float32: give it finite bounds"):
        open_data(settings("minari:own/endless-v0"))
    minari("own/vector-v0", space=Box(0, 1, (4,)))
    with pytest.raises(EnvError, match="not a grey or RGB image"):
        open_data(settings("minari:own/vector-v0"))
    with pytest.raises(ConfigError, match="minari download own/missing-v0"):
        open_data(settings("minari:own/missing-v0"))


def test_minari_is_an_extra(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "minari", None)
    with pytest.raises(ConfigError, match=r"pip install 'emerald-jax\[minari\]'"):
        open_data(settings("minari:own/frames-v0"))


def test_a_data_set_without_action_names_is_read(collected):
    folder, _ = collected
    facts = json.loads((folder / "dataset.json").read_text())
    del facts["action_names"]  # older versions did not write them
    (folder / "dataset.json").write_text(json.dumps(facts))
    assert open_data(settings(folder)).spec.action_names == ()
