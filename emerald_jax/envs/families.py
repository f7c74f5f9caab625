"""The families of environments that come with the package, one adapter each.

An adapter's module, and with it the package it adapts, is imported when one of its names is used.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from emerald_jax.config import EnvsConfig
from emerald_jax.envs.base import EnvSpec, VectorEnv

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
    from emerald_jax.envs.vector import make_host_vector_env

    spec = own_spec(factory, name, game, envs)
    return make_host_vector_env(spec, partial(own_factory, name, factory, envs), envs, seed=seed)


def _crafter_spec(name: str, game: str, envs: EnvsConfig) -> EnvSpec:
    from emerald_jax.envs.crafter import crafter_spec

    del game
    return crafter_spec(name, envs)


def _make_crafter(name: str, game: str, envs: EnvsConfig, seed: int) -> VectorEnv:
    from emerald_jax.envs.crafter import CrafterEnv
    from emerald_jax.envs.vector import make_host_vector_env, runs_inline

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
    from emerald_jax.envs.vector import make_host_vector_env

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
