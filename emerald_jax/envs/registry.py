"""From an environment's name to running environments.

Names: ``crafter``; ``family:game``, such as ``gymnax:Catch-bsuite``; a name given to
:func:`register`; ``my_module:make_env``, an importable factory of a Gymnasium environment.
A family's module, and the package that it adapts, are imported when one of its names is used.
"""

from __future__ import annotations

import contextlib
import difflib
import importlib
import importlib.util
import os
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

from emerald_jax.config import EnvsConfig, nearest
from emerald_jax.envs.base import EnvError, EnvSpec, VectorEnv

if TYPE_CHECKING:
    from emerald_jax.envs.workers import EnvFactory

#: The 26 games of the Atari 100k benchmark; the package has more.
ATARI_100K = (
    *("Alien", "Amidar", "Assault", "Asterix", "BankHeist", "BattleZone", "Boxing", "Breakout"),
    *("ChopperCommand", "CrazyClimber", "DemonAttack", "Freeway", "Frostbite", "Gopher", "Hero"),
    *("Jamesbond", "Kangaroo", "Krull", "KungFuMaster", "MsPacman", "Pong", "PrivateEye", "Qbert"),
    *("RoadRunner", "Seaquest", "UpNDown"),
)
_MINATAR = ("Asterix", "Breakout", "Freeway", "Seaquest", "SpaceInvaders")
_GYMNAX = ("Catch-bsuite", "DeepSea-bsuite", *(f"{game}-MinAtar" for game in _MINATAR))
_CRAFTAX = ("Craftax-Classic-Pixels-v1", "Craftax-Pixels-v1")
PROCGEN = (
    *("bigfish", "bossfight", "caveflyer", "chaser", "climber", "coinrun", "dodgeball", "fruitbot"),
    *("heist", "jumper", "leaper", "maze", "miner", "ninja", "plunder", "starpilot"),
)
_DOOM = (
    *("Basic", "DeadlyCorridor", "DefendCenter", "DefendLine", "HealthGathering"),
    *("HealthGatheringSupreme", "MyWayHome", "PredictPosition", "TakeCover"),
)
_MINIWORLD = (
    *("CollectHealth", "FourRooms", "Hallway", "Maze", "MazeS2", "MazeS3", "MazeS3Fast"),
    *("OneRoom", "OneRoomS6", "OneRoomS6Fast", "PickupObjects", "PutNext", "RoomObjects"),
    *("Sidewalk", "Sign", "ThreeRooms", "TMaze", "TMazeLeft", "TMazeRight", "WallGap"),
    *("YMaze", "YMazeLeft", "YMazeRight"),
)
#: The 20 tasks of DreamerV3's benchmark from pixels; the suite has more.
DMC_VISION = (
    *("acrobot-swingup", "ball_in_cup-catch", "cartpole-balance", "cartpole-balance_sparse"),
    *("cartpole-swingup", "cartpole-swingup_sparse", "cheetah-run", "finger-spin"),
    *("finger-turn_easy", "finger-turn_hard", "hopper-hop", "hopper-stand", "pendulum-swingup"),
    *("quadruped-run", "quadruped-walk", "reacher-easy", "reacher-hard", "walker-run"),
    *("walker-stand", "walker-walk"),
)
#: Stands in the list of environments for games that cannot be listed.
_ANY = ("ANY-ID",)
#: Settings that not every family supports.
_GYM = ("frame_skip", "image_key", "both_ends")
_ATARI = ("frame_skip", "sticky", "full_actions")
_LEVELS = ("distribution_mode", "num_levels", "start_level", "backgrounds")
_CONTROL = ("frame_skip", "fast_render")
_OPTIONAL = tuple(dict.fromkeys((*_GYM, *_ATARI, *_LEVELS, *_CONTROL)))


class Family(NamedTuple):
    """Environments that one module of ``emerald_jax.envs`` adapts.

    The module has ``make_spec(name, game, envs)``, ``make_env(name, game, envs, seed=...,
    generation=...)`` and, where ``open_ended``, ``knows(game)``.

    Attributes:
        package: what must be importable.
        pip: what pip must install for it.
        games: listed names after the colon; empty for a family without a colon.
        open_ended: further games exist; the module's ``knows`` decides.
        settings: the optional settings of :class:`EnvsConfig` that it supports.
        module: of ``emerald_jax.envs``; empty if it has the family's name.
    """

    package: str
    pip: str
    games: tuple[str, ...] = ()
    open_ended: bool = False
    settings: tuple[str, ...] = ()
    module: str = ""


FAMILIES = {
    "atari": Family("ale_py", "ale-py", ATARI_100K, open_ended=True, settings=_ATARI),
    "crafter": Family("crafter", "crafter numba"),
    "craftax": Family("craftax", "'emerald-jax[craftax]'", _CRAFTAX),
    "dmc": Family(
        *("dm_control", "'emerald-jax[dmc]'", DMC_VISION),
        **dict(open_ended=True, settings=_CONTROL, module="worlds"),
    ),
    "gym": Family("gymnasium", "gymnasium", _ANY, settings=_GYM),
    "gymnax": Family("gymnax", "gymnax six", _GYMNAX, open_ended=True),
    "memory_maze": Family(
        "memory_maze",
        "'emerald-jax[memory-maze]'",
        ("9x9", "11x11", "13x13", "15x15"),
        settings=("frame_skip",),
        module="worlds",
    ),
    "miniworld": Family(
        "miniworld", "'emerald-jax[miniworld]'", _MINIWORLD, settings=_GYM, module="worlds"
    ),
    "procgen": Family("envpool", "'emerald-jax[procgen]'", PROCGEN, settings=_LEVELS),
    "vizdoom": Family("vizdoom", "'emerald-jax[vizdoom]'", _DOOM, settings=_GYM, module="worlds"),
}
#: Factories given to :func:`register`.
_OWN: dict[str, EnvFactory] = {}


class EnvEntry(NamedTuple):
    """A name for ``env``, whether its package is installed, and the command that installs it."""

    name: str
    available: bool
    pip: str


def make_vector_env(name: str, envs: EnvsConfig, *, seed: int, generation: int = 0) -> VectorEnv:
    """Start ``envs.count`` environments called ``name`` behind one interface.

    Args:
        name: such as ``crafter`` or ``gymnax:Catch-bsuite``.
        envs: count, image size, time limit and where host environments run.
        seed: of all randomness in the environments.
        generation: how often the run has been resumed: every resume plays other episodes.

    Raises:
        EnvError: on an unknown name, a missing package, a setting that the environment does not
            support, or an environment without an image or with unsupported actions.
    """
    return _call(name, "make_env", envs, seed=seed, generation=generation)


def make_vector_env_of(
    name: str, factory: EnvFactory, envs: EnvsConfig, *, seed: int, generation: int = 0
) -> VectorEnv:
    """As :func:`make_vector_env`, from a factory, which messages call ``name``."""
    from emerald_jax.envs.gym import make_env

    return make_env(name, factory, envs, seed=seed, generation=generation)


def spec_of(name: str, envs: EnvsConfig) -> EnvSpec:
    """Spec of an environment, without starting workers; see :func:`make_vector_env`."""
    return _call(name, "make_spec", envs)


def register(name: str, factory: EnvFactory) -> None:
    """Give an environment of your own a name in this process; replaces an earlier one.

    ``factory`` makes one Gymnasium environment with an image observation; it is called without
    arguments, in worker processes too. EnvError: the name is taken by the package, or the factory
    is not callable.
    """
    if not name or name.partition(":")[0] in FAMILIES or name.split() != [name]:
        raise EnvError(
            f"{name!r} cannot be registered: choose a name without spaces that does not begin "
            f"with one of {', '.join(FAMILIES)}"
        )
    if not callable(factory):
        raise EnvError(f"the factory of {name} is a {type(factory).__name__}, not callable")
    _OWN[name] = factory


def list_envs() -> tuple[EnvEntry, ...]:
    """Every environment known by name, and whether this machine can run it."""
    entries = []
    for prefix, family in FAMILIES.items():
        available = importlib.util.find_spec(family.package) is not None
        names = [f"{prefix}:{game}" for game in family.games] or [prefix]
        entries += [EnvEntry(name, available, f"pip install {family.pip}") for name in names]
    return (*entries, *(EnvEntry(name, True, "") for name in _OWN))


def _call(name: str, function: str, envs: EnvsConfig, **arguments: Any) -> Any:
    """Call ``make_spec`` or ``make_env`` of the family of ``name``; errors fit in one line."""
    prefix, game = _find(name)
    family = FAMILIES[prefix]
    for setting in _OPTIONAL:
        value, default = getattr(envs, setting), getattr(EnvsConfig, setting)
        if value != default and setting not in family.settings:
            raise EnvError(f"{name} does not support envs.{setting}: leave it at {default!r}")
    try:
        module = importlib.import_module(f".{family.module or prefix}", __package__)
        return getattr(module, function)(name, game, envs, **arguments)
    except ModuleNotFoundError as error:
        # It may be a dependency that the package does not declare.
        package = (error.name or family.package).partition(".")[0]
        pip = family.pip if package == family.package else package
        raise EnvError(
            f"{name} needs the package {package}, which is not installed: pip install {pip}"
        ) from error


def _find(name: str) -> tuple[str, str | Callable[[], Any]]:
    """The family of ``name``, and the game or the factory."""
    if name in _OWN:
        return "gym", _OWN[name]
    if not name:
        raise EnvError(f"unknown environment '' (recorded data may name none){_nearest(name)}")
    prefix, _, game = name.partition(":")
    if prefix not in FAMILIES:
        factory = _import_factory(prefix, game)
        if factory is not None:
            return "gym", factory
    elif _has(prefix, game):
        return prefix, game
    raise EnvError(f"unknown environment {name}{_nearest(name)}")


def _has(prefix: str, game: str) -> bool:
    """Whether there is such a game; True as well when the package to ask is not installed."""
    family = FAMILIES[prefix]
    if not game:
        return not family.games
    if game in family.games or family.games == _ANY:
        return True
    if not family.open_ended:
        return False
    try:
        module = importlib.import_module(f".{family.module or prefix}", __package__)
        return module.knows(game)
    except ModuleNotFoundError:
        return True


def _import_factory(module: str, attribute: str) -> Callable[[], Any] | None:
    """The callable named by ``module:attribute``; None when there is no such module."""
    from emerald_jax.envs.guards import env_code

    names = [*module.split("."), *attribute.split(".")]
    if not all(name.isidentifier() for name in names):
        return None
    # An installed command has its own directory on the path, not the one it is called from.
    with contextlib.suppress(OSError):  # it may have been deleted
        if os.getcwd() not in sys.path and "" not in sys.path:
            sys.path.append(os.getcwd())
    try:
        with env_code():
            found: Any = importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name and f"{module}.".startswith(f"{error.name}."):
            return None
        raise EnvError(f"{module} cannot be imported: {error}") from error
    except (Exception, SystemExit) as error:  # the user's module may raise anything
        raise EnvError(f"{module} raised {type(error).__name__}: {error}") from error
    for name in attribute.split("."):
        holder, found = found, getattr(found, name, None)
        if not callable(found):
            if hasattr(holder, name):
                raise EnvError(f"{module}:{attribute} is a {type(found).__name__}, not callable")
            raise EnvError(f"{module} holds no factory {attribute}{_near_in(holder, name, module)}")
    return found


def _near_in(holder: Any, name: str, module: str) -> str:
    """``; nearest: …`` among the functions and classes that ``module`` itself defines."""
    known = [
        key
        for key, value in getattr(holder, "__dict__", {}).items()
        if callable(value) and f"{getattr(value, '__module__', '')}.".startswith(f"{module}.")
    ]
    return nearest(name, known)


def _nearest(name: str) -> str:
    """``; nearest: …``, compared in lower case with full names and with bare game names."""
    candidates = {own.lower(): own for own in _OWN}
    for full in (entry.name for entry in list_envs() if entry.name != "gym:ANY-ID"):
        game = full.partition(":")[2].lower()
        for alias in (full.lower(), game, game.partition("-")[0]):
            candidates.setdefault(alias, full)
    candidates.pop("", None)
    near = []
    if name not in FAMILIES:
        near = difflib.get_close_matches(name.lower(), candidates, n=1, cutoff=0.5)
    if near:
        return f"; nearest: {candidates[near[0]]}"
    known = [f"{prefix}:GAME" if family.games else prefix for prefix, family in FAMILIES.items()]
    return f"; known: {', '.join([*sorted(known), *_OWN, 'my_module:make_env'])}"
