"""``emerald-jax check-env``: 0 for a sound environment, else 2 and the broken rules."""

import numpy as np
import pytest

from emerald_jax import cli
from emerald_jax.envs import registry


@pytest.fixture
def own(monkeypatch):
    monkeypatch.setattr(registry, "_OWN", {})
    return registry.register


def test_a_sound_environment(own, scripted_env, capsys):
    own("scripted", scripted_env)
    assert cli.main(["check-env", "scripted", "--image-size", "4", "--steps", "20"]) == 0
    out = capsys.readouterr().out
    assert "scripted: 4x4 RGB images, 5 actions, no time limit known" in out
    assert "sound: 20 vector steps of 2 environments" in out


def test_a_broken_environment_is_listed_with_its_broken_rules(own, scripted_env, capsys):
    class Still(scripted_env):
        def image(self, action):
            return np.full((4, 4, 3), 99, np.uint8)

    own("still", Still)
    assert cli.main(["check-env", "still", "--image-size", "4", "--steps", "9"]) == 2
    assert "broken: the image never changes\n" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ("", "the following arguments are required: NAME"),
        ("craffter", "unknown environment craffter; nearest: crafter"),
        ("crafter --steps 1", "--steps is 1: it must be at least 2"),
        ("crafter --time-limit -1", "--time-limit is -1: it must be at least 0"),
        ("crafter --image-key render", "crafter does not support envs.image_key"),
        ("gym:CartPole-v1", "gym:CartPole-v1 observes Box[4] float32, not a grey or RGB image"),
    ],
)
def test_wrong_arguments_end_in_one_line(arguments, line, capsys):
    assert cli.main(["check-env", *arguments.split()]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"emerald-jax: {line}")
    assert error.count("\n") == 1
