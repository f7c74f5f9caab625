"""Recorded data that a run trains on without an environment: ``emerald-jax train PRESET --data``.

Three kinds are read: what ``emerald-jax collect`` writes, a folder of videos, and a Minari data
set. All become rows of the replay, with images of the preset's size; a run saves them with its
first checkpoint, so the data themselves are read once.

A folder of videos holds ``NAME.mp4`` and, for each or for none of them, ``NAME.csv`` with a header
and one row per frame (that of the last frame may be missing): ``action``, taken in this frame, a
number or a name; optionally ``reward``, which the action gave; optionally ``terminal``, 1 where the
action ended the world, so that the next frame is an episode's last one.
"""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import json
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import gymnasium
import numpy as np
from gymnasium.spaces import Box, Dict, Tuple

from emerald_jax.actions import ActionSpace
from emerald_jax.config import Config, ConfigError
from emerald_jax.envs.base import EnvSpec, square_spec
from emerald_jax.run.directory import (
    DATASET_FILE,
    EXPORT_FILE,
    CheckpointError,
    DamagedError,
    run_dir,
    saved_config,
    saved_steps,
)

if TYPE_CHECKING:
    from emerald_jax.replay import Replay

MINARI = "minari:"
VIDEO, TABLE = ".mp4", ".csv"
#: The only action of videos without tables.
NO_ACTION = ("none",)
#: Rows resized at once.
_BLOCK = 256


class Data(NamedTuple):
    """Recorded data, not read yet.

    Attributes:
        spec: its images, at the preset's size, and its actions.
        env: name of the environment in which it was recorded; empty where there is none.
        num_envs: environments recorded side by side, E.
        rows: records of each of them.
        fill: ``fill(replay)`` writes all of them into an empty replay; yields between parts.
    """

    spec: EnvSpec
    env: str
    num_envs: int
    rows: int
    fill: Callable[[Replay], Iterator[None]]


def with_data(config: Config) -> Config:
    """``config`` with the environment that its data name; unchanged without data.

    A run that has a checkpoint no longer needs its data. ConfigError if there are no such data.
    """
    if not config.data:
        return config
    logdir = run_dir(config)
    saved = saved_config(logdir) if saved_steps(logdir) else None
    resumed = saved is not None and saved.data == config.data
    return dataclasses.replace(config, env=saved.env if resumed else open_data(config).env)


def open_data(config: Config) -> Data:
    """The data of ``--data``; ConfigError if there are none that this package reads."""
    if config.data.startswith(MINARI):
        return _open_minari(config, config.data.removeprefix(MINARI))
    folder = Path(config.data).expanduser()
    if (folder / DATASET_FILE).is_file():
        return _open_collected(config, folder)
    videos = sorted(folder.glob(f"*{VIDEO}"))
    if videos:
        return _open_videos(config, videos)
    if not folder.is_dir():
        raise ConfigError(f"--data {config.data} is no folder: {_KINDS}")
    raise ConfigError(f"--data {config.data} holds neither {DATASET_FILE} nor {VIDEO}: {_KINDS}")


_KINDS = (
    "give one that emerald-jax collect wrote, a folder of mp4 videos, or "
    f"{MINARI}NAME of a local Minari data set"
)


def _spec(
    config: Config, env: str, actions: int, names: Sequence[str] = (), sizes: Sequence[int] = ()
) -> EnvSpec:
    size = config.envs.image_size
    return EnvSpec(
        name=env or config.data,
        image_shape=(size, size, 3),
        num_actions=int(actions),
        action_names=tuple(names),
        action_sizes=tuple(sizes),
    )


def _open_collected(config: Config, folder: Path) -> Data:
    """What ``emerald-jax collect`` wrote."""
    try:
        facts = json.loads((folder / DATASET_FILE).read_text(encoding="utf-8"))
        manifest, env, actions = facts["replay"], facts["env"], facts["num_actions"]
        rows, shape = manifest["written"] - manifest["oldest"], tuple(manifest["image_shape"])
        names, count = facts.get("action_names", ()), manifest["num_envs"]
        sizes = facts.get("action_sizes", ())
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{folder / DATASET_FILE} cannot be read: {error}") from error
    spec = _spec(config, env, actions, names, sizes)

    def fill(replay: Replay) -> Iterator[None]:
        from emerald_jax.run.recordings import read_dataset

        if shape == spec.image_shape:
            read_dataset(folder, into=replay)
            return
        found = read_dataset(folder).replay
        for low in range(0, rows, _BLOCK):
            part = slice(low, low + _BLOCK)
            columns = {name: column[part] for name, column in found.columns.items()}
            images = columns["image"]
            flat = [_resized(x, spec) for x in images.reshape(-1, *shape)]
            columns["image"] = np.reshape(flat, (*images.shape[:2], *spec.image_shape))
            for name, column in columns.items():
                replay.columns[name][part] = column
            yield
        replay.restore(written=rows, oldest=0, holes=found.holes)

    return Data(spec, env, count, rows, fill)


def _resized(image: np.ndarray, spec: EnvSpec) -> np.ndarray:
    """`[height, width, 3]` uint8 at the size of ``spec``, by area."""
    from emerald_jax.envs.gym import resize_area

    if image.shape == spec.image_shape:
        return image
    return np.rint(resize_area(image, spec.image_shape[0])).clip(0, 255).astype(np.uint8)


class _Table(NamedTuple):
    """The table of one video: a value per frame but the last, or none at all."""

    action: list[str]
    reward: np.ndarray
    terminal: np.ndarray


def _open_videos(config: Config, videos: list[Path]) -> Data:
    """A folder of videos; each is one episode, or several where its table ends some."""
    tables = [video.with_suffix(TABLE) for video in videos]
    given = [table for table in tables if table.is_file()]
    if given and len(given) < len(videos):
        missing = next(table for table in tables if not table.is_file())
        raise ConfigError(f"{missing} is missing: give every video a table of actions, or none")
    read = [_read_table(table) for table in given]
    taken = sorted({action for table in read for action in table.action})
    names = tuple(taken) if read else NO_ACTION
    if taken and all(name.isdecimal() for name in taken):
        count, numbers, names = max(map(int, taken)) + 1, {name: int(name) for name in taken}, ()
    else:
        count, numbers = len(names), {name: number for number, name in enumerate(names)}
    skip, parts = config.envs.frame_skip or 1, []
    for number, video in enumerate(videos):
        frames = sum(1 for _ in _frames(video, 2))
        if frames < 2:
            raise ConfigError(f"{video} holds fewer than two frames that can be read")
        table = read[number] if read else _Table([], np.zeros(frames - 1), np.zeros(frames - 1))
        if read and len(table.action) not in (frames - 1, frames):
            raise ConfigError(
                f"{given[number]} has {len(table.action)} rows and {video.name} {frames} frames: "
                "give one row per frame"
            )
        parts.append((video, *_columns_of(table, frames, skip, numbers)))
    spec = _spec(config, "", count, names)

    def fill(replay: Replay) -> Iterator[None]:
        row = 0
        for video, kept, columns in parts:
            first, wanted = row, iter(kept.tolist())
            at = next(wanted)
            for index, frame in enumerate(_frames(video, spec.image_shape[0])):
                if index == at:
                    replay.columns["image"][row, 0] = frame
                    row, at = row + 1, next(wanted, -1)
                if not index % _BLOCK:
                    yield
            for name, column in columns.items():
                replay.columns[name][first:row, 0] = column
        replay.restore(written=row, oldest=0, holes=())

    return Data(spec, "", 1, sum(len(kept) for _, kept, _ in parts), fill)


def _read_table(path: Path) -> _Table:
    """A video's table; ConfigError, with the line, where it is malformed."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = list(csv.DictReader(file, skipinitialspace=True))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ConfigError(f"{path} cannot be read: {error}") from error
    action, values = [], {"reward": [], "terminal": []}
    for line, row in enumerate(rows, 2):
        if not row.get("action"):
            raise ConfigError(f"{path}, line {line}: no action; the header must name action")
        action.append(row["action"].strip())
        for name, column in values.items():
            try:
                column.append(float(row.get(name) or 0))
            except ValueError as error:
                raise ConfigError(f"{path}, line {line}: {name} is {row[name]!r}") from error
    if not np.isfinite(np.concatenate([*values.values()])).all():
        raise ConfigError(f"{path}: rewards and terminals must be finite numbers")
    return _Table(action, *(np.array(column) for column in values.values()))


def _columns_of(
    table: _Table, frames: int, skip: int, numbers: dict[str, int]
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """The frames of a video that are kept, `[T]`, and the other columns of their records.

    Every ``skip``-th frame of an episode is kept, and its last one if it is terminal. An action is
    the one taken in the kept frame before; a reward is the sum since then.
    """
    steps = frames - 1
    ends = np.flatnonzero(table.terminal[:steps]) + 1
    kept, columns = [], {"action": [], "reward": [], "is_first": []}
    terminal = np.zeros(frames, bool)
    terminal[ends] = True
    for start, stop in zip([0, *(ends + 1)], [*(ends + 1), frames], strict=True):
        episode = list(range(start, stop, skip))
        if stop > start and terminal[stop - 1] and episode[-1] != stop - 1:
            episode.append(stop - 1)
        for place, frame in enumerate(episode):
            before, action = frame, -1
            if place:  # the last frame of a video needs no row, and may be the first of an episode
                before = episode[place - 1]
                action = numbers[table.action[before]] if table.action else 0
            columns["action"].append(action)
            columns["reward"].append(table.reward[before:frame].sum())
            columns["is_first"].append(place == 0)
        kept += episode
    found = {name: np.array(column) for name, column in columns.items()}
    found["is_terminal"] = terminal[kept]
    found["is_last"] = np.append(found["is_first"][1:], True)
    return np.array(kept), found


def _frames(video: Path, size: int) -> Iterator[np.ndarray]:
    """Frames of a video, resized by area, `[size, size, 3]` uint8; none of them is repeated."""
    from imageio_ffmpeg import get_ffmpeg_exe

    command = [get_ffmpeg_exe(), "-v", "error", "-nostdin", "-i", str(video), "-map", "0:v:0"]
    command += ["-fps_mode", "passthrough", "-vf", f"scale={size}:{size}:flags=area"]
    command += ["-f", "rawvideo", "-pix_fmt", "rgb24", "-"]
    with tempfile.TemporaryFile() as errors:
        # In a process group of its own, so that Ctrl-C reaches this process alone.
        pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": errors}
        with subprocess.Popen(command, process_group=0, **pipes) as ffmpeg:
            try:
                while len(frame := ffmpeg.stdout.read(3 * size * size)) == 3 * size * size:
                    yield np.frombuffer(frame, np.uint8).reshape(size, size, 3)
            finally:
                if ffmpeg.poll() is None:
                    ffmpeg.stdout.close()
        if ffmpeg.returncode:
            errors.seek(0)
            reason = errors.read().decode(errors="replace").strip().rpartition("\n")[2]
            raise ConfigError(f"{video} cannot be read as a video: {reason}")


class _Playback(gymnasium.Env):
    """Recorded episodes as an environment, so that ``ImageEnv`` shows them as it shows others.

    :meth:`step` ignores its action. Observations may be dicts of arrays.
    """

    def __init__(self, observations: gymnasium.Space, actions: gymnasium.Space) -> None:
        self.observation_space, self.action_space = observations, actions
        self.episode, self._at = None, 0

    def reset(self, **_: Any) -> tuple[Any, dict[str, Any]]:
        """The first observation of :attr:`episode`."""
        self._at = 0
        return self._observation(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """The next recorded step."""
        del action
        at, episode, self._at = self._at, self.episode, self._at + 1
        flags = bool(episode.terminations[at]), bool(episode.truncations[at])
        return self._observation(), float(episode.rewards[at]), *flags, {}

    def _observation(self) -> Any:
        found = self.episode.observations
        if isinstance(found, dict):
            return {name: column[self._at] for name, column in found.items()}
        return found[self._at]


def _open_minari(config: Config, name: str) -> Data:
    """A Minari data set on this machine: images, and actions of every kind."""
    from emerald_jax.envs.gym import ImageEnv

    try:
        import minari

        found = minari.load_dataset(name)
    except ImportError as error:  # of minari, or of its reader
        extra = "pip install 'emerald-jax[minari]'"
        raise ConfigError(f"--data {config.data} needs the package minari: {extra}") from error
    except (OSError, ValueError) as error:
        way_out = f"minari download {name}"
        raise ConfigError(f"--data {config.data} is not on this machine: {way_out}") from error
    # Recorded steps are those of the agent: nothing is skipped or cut.
    envs = dataclasses.replace(config.envs, frame_skip=0, time_limit=0)
    played = _Playback(found.observation_space, found.action_space)
    shown, env, own = ImageEnv(played, config.data, envs), "", found.env_spec
    if own is not None:
        package = str(own.entry_point).replace(":", ".").partition(".")[0]
        env = f"gym:{own.id}" if package == "gymnasium" else f"gym:{package}:{own.id}"
    names, sizes = zip(*shown.entries, strict=True)
    actions = ActionSpace(sizes)
    spec = square_spec(env or config.data, envs, actions, 0, () if actions.discrete else names)

    def fill(replay: Replay) -> Iterator[None]:
        row = 0
        for episode in found.iterate_episodes():
            played.episode, first = episode, row
            image, reward, terminal = shown.reset()[0], 0.0, False
            for step in range(len(episode) + 1):
                if step:
                    image, reward, terminal, _, _ = shown.step(actions.idle())
                for key, value in (("image", image), ("reward", reward), ("is_terminal", terminal)):
                    replay.columns[key][row, 0] = value
                row += 1
            taken = _entries(found.action_space, episode.actions)
            taken = actions.checked(taken.reshape(-1, *actions.shape), len(episode))
            if actions.wrong(taken).any():
                raise ConfigError(f"--data {config.data} holds actions outside of its space")
            replay.columns["action"][first, 0] = actions.none()
            replay.columns["action"][first + 1 : row, 0] = taken
            replay.columns["is_first"][first, 0] = replay.columns["is_last"][row - 1, 0] = True
            yield
        replay.restore(written=row, oldest=0, holes=())

    return Data(spec, env, 1, int(found.total_steps + found.total_episodes), fill)


def _entries(space: gymnasium.Space, actions: Any) -> np.ndarray:
    """`[T, A]` classes (int64) or classes and numbers (float64) of T actions of ``space``.

    A Dict or Tuple has its parts stacked one by one. Numbers are not cut to [-1, 1].
    """
    if isinstance(space, Dict | Tuple):
        keys = space.keys() if isinstance(space, Dict) else range(len(space.spaces))
        return np.concatenate([_entries(space[key], actions[key]) for key in keys], axis=1)
    values = np.reshape(actions, (len(actions), -1))
    if isinstance(space, Box):
        low, high = space.low.ravel().astype(np.float64), space.high.ravel().astype(np.float64)
        return 2 * (values - low) / np.where(high > low, high - low, 1) - 1
    return values.astype(np.int64) - np.ravel(getattr(space, "start", 0))


def experience(config: Config, logdir: Path) -> tuple[EnvSpec, Replay, Iterator[None]]:
    """Spec and replay of a run, and an iterator that fills the replay with the run's data.

    The iterator is empty without data, and for a run that continues from a checkpoint: that has
    the records. ``config`` is that of :func:`with_data`. Raises as ``spec_of`` and ``Replay``.
    """
    from emerald_jax.envs.registry import spec_of
    from emerald_jax.replay import Replay

    compress, steps = config.replay.compress, saved_steps(logdir)
    if not config.data:
        spec = spec_of(config.env, config.envs)
        size = (config.replay.capacity, config.envs.count)
        shapes = (spec.image_shape, spec.action_sizes)
        return spec, Replay(*size, *shapes, compress=compress), iter(())
    if steps:
        spec, manifest = recorded_spec(logdir, config), _newest(logdir)["replay"]
        count, rows = manifest["num_envs"], manifest["written"]
    else:
        spec, _, count, rows, fill = open_data(config)
    shapes = (spec.image_shape, spec.action_sizes)
    replay = Replay(rows * count, count, *shapes, compress=compress)
    return spec, replay, iter(()) if steps else fill(replay)


def recorded_spec(source: Path, config: Config, checkpoint: int | None = None) -> EnvSpec:
    """The spec saved with weights that were trained on recordings; needs neither data nor package.

    ``source`` is a run directory or an export. CheckpointError if nothing sound is saved there.
    """
    metadata = _newest(source, checkpoint)
    saved = metadata.get("run", metadata)["spec"]  # an export has it at the top
    sizes = saved.get("action_sizes", ())
    return _spec(config, config.env, saved["num_actions"], saved["action_names"], sizes)


def _newest(source: Path, checkpoint: int | None = None) -> dict[str, Any]:
    """The metadata of an export, or of a run's checkpoint: the newest sound one."""
    from emerald_jax.run.checkpoint import Store

    if (source / EXPORT_FILE).is_file():
        return json.loads((source / EXPORT_FILE).read_bytes())
    store = Store(source, read_only=True)
    for step in reversed(store.steps()):
        with contextlib.suppress(DamagedError):
            if checkpoint in (None, step):
                return store.metadata(step)
    raise CheckpointError(f"no sound checkpoint in {store.directory}")
