"""``emerald-jax train PRESET [--settings]``."""

from __future__ import annotations

import sys

from emerald_jax.commands.words import complain, preset_list
from emerald_jax.settings import parse_train


def run(words: list[str]) -> int:
    """Train, or continue a run; returns what the run ended with."""
    if not words:
        complain("name a preset, such as: emerald-jax train quickstart")
        sys.stderr.write(preset_list())
        return 2
    config = parse_train(words)
    config.validate(max(1, config.devices))
    from emerald_jax.saving.rundir import check_run_dir

    check_run_dir(config)
    from emerald_jax.training.loop import train

    return train(config).exit_code
