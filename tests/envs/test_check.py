import dataclasses
import functools

import numpy as np
import pytest

from emerald_jax.config import EnvsConfig
from emerald_jax.envs import EnvSpec, check_env, list_envs, make_vector_env
from emerald_jax.envs.host import make_host_vector_env

SMALL = EnvsConfig(count=2, image_size=4, workers="inline")


SPEC = EnvSpec(name="scripted", image_shape=(4, 4, 3), num_actions=5)


def settings(name):
    return EnvsConfig(count=2, time_limit=12, image_size=64 if name == "crafter" else 32)


@pytest.mark.parametrize(
    "name", [e.name for e in list_envs() if e.available and "ANY" not in e.name]
)
def test_every_registered_environment_passes(name):
    if name.startswith("craftax:"):
        pytest.skip("compiles for minutes: test_craftax.py checks it")
    if name.startswith(("dmc:", "memory_maze:", "miniworld:", "vizdoom:", "procgen:")):
        pytest.skip("its own file checks some of the family")
    assert check_env(name, settings(name), steps=40) == ()


def test_a_factory_passes(scripted_env):
    assert check_env(scripted_env, SMALL) == ()


class Broken:
    """A vector environment whose records are changed on their way out."""

    def __init__(self, env, change):
        self.env, self.change = env, change
        self.spec, self.num_envs, self.faults = env.spec, env.num_envs, 0
        self.step_async, self.close = env.step_async, env.close
        self.get_state, self.set_state = env.get_state, env.set_state

    def reset(self):
        return self.change(self.env.reset())

    def step_wait(self):
        return self.change(self.env.step_wait())

    def step(self, actions):
        return self.change(self.env.step(actions))


def replace(field, function):
    return lambda record: record._replace(**{field: function(record)})


def other_episodes(**changes):
    return replace(
        "episodes", lambda r: tuple(dataclasses.replace(e, **changes) for e in r.episodes)
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (replace("image", lambda r: r.image.astype(np.float32)), "image is float32"),
        (replace("image", lambda r: r.image[..., :1]), r"image is uint8 \(2, 4, 4, 1\), not uint8"),
        (replace("reward", lambda r: r.reward.astype(float)), "reward is float64"),
        (replace("reward", lambda r: r.reward * np.float32("nan")), "a reward is not finite"),
        (replace("reward", lambda r: r.reward + 1), "a first frame has a reward"),
        (replace("action", lambda r: r.action * 0), "action is not the one that was given"),
        (replace("is_first", lambda r: r.is_first & False), "not every record is a first frame"),
        (replace("is_first", lambda r: r.is_first | True), "is_first does not follow is_last"),
        (
            replace("is_last", lambda r: r.is_last | r.is_first),
            "a first frame is also a last frame",
        ),
        (replace("is_last", lambda r: r.is_last & False), "is_terminal without is_last"),
        (replace("image", lambda r: r.image * 0), "the image never changes"),
        (replace("image", lambda r: r.image % 7), "no pixel is above 6 of 255: these look like"),
        (replace("episodes", lambda r: ()), "episodes do not match is_last"),
        (other_episodes(length=7), "an episode of 2 steps reports length 7"),
        (other_episodes(score=7.5), r"rewards add up to 3\.0, it reports 7\.5"),
        (other_episodes(terminal=True), "`terminal` is not its last frame's is_terminal"),
        (other_episodes(extra={"a": np.int64(3)}), "not plain JSON: Object of type int64"),
        (other_episodes(extra={"a": float("nan")}), "not plain JSON"),
    ],
)
def test_broken_rules_are_found(scripted_env, change, message):
    env = make_host_vector_env(SPEC, scripted_env, SMALL, seed=0)
    assert check_env(env, steps=20) == ()
    findings = check_env(Broken(env, change), steps=20)
    assert all(isinstance(f, str) and "\n" not in f for f in findings)
    with pytest.raises(AssertionError, match=message):
        raise AssertionError("; ".join(findings))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image_shape": (4, 4)}, "spec.image_shape is"),
        ({"num_actions": 1}, "an agent needs a choice"),
        ({"action_names": ("a",)}, "1 names, not 5"),
        ({"time_limit": -1}, "time_limit is -1"),
        ({"time_limit": 2}, "an episode outlasts spec.time_limit 2"),
    ],
)
def test_broken_specs_are_found(scripted_env, changes, message):
    env = make_host_vector_env(SPEC, scripted_env, SMALL, seed=0)
    env.spec = dataclasses.replace(env.spec, **changes)
    (finding, *_) = check_env(env, steps=20)
    assert message in finding


def test_a_picture_that_never_changes_is_found(scripted_env):
    class Still(scripted_env):
        def image(self, action):
            return np.full((4, 4, 3), 99, np.uint8)

    assert check_env(Still, SMALL, steps=9) == ("the image never changes",)


def test_randomness_beside_the_seed_is_found(scripted_env):
    class Drifting(scripted_env):
        made = 0

        def __init__(self):
            super().__init__()
            Drifting.made += 1
            self.shift = Drifting.made

        def image(self, action):
            return super().image(action) + np.uint8(self.shift)

    assert check_env(Drifting, SMALL, steps=10) == (
        "two runs with seed 0 differ in image at record 0",
    )


def test_a_failure_is_a_finding(scripted_env):
    fails = functools.partial(scripted_env, fail_at=5)
    (finding,) = check_env(
        fails, EnvsConfig(count=1, image_size=4, max_worker_failures=0), steps=20
    )
    assert "the cable is unplugged" in finding
    # A failure that training would forgive is one too.
    assert check_env(fails, EnvsConfig(count=1, image_size=4), steps=8) == (
        "it fails while it is played: environment 0 raised ValueError: the cable is unplugged",
    )
    assert "unknown environment" in check_env("craffter")[0]
    assert "is not a name, a factory" in check_env(scripted_env())[0]


def test_a_state_that_leads_elsewhere_is_found():
    env = make_vector_env("gymnax:Catch-bsuite", EnvsConfig(count=2, image_size=16), seed=0)
    assert check_env(env, steps=30) == ()
