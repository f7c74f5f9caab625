import os
import sys
import types

import gymnasium
import numpy as np
import pytest
from gymnasium.spaces import Box, Dict, Discrete
from gymnasium.utils.env_checker import check_env as gymnasium_check_env
from gymnasium.wrappers import TimeLimit

from emerald_jax.config import EnvsConfig
from emerald_jax.envs import EnvError, check_env, make_vector_env, make_vector_env_of, spec_of
from emerald_jax.envs.guards import FaultError
from emerald_jax.envs.gym import ImageEnv, make_image_env, make_spec
from emerald_jax.envs.playing import remark


class Counter(gymnasium.Env):
    """Shows the number of its frame; an episode has nine. Reward: the frame's number."""

    def __init__(self, space=None, actions=None, render_mode=None):
        self.observation_space = space or Box(0, 255, (6, 8, 3), np.uint8)
        self.action_space = actions or Discrete(2)
        self.render_mode = render_mode
        self.taken = []

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t = 0
        return self.observe(), {}

    def step(self, action):
        self.t += 1
        self.taken.append(action)
        return self.observe(), self.t, self.t == 9, False, {}

    def observe(self):
        return self.fill(self.observation_space)

    def fill(self, space):
        if isinstance(space, Dict):
            return {k: self.fill(s) for k, s in space.items()}
        if not isinstance(space, Box):
            return 0
        low, high = float(space.low.min()), float(space.high.max())
        return np.full(space.shape, low + (high - low) * self.t / 10, space.dtype)

    def render(self):
        return np.full((5, 7, 3), 100 + self.t, np.uint8)


def wrapped(env=None, **settings):
    return ImageEnv(env or Counter(), "mine", EnvsConfig(image_size=4, **settings))


@pytest.mark.parametrize(
    "space",
    [
        Box(0, 255, (6, 8, 3), np.uint8),
        Box(0, 255, (6, 8, 1), np.uint8),
        Box(0, 255, (6, 8), np.uint8),
        Box(0, 255, (3, 6, 8), np.uint8),
        Box(0, 255, (1, 6, 8), np.uint8),
        Box(0, 1, (6, 8, 3), np.float32),
        Box(-1, 1, (6, 8), np.float64),
        Box(0, 100, (2, 3), np.int64),
        Box(0, 255, (4, 4, 3), np.uint8),
        Box(0, 255, (4, 4), np.uint8),
        Dict(eye=Box(0, 1, (210, 160, 3)), mood=Box(0, 1, (3,))),
    ],
)
def test_every_kind_of_image(space):
    env = wrapped(Counter(space))
    image, _ = env.reset()
    assert (image == 0).all()
    for t in range(1, 10):
        image, *_ = env.step(0)
        assert image.dtype == np.uint8
        assert image.shape == (4, 4, 3)
        # 255 t / 10, cut or rounded on its way.
        assert np.abs(image - 25.5 * t).max() <= 0.6


def test_left_is_left_and_red_is_red():
    class Flag(Counter):
        def fill(self, space):
            image = np.zeros(space.shape, np.uint8)
            image[:, :4, 0] = 200
            image[:3, :, 2] = 90
            return image

    first = np.moveaxis(np.array(wrapped(Flag()).reset()[0]), -1, 0)
    assert (first[0] == [[200, 200, 0, 0]] * 4).all()
    assert (first[2] == [[90] * 4] * 2 + [[0] * 4] * 2).all()
    assert (first[1] == 0).all()


def test_frame_skip_adds_rewards_and_stops_at_the_end():
    env = wrapped(frame_skip=4)
    env.reset()
    steps = [env.step(1)[1:4] for _ in range(3)]
    assert steps == [(1 + 2 + 3 + 4, False, False), (5 + 6 + 7 + 8, False, False), (9, True, False)]
    assert len(env.unwrapped.taken) == 9


def test_time_limit_counts_the_agents_steps():
    env = wrapped(frame_skip=2, time_limit=3)
    for _ in range(2):
        env.reset()
        assert [env.step(0)[2:4] for _ in range(3)] == [(False, False)] * 2 + [(False, True)]


class Clock(Counter):
    """As ViZDoom before 1.3 and after: a time-out sets terminated, and truncated with it."""

    dies_at = 9

    def step(self, action):
        image, reward, _, _, info = super().step(action)
        return image, reward, self.t in (self.dies_at, 9), self.t == 9, info


@pytest.mark.parametrize(
    ("setting", "stored"), [("auto", False), ("truncated", False), ("terminated", True)]
)
def test_a_time_out_that_is_also_terminated_is_no_death(setting, stored):
    env = wrapped(Clock(), frame_skip=3, both_ends=setting)
    env.reset()
    assert [env.step(0)[2:4] for _ in range(3)] == [(False, False)] * 2 + [(stored, True)]
    (line,) = env.take_warnings().values()
    assert line.startswith("an episode ended terminated and truncated at once: stored as t")
    assert "envs.both_ends" in line


def test_a_death_in_the_clocks_episode_stays_a_death():
    dying = type("Dying", (Clock,), {"dies_at": 4})
    env = wrapped(dying())
    env.reset()
    assert [env.step(0)[2:4] for _ in range(4)][-1] == (True, False)
    assert env.take_warnings() == {}


@pytest.mark.parametrize(("setting", "death"), [("auto", True), ("truncated", False)])
def test_a_death_on_the_last_step_of_a_counter_around_the_world(setting, death):
    """Gymnasium's TimeLimit and our own know nothing of the world, which alone sets terminated."""
    env = wrapped(TimeLimit(Counter(), 9), both_ends=setting)
    env.reset()
    assert [env.step(0)[2:4] for _ in range(9)][-1] == (death, True)
    ours = wrapped(time_limit=9, both_ends=setting)
    ours.reset()
    assert [ours.step(0)[2:4] for _ in range(9)][-1] == (True, True)


def test_check_env_names_time_outs_that_are_also_terminated():
    envs = EnvsConfig(count=2, image_size=8, time_limit=5, workers="inline")
    assert check_env(Clock, envs, steps=20) == ()
    whole = EnvsConfig(count=2, image_size=8, workers="inline")
    assert check_env(Clock, whole, steps=20) == ()  # seen, and no broken rule
    assert "stored as truncated" in remark(Clock, envs)
    assert remark(Counter, envs) == ""


def test_actions_begin_where_the_environment_says():
    env = wrapped(Counter(actions=Discrete(3, start=5)))
    env.reset()
    env.step(0)
    env.step(2)
    assert env.unwrapped.taken == [5, 7]
    assert env.action_space == Discrete(3)


def test_keys():
    two = Dict(a=Box(0, 255, (4, 4), np.uint8), b=Box(-9, 9, (4, 4, 3)), c=Discrete(3))
    assert (wrapped(Counter(two), image_key="b").reset()[0] == 0).all()
    env = wrapped(Counter(two, render_mode="rgb_array"), image_key="render")
    assert (env.reset()[0] == 100).all()
    assert (env.step(0)[0] == 101).all()


@pytest.mark.parametrize(
    ("env", "settings", "message"),
    [
        (Counter(Box(0, 1, (4,))), {}, r"observes Box\[4\] float32, not a grey or RGB image"),
        (Counter(Box(0, 255, (4, 84, 84), np.uint8)), {}, "not a grey or RGB image"),
        (Counter(Box(0, 255, (1, 9), np.uint8)), {}, "not a grey or RGB image"),
        (Counter(Discrete(3)), {}, r"observes Discrete\(3\), not"),
        (Counter(Box(-np.inf, np.inf, (4, 4))), {}, "an image without bounds"),
        (Counter(actions=Box(0, np.inf, (2,))), {}, r"takes Box\[2\].*: give it finite bounds"),
        (Counter(Dict(a=Discrete(2))), {}, "a dict: it holds no grey or RGB image"),
        (Counter(), {"image_key": "a"}, "no dict: leave envs.image_key empty"),
        (Counter(), {"image_key": "render"}, "made with render_mode rgb_array"),
        (
            Counter(Dict(a=Box(0, 1, (4, 4)), b=Box(0, 1, (4, 4)))),
            {},
            "a dict: set envs.image_key to one of a, b",
        ),
        (
            Counter(Dict(a=Box(0, 1, (4, 4)))),
            {"image_key": "c"},
            "no image 'c': set envs.image_key to one of a",
        ),
    ],
)
def test_what_cannot_be_shown_or_controlled_is_refused(env, settings, message):
    with pytest.raises(EnvError, match=message) as caught:
        wrapped(env, **settings)
    assert "\n" not in str(caught.value)


def test_a_number_that_is_not_finite_is_an_error():
    class Nan(Counter):
        def fill(self, space):
            return super().fill(space) * np.nan

    with pytest.raises(FaultError, match="of nan to nan: not finite"):
        wrapped(Nan(Box(0, 1, (6, 8)))).reset()


@pytest.mark.filterwarnings("ignore:.*is different from the unwrapped version")
def test_gymnasium_accepts_it():
    gymnasium_check_env(wrapped(frame_skip=2), skip_render_check=True)


def test_ids_of_gymnasium():
    name = "gym:emerald-test/Counter-v0"
    gymnasium.register("emerald-test/Counter-v0", Counter, max_episode_steps=7)
    try:
        envs = EnvsConfig(count=2, image_size=8, workers="inline")
        assert check_env(name, envs, steps=40) == ()
        assert spec_of(name, envs).time_limit == 7
        assert spec_of(name, EnvsConfig(image_size=8, frame_skip=2)).time_limit == 4
        # The limit that is asked for replaces the registered one, and counts the agent's steps.
        longer = EnvsConfig(count=1, image_size=8, frame_skip=4, time_limit=2, workers="inline")
        assert spec_of(name, longer).time_limit == 2
        env = make_vector_env(name, longer, seed=0)
        env.reset()
        (episode,) = [e for _ in range(2) for e in env.step(np.zeros(1, int)).episodes]
        assert (episode.score, episode.terminal) == (36, False)
    finally:
        del gymnasium.registry["emerald-test/Counter-v0"]


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("gym:CartPole-v1", {}, r"gym:CartPole-v1 observes Box\[4\] float32, not a grey"),
        ("gym:Pendulum-v1", {}, r"gym:Pendulum-v1 observes Box\[3\] float32, not a grey"),
        ("gym:NoSuchThing-v0", {}, "not registered.*gym:PACKAGE:NoSuchThing-v0"),
        ("gym:no_such_package:Thing-v0", {}, "no_such_package, which is not installed"),
        ("gym:", {}, "unknown environment gym:"),
        ("crafter", {"frame_skip": 2}, "crafter does not support envs.frame_skip"),
        ("gymnax:Catch-bsuite", {"image_key": "x"}, "does not support envs.image_key"),
    ],
)
def test_refusals_by_name(name, settings, message):
    for make in (spec_of, lambda *a: make_vector_env(*a, seed=0)):
        with pytest.raises(EnvError, match=message) as caught:
            make(name, EnvsConfig(**settings))
        assert "\n" not in str(caught.value)


class Rendered(Counter):
    """Its image is what :meth:`draw` returns; named as Gymnasium's MuJoCo environments are."""

    mujoco_renderer = None

    def __init__(self, draw=None):
        super().__init__(Box(0, 1, (4,)), render_mode="rgb_array")
        self.draw = draw or super().render

    def render(self):
        return self.draw()


def test_mujoco_of_gymnasium_gets_the_same_renderer_and_others_none(monkeypatch):
    found = {"OSMesa": "libOSMesa.so.8"}
    monkeypatch.setattr("ctypes.util.find_library", found.get)
    monkeypatch.setenv("MUJOCO_GL", "")
    envs = EnvsConfig(image_size=4, image_key="render")
    for factory, chosen in ((lambda: Counter(render_mode="rgb_array"), None), (Rendered, "osmesa")):
        monkeypatch.delenv("MUJOCO_GL", raising=False)
        make_image_env("mine", factory, envs)
        assert os.environ.get("MUJOCO_GL") == chosen
    found.clear()
    make_image_env("mine", Rendered, envs)  # the variable decides, whatever is found
    monkeypatch.delenv("MUJOCO_GL")
    with pytest.raises(EnvError, match=r"mine cannot render: .*apt-get install libegl1") as caught:
        make_spec("mine", Rendered, envs)
    assert "\n" not in str(caught.value)


def test_an_environment_that_cannot_draw_is_one_line_before_it_starts(monkeypatch):
    monkeypatch.setenv("MUJOCO_GL", "egl")
    envs = EnvsConfig(image_size=4, image_key="render")

    def missing():
        raise gymnasium.error.DependencyNotInstalled("pygame is not installed, run `pip ...`")

    with pytest.raises(EnvError, match="mine raised DependencyNotInstalled: pygame") as caught:
        make_vector_env_of("mine", lambda: Rendered(missing), envs, seed=0)
    assert "apt-get" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "sizes"),
    [
        ("CartPole-v1", (2,)),
        ("Pendulum-v1", (0,)),
        ("MountainCarContinuous-v0", (0,)),
        ("Acrobot-v1", (3,)),
    ],
)
def test_classic_control_is_seen_by_its_renders(name, sizes, capfd):
    pytest.importorskip("pygame")
    envs = EnvsConfig(count=2, image_size=16, image_key="render", time_limit=5, workers="inline")
    assert check_env(f"gym:{name}", envs, steps=12) == ()
    assert spec_of(f"gym:{name}", envs).actions.sizes == sizes
    assert capfd.readouterr().err == ""  # such as that there is no sound card


def test_your_own_environment_draws_without_a_sound_card(monkeypatch):
    monkeypatch.setenv("SDL_AUDIODRIVER", "restored after the test")
    monkeypatch.delenv("SDL_AUDIODRIVER")
    chosen = []

    def make():
        chosen.append(os.environ.get("SDL_AUDIODRIVER"))
        return Counter()

    make_image_env("mine", make, EnvsConfig(image_size=4)).close()
    assert chosen == ["dummy"]


def test_classic_control_without_pygame_is_one_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "pygame", None)
    for name in ("CartPole-v1", "Pendulum-v1", "MountainCarContinuous-v0", "Acrobot-v1"):
        message = rf"gym:{name} raised .*pygame is not installed, run `pip install "
        with pytest.raises(EnvError, match=message) as caught:
            spec_of(f"gym:{name}", EnvsConfig(image_key="render"))
        assert "\n" not in str(caught.value)


def test_a_renderer_of_mujoco_without_a_driver_names_the_package(monkeypatch):
    monkeypatch.setenv("MUJOCO_GL", "egl")

    def fail():
        raise ImportError("Cannot initialize a EGL device display.")

    draw = types.FunctionType(fail.__code__, {"__name__": "mujoco.egl"})
    message = r"mine raised ImportError: .*\(MUJOCO_GL is egl; .*apt-get install libegl1"
    with pytest.raises(EnvError, match=message):
        make_spec("mine", lambda: Rendered(draw), EnvsConfig(image_key="render"))


def test_a_factory_of_something_else_is_refused():
    with pytest.raises(EnvError, match=r"made a dict, not a gymnasium\.Env"):
        make_vector_env_of("mine", dict, EnvsConfig(), seed=0)
