"""What a benchmark may be asked: the words of the command, checked and typed."""

from __future__ import annotations

from dataclasses import dataclass, field

from emerald_jax.config import Config, ConfigError
from emerald_jax.presets import get_preset


@dataclass(frozen=True)
class Budget:
    """How long one number may take.

    Attributes:
        seconds: repeats go on until this many have passed, warm-up not counted ...
        least: ... but there are at least so many ...
        most: ... and at most so many.
    """

    seconds: float = 10.0
    least: int = 3
    most: int = 200


@dataclass(frozen=True, kw_only=True)
class Options:
    """How much to measure; the empty tuples mean "what the benchmark chooses on this machine".

    Attributes:
        preset: whose sizes are measured; empty leaves the choice to the benchmark.
        quick: a handful of points, a second each.
        full: the whole grid, also where it takes hours.
        seconds: budget of one number; 0 leaves the choice to the benchmark.
        decode_steps, horizons, starts, dtypes, devices, remat: points of the grid.
        minutes: length of the end-to-end run; 0 leaves the choice to the benchmark.
        envs: environments to step.
        counts: how many of them side by side.
        records: records in the replay.
    """

    preset: str = ""
    quick: bool = False
    full: bool = False
    seconds: float = 0.0
    decode_steps: tuple[int, ...] = ()
    horizons: tuple[int, ...] = ()
    starts: tuple[int, ...] = ()
    dtypes: tuple[str, ...] = ()
    devices: tuple[int, ...] = ()
    remat: tuple[bool, ...] = ()
    minutes: float = 0.0
    envs: tuple[str, ...] = ()
    counts: tuple[int, ...] = ()
    records: int = 0
    found: dict[str, float] = field(default_factory=dict)
    """What earlier benchmarks of this command found out: ``updates_per_s``."""

    def budget(self) -> Budget:
        """Of one number."""
        if self.quick:
            return Budget(self.seconds or 1.0, least=2)
        return Budget(self.seconds or 10.0)

    def config(self, otherwise: str = "crafter") -> Config:
        """The configuration whose sizes are measured.

        Args:
            otherwise: the preset when none was named. Quick on a CPU it is always
                ``crafter-small``: one update of the paper's takes a CPU the better part of a
                minute.
        """
        if self.quick and on_cpu():
            otherwise = "crafter-small"
        return get_preset(self.preset or otherwise)

    def check(self) -> None:
        """Refuse what cannot be measured, before anything is.

        Raises:
            ConfigError: naming the option.
        """
        if self.preset:
            get_preset(self.preset)
        if self.quick and self.full:
            raise ConfigError("--quick and --full exclude each other: choose one")
        for name, values, lowest in (
            ("--decode-steps", self.decode_steps, 0),
            ("--horizon", self.horizons, 1),
            ("--starts", self.starts, 1),
            ("--devices", self.devices, 1),
            ("--counts", self.counts, 1),
        ):
            for value in values:
                if value < lowest:
                    raise ConfigError(f"{name} {value}: it must be at least {lowest}")
        if self.seconds < 0 or self.minutes < 0 or self.records < 0:
            raise ConfigError("--seconds, --minutes and --records must not be negative")


def on_cpu() -> bool:
    """Whether this machine's devices are CPUs: there the grids are small."""
    import jax

    return jax.default_backend() == "cpu"


def device_counts(options: Options) -> tuple[int, ...]:
    """Numbers of devices to measure: those asked for, or 1, 2, 4, … up to all.

    Raises:
        ConfigError: when there are fewer than asked for.
    """
    import jax

    there = len(jax.local_devices())
    for count in options.devices:
        if count > there:
            raise ConfigError(f"--devices {count}: this machine has {there} JAX device(s)")
    if options.devices:
        return options.devices
    powers = [2**i for i in range(there.bit_length()) if 2**i < there]
    return (*powers, there)
