"""The families of environments that come with the package, one adapter each.

An adapter's module, and with it the package it adapts, is imported when one of its names is used.

From an environment's name to running environments.

Grammar: ``crafter``; ``family:game``, such as ``gymnax:Catch-bsuite``; a name given to
:func:`register`; ``my_module:make_env``, where that is importable and makes a Gymnasium
environment.
"""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from emerald_jax.config import EnvsConfig
from emerald_jax.envs.base import EnvError, EnvSpec, VectorEnv

if TYPE_CHECKING:
    import gymnasium


#: The 26 games of the Atari 100k benchmark; the package knows more.
ATARI_100K = (
    *("Alien", "Amidar", "Assault", "Asterix", "BankHeist", "BattleZone", "Boxing", "Breakout"),
    *("ChopperCommand", "CrazyClimber", "DemonAttack", "Freeway", "Frostbite", "Gopher", "Hero"),
    *("Jamesbond", "Kangaroo", "Krull", "KungFuMaster", "MsPacman", "Pong", "PrivateEye", "Qbert"),
    *("RoadRunner", "Seaquest", "UpNDown"),
)


@dataclass(frozen=True, kw_only=True)
class Family:
    """Environments that one adapter serves.

    Attributes:
        package: what must be importable.
        pip: the line that installs it.
        spec: ``spec(name, game, envs)``.
        make: ``make(name, game, envs, seed)``.
        games: known names after the colon; empty for a family without a colon.
        knows: whether a game that is not listed exists too; None when the list is complete.
        placeholder: stands in a list for games that cannot be listed.
        settings: optional settings of :class:`EnvsConfig` that the adapter obeys.
    """

    package: str
    pip: str
    spec: Callable[[str, str, EnvsConfig], EnvSpec]
    make: Callable[[str, str, EnvsConfig, int], VectorEnv]
    games: tuple[str, ...] = ()
    knows: Callable[[str], bool] | None = None
    placeholder: str = ""
    settings: tuple[str, ...] = ()


def own_spec(
    factory: Callable[[], gymnasium.Env], name: str, game: str, envs: EnvsConfig
) -> EnvSpec:
    """Spec of a user's own environment."""
    from emerald_jax.envs.gym import gym_spec, own_factory

    del game
    return gym_spec(name, partial(own_factory, name, factory, envs), envs)


def make_own(
    factory: Callable[[], gymnasium.Env], name: str, game: str, envs: EnvsConfig, seed: int
) -> VectorEnv:
    """A user's own environment behind the vector interface."""
    from emerald_jax.envs.gym import own_factory
    from emerald_jax.envs.host import make_host_vector_env

    spec = own_spec(factory, name, game, envs)
    return make_host_vector_env(spec, partial(own_factory, name, factory, envs), envs, seed=seed)


def _crafter_spec(name: str, game: str, envs: EnvsConfig) -> EnvSpec:
    from emerald_jax.envs.crafter import crafter_spec

    del game
    return crafter_spec(name, envs)


def _make_crafter(name: str, game: str, envs: EnvsConfig, seed: int) -> VectorEnv:
    from emerald_jax.envs.crafter import CrafterEnv
    from emerald_jax.envs.host import make_host_vector_env, runs_inline

    spec = _crafter_spec(name, game, envs)
    ahead = not runs_inline(envs)
    factory = partial(CrafterEnv, size=envs.image_size, length=spec.time_limit, ahead=ahead)
    preload = ["emerald_jax.envs.crafter_warm"]
    return make_host_vector_env(spec, factory, envs, seed=seed, preload=preload)


def _gymnax_spec(name: str, game: str, envs: EnvsConfig) -> EnvSpec:
    from emerald_jax.envs.gymnax import gymnax_spec

    return gymnax_spec(name, game, envs)


def _make_gymnax(name: str, game: str, envs: EnvsConfig, seed: int) -> VectorEnv:
    from emerald_jax.envs.gymnax import GymnaxVectorEnv

    return GymnaxVectorEnv(name, game, envs, seed=seed)


def _gymnax_knows(game: str) -> bool:
    return game in importlib.import_module("gymnax").registered_envs


def _gym_spec(name: str, game: str, envs: EnvsConfig) -> EnvSpec:
    from emerald_jax.envs.gym import gym_factory, gym_spec

    return gym_spec(name, partial(gym_factory, name, game, envs), envs)


def _make_gym(name: str, game: str, envs: EnvsConfig, seed: int) -> VectorEnv:
    from emerald_jax.envs.gym import gym_factory
    from emerald_jax.envs.host import make_host_vector_env

    spec = _gym_spec(name, game, envs)
    return make_host_vector_env(spec, partial(gym_factory, name, game, envs), envs, seed=seed)


def _atari_spec(name: str, game: str, envs: EnvsConfig) -> EnvSpec:
    from emerald_jax.envs.atari import atari_spec

    return atari_spec(name, game, envs)


def _make_atari(name: str, game: str, envs: EnvsConfig, seed: int) -> VectorEnv:
    from emerald_jax.envs.atari import AtariGames

    return AtariGames(name, game, envs, seed=seed)


def _atari_knows(game: str) -> bool:
    from emerald_jax.envs.atari import rom_of

    return rom_of(game) is not None


def _craftax_spec(name: str, game: str, envs: EnvsConfig) -> EnvSpec:
    from emerald_jax.envs.craftax import craftax_spec

    return craftax_spec(name, game, envs)


def _make_craftax(name: str, game: str, envs: EnvsConfig, seed: int) -> VectorEnv:
    from emerald_jax.envs.craftax import CraftaxVectorEnv

    return CraftaxVectorEnv(name, game, envs, seed=seed)


FAMILIES = {
    "atari": Family(
        package="ale_py",
        pip="pip install ale-py",
        spec=_atari_spec,
        make=_make_atari,
        games=ATARI_100K,
        knows=_atari_knows,
        settings=("frame_skip",),
    ),
    "crafter": Family(
        package="crafter",
        pip="pip install crafter numba",
        spec=_crafter_spec,
        make=_make_crafter,
    ),
    "craftax": Family(
        package="craftax",
        pip="pip install 'emerald-jax[craftax]'",
        spec=_craftax_spec,
        make=_make_craftax,
        games=("Craftax-Classic-Pixels-v1", "Craftax-Pixels-v1"),
    ),
    "gym": Family(
        package="gymnasium",
        pip="pip install gymnasium",
        spec=_gym_spec,
        make=_make_gym,
        knows=lambda game: True,
        placeholder="gym:ANY-ID",
        settings=("frame_skip", "image_key"),
    ),
    "gymnax": Family(
        package="gymnax",
        pip="pip install gymnax six",
        spec=_gymnax_spec,
        make=_make_gymnax,
        games=(
            "Catch-bsuite",
            "DeepSea-bsuite",
            "Asterix-MinAtar",
            "Breakout-MinAtar",
            "Freeway-MinAtar",
            "Seaquest-MinAtar",
            "SpaceInvaders-MinAtar",
        ),
        knows=_gymnax_knows,
    ),
}


_OWN: dict[str, Family] = {}
#: Settings that not every adapter obeys.
_OPTIONAL = ("frame_skip", "image_key")


class EnvEntry(NamedTuple):
    """One line of the list of environments.

    Attributes:
        name: what to write for ``env``.
        available: the package it needs is installed.
        pip: the line that installs it.
    """

    name: str
    available: bool
    pip: str


def make_vector_env(name: str, envs: EnvsConfig, *, seed: int) -> VectorEnv:
    """``envs.count`` environments called ``name`` behind one interface.

    Args:
        name: such as ``crafter`` or ``gymnax:Catch-bsuite``.
        envs: count, image size, time limit and where host environments run.
        seed: of all that is random in the environments.

    Raises:
        EnvError: on an unknown name, a missing package, a setting that the environment cannot
            obey, or an environment that cannot be shown as an image or has no discrete actions.
    """
    family, game = _find(name)
    _check_settings(name, family, envs)
    try:
        return family.make(name, game, envs, seed)
    except ModuleNotFoundError as error:
        raise _missing(name, family, error) from error


def make_vector_env_of(
    name: str, factory: Callable[[], gymnasium.Env], envs: EnvsConfig, *, seed: int
) -> VectorEnv:
    """As :func:`make_vector_env`, from a factory instead of a name.

    Args:
        name: for messages.
        factory: makes one Gymnasium environment with an image observation and discrete actions.
        envs: count, image size and key, frame skip, time limit and where environments run.
        seed: of all that is random in the environments.

    Raises:
        EnvError: when the environment cannot be made, shown or controlled.
    """
    return make_own(factory, name, "", envs, seed)


def spec_of(name: str, envs: EnvsConfig) -> EnvSpec:
    """Spec of an environment without starting workers; arguments and errors as above."""
    family, game = _find(name)
    _check_settings(name, family, envs)
    try:
        return family.spec(name, game, envs)
    except ModuleNotFoundError as error:
        raise _missing(name, family, error) from error


def register(name: str, factory: Callable[[], gymnasium.Env]) -> None:
    """Give an environment of your own a name for this process.

    A second registration of a name replaces the first.

    Args:
        name: what to write for ``env``.
        factory: makes one Gymnasium environment with an image observation and discrete actions;
            called without arguments, in worker processes too.

    Raises:
        EnvError: when the name is taken by the package, or the factory cannot be called.
    """
    if not name or name.partition(":")[0] in FAMILIES or name.split() != [name]:
        raise EnvError(f"{name!r} cannot be registered: choose one word that no family begins with")
    if not callable(factory):
        raise EnvError(f"the factory of {name} is a {type(factory).__name__}, not callable")
    _OWN[name] = _own_family(factory)


def list_envs() -> tuple[EnvEntry, ...]:
    """Every environment known by name, and whether this machine can run it."""
    entries = []
    for prefix, family in FAMILIES.items():
        available = importlib.util.find_spec(family.package) is not None
        names = [family.placeholder] if family.placeholder else _names(prefix, family)
        entries += [EnvEntry(name, available, family.pip) for name in names]
    return (*entries, *(EnvEntry(name, True, "") for name in _OWN))


def _find(name: str) -> tuple[Family, str]:
    """The family of ``name`` and what follows the colon."""
    if name in _OWN:
        return _OWN[name], ""
    prefix, _, game = name.partition(":")
    family = FAMILIES.get(prefix)
    if family is None:
        factory = _import_factory(prefix, game)
        if factory is not None:
            return _own_family(factory), ""
    elif _serves(family, game):
        return family, game
    raise EnvError(f"unknown environment {name}{_nearest(name)}")


def _serves(family: Family, game: str) -> bool:
    """Whether there is such a game; True too when the package is not there to be asked."""
    if not game:
        return not family.games and family.knows is None
    try:
        return game in family.games or (family.knows is not None and family.knows(game))
    except ModuleNotFoundError:
        return True


def _check_settings(name: str, family: Family, envs: EnvsConfig) -> None:
    """Refuse settings that would be ignored."""
    for setting in _OPTIONAL:
        value, default = getattr(envs, setting), getattr(EnvsConfig, setting)
        if value != default and setting not in family.settings:
            raise EnvError(f"{name} does not support envs.{setting}: leave it at {default!r}")


def _own_family(factory: Callable[[], Any]) -> Family:
    return Family(
        package="gymnasium",
        pip="pip install gymnasium",
        spec=partial(own_spec, factory),
        make=partial(make_own, factory),
        settings=_OPTIONAL,
    )


def _import_factory(module: str, attribute: str) -> Callable[[], Any] | None:
    """What ``module:attribute`` names; None when there is no such module.

    Raises:
        EnvError: when the module fails to import, or holds nothing callable of that name.
    """
    names = [*module.split("."), *attribute.split(".")]
    if not all(name.isidentifier() for name in names):
        return None
    # The installed command has its own folder on the path, not the one it is called from.
    if os.getcwd() not in sys.path and "" not in sys.path:
        sys.path.append(os.getcwd())
    try:
        found: Any = importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name and f"{module}.".startswith(f"{error.name}."):
            return None
        raise EnvError(f"{module} cannot be imported: {error}") from error
    except Exception as error:  # It is the user's module: whatever it raises is theirs to read.
        raise EnvError(f"{module} raised {type(error).__name__}: {error}") from error
    for name in attribute.split("."):
        known, found = dir(found), getattr(found, name, None)
        if not callable(found):
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"; nearest: {near[0]}" if near else ""
            raise EnvError(f"{module} holds no factory {attribute}{hint}")
    return found


def _nearest(name: str) -> str:
    """``; nearest: …``, compared in lower case with whole names and with bare game names."""
    candidates = {own.lower(): own for own in _OWN}
    for prefix, family in FAMILIES.items():
        for full in _names(prefix, family):
            game = full.partition(":")[2].lower()
            for alias in (full.lower(), game, game.partition("-")[0]):
                candidates.setdefault(alias, full)
    candidates.pop("", None)
    near = difflib.get_close_matches(name.lower(), candidates, n=1, cutoff=0.5)
    if near:
        return f"; nearest: {candidates[near[0]]}"
    known = [f"{p}:GAME" if f.games or f.knows else p for p, f in FAMILIES.items()]
    return f"; known: {', '.join([*sorted(known), *_OWN, 'my_module:make_env'])}"


def _names(prefix: str, family: Family) -> list[str]:
    if family.placeholder:
        return []
    return [f"{prefix}:{game}" for game in family.games] or [prefix]


def _missing(name: str, family: Family, error: ModuleNotFoundError) -> EnvError:
    """Which package to install; the one that failed may be a dependency nobody declared."""
    package = (error.name or family.package).partition(".")[0]
    pip = family.pip if package == family.package else f"pip install {package}"
    return EnvError(f"{name} needs the package {package}, which is not installed: {pip}")
