import ale_py
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode

from emerald_jax.config import EnvsConfig
from emerald_jax.envs import EnvError, VectorEnv, check_env, list_envs, make_vector_env, spec_of
from emerald_jax.envs.atari import PROTOCOL, rom_of
from emerald_jax.envs.gym import resize_area
from emerald_jax.envs.host import env_seeds
from emerald_jax.scores import atari100k

GAMES = [e.name for e in list_envs() if e.name.startswith("atari:")]


def make(game="Pong", *, seed=0, **settings):
    return make_vector_env(f"atari:{game}", EnvsConfig(**{"count": 1} | settings), seed=seed)


def play_raw(game, idle, actions, image_size=64, sticky=0.0, seed=0, full=False):
    """Frames and rewards of the bare emulator, by the protocol's words and none of its code."""
    ale = ale_py.ALEInterface()
    ale.setFloat("repeat_action_probability", sticky)
    ale.setInt("random_seed", seed)
    ale.loadROM(rom_of(game))
    known = ale.getLegalActionSet() if full else ale.getMinimalActionSet()
    ale.reset_game()
    for _ in range(idle):
        ale.act(0)
    for action in actions:
        frames, reward = [], 0
        for _ in range(4):
            reward += ale.act(known[action])
            frames.append(ale.getScreenRGB())
        brightest = np.maximum(frames[-1], frames[-2])
        yield np.rint(resize_area(brightest, image_size)), reward


def test_all_games_of_the_benchmark():
    assert len(GAMES) == 26
    assert [f"atari:{game}" for game in sorted(atari100k()["games"])] == GAMES
    for name in GAMES:
        spec = spec_of(name, EnvsConfig())
        assert spec.image_shape == (64, 64, 3)
        assert spec.time_limit == 27_000
        assert len(spec.action_names) == spec.num_actions
    assert spec_of("atari:Pong", EnvsConfig()).num_actions == 6
    assert spec_of("atari:Breakout", EnvsConfig()).action_names == ("noop", "fire", "right", "left")


def test_the_protocol_is_told_and_not_left_to_defaults():
    # Every argument of ale_py's that changes what is played must be named by us.
    told = {*PROTOCOL, "img_height", "img_width", "frameskip", "max_num_frames_per_episode"}
    told |= {"repeat_action_probability", "full_action_space"}
    machinery = {"batch_size", "num_threads", "thread_affinity_offset"}
    continuous = {"continuous", "continuous_action_threshold"}
    known = set(ale_py.AtariVectorEnv.__init__.__kwdefaults__)
    assert known == told | machinery | continuous


@pytest.mark.parametrize("game", ["Breakout", "MsPacman"])
def test_frames_and_rewards_are_the_emulators_own(game):
    env = make(game, seed=3)
    env.reset()
    actions = np.random.default_rng(0).integers(env.spec.num_actions, size=40)
    records = [env.step(np.array([a])) for a in actions]
    # The number of idle frames is random: one of 0 to 29 must explain everything.
    matches = 0
    for idle in range(30):
        raw = play_raw(game, idle, actions)
        matches += all(
            (image == record.image[0]).all() and reward == record.reward[0]
            for (image, reward), record in zip(raw, records, strict=True)
        )
    assert matches


def test_sticky_actions_are_the_emulators_own():
    """Each frame repeats the last action by a chance that the environment's seed decides."""
    env = make("Breakout", seed=3, sticky=0.25, full_actions=True)
    env.reset()
    actions = np.random.default_rng(0).integers(18, size=25)
    records = [env.step(np.array([a])) for a in actions]
    (seed,) = env_seeds(3, 1)

    def matches(idle, sticky):
        raw = play_raw("Breakout", idle, actions, sticky=sticky, seed=seed, full=True)
        return all(
            (image == record.image[0]).all() and reward == record.reward[0]
            for (image, reward), record in zip(raw, records, strict=True)
        )

    # The number of idle frames is random; without the repeats, none of 0 to 29 explains it.
    idle = next(idle for idle in range(30) if matches(idle, 0.25))
    assert not matches(idle, 0.0)


def test_all_eighteen_actions():
    spec = spec_of("atari:Breakout", EnvsConfig(full_actions=True))
    assert spec.num_actions == len(spec.action_names) == len(set(spec.action_names)) == 18
    settings = EnvsConfig(count=2, sticky=0.25, full_actions=True)
    assert check_env("atari:Boxing", settings, steps=60) == ()


def test_rewards_are_not_clipped_and_lives_not_terminal():
    # MsPacman: a pill is worth 10 points; an episode outlasts its first life.
    env = make("MsPacman", count=8)
    env.reset()
    rng = np.random.default_rng(0)
    rewards, lengths = [], []
    while len(lengths) < 8:
        record = env.step(rng.integers(9, size=8))
        rewards += record.reward.tolist()
        lengths += [e.length for e in record.episodes]
        assert (record.is_terminal == record.is_last).all()
    assert max(rewards) >= 10
    assert np.mean(lengths) > 300


def test_the_final_frame_is_kept_and_the_limit_is_not_terminal():
    env = make("Breakout", count=2, time_limit=5)
    assert isinstance(env, VectorEnv)
    assert env.faults == 0
    records = [env.reset(), *(env.step(np.array([1, 2])) for _ in range(13))]
    for t, record in enumerate(records):
        assert (record.is_first == (t % 6 == 0)).all()
        assert (record.is_last == (t % 6 == 5)).all()
        assert not record.is_terminal.any()
    # The last frame is what a longer episode shows there, not the next one's first.
    longer = make("Breakout", count=2)
    longer.reset()
    for t in range(1, 6):
        assert (longer.step(np.array([1, 2])).image == records[t].image).all()
    assert [e.length for r in records for e in r.episodes] == [5] * 4


def test_limits_and_endings_of_several_games_do_not_mix():
    # One cut every 60 actions must leave the others, and what follows it, alone.
    actions = np.random.default_rng(1).integers(9, size=(150, 3))
    env = make("MsPacman", count=3, time_limit=60, seed=2)
    assert check_env(env, steps=200) == ()
    alone = make("MsPacman", count=1, time_limit=60, seed=2)
    env = make("MsPacman", count=3, time_limit=60, seed=2)
    assert (env.reset().image[:1] == alone.reset().image).all()
    for action in actions:
        assert (env.step(action).image[:1] == alone.step(action[:1]).image).all()


def test_frame_skip():
    limits = [spec_of("atari:Pong", EnvsConfig(frame_skip=k)).time_limit for k in (1, 2, 7)]
    assert limits == [108_000, 54_000, 15_429]
    fast, slow = make(frame_skip=8, seed=1), make(frame_skip=4, seed=1)
    assert (fast.reset().image == slow.reset().image).all()
    slow.step(np.array([0]))
    assert (fast.step(np.array([0])).image == slow.step(np.array([0])).image).all()


def test_seeds_do_not_depend_on_the_number_of_games(play):
    few, many = (play(make("Pong", count=n, seed=4), 30)[0][0].image for n in (2, 5))
    assert (few == many[:2]).all()
    assert env_seeds(4, 5)[:2] == env_seeds(4, 2)


@pytest.mark.parametrize("count", [1, 4])
def test_it_keeps_the_rules(count):
    assert check_env("atari:Boxing", EnvsConfig(count=count, time_limit=25, image_size=32)) == ()
    assert check_env("atari:Freeway", EnvsConfig(count=count), steps=60) == ()


def test_order_and_close():
    env = make()
    with pytest.raises(EnvError, match="step before reset"):
        env.step_async(np.zeros(1, int))
    env.reset()
    env.step_async(np.zeros(1, int))
    with pytest.raises(EnvError, match="step_async twice"):
        env.step_async(np.zeros(1, int))
    assert env.reset().is_first.all()
    with pytest.raises(EnvError, match="no step is pending"):
        env.step_wait()
    assert env.get_state() is None
    with pytest.raises(EnvError, match="cannot be restored"):
        env.set_state({})
    env.step_async(np.zeros(1, int))
    env.close()
    env.close()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("atari:Brekout", "nearest: atari:Breakout"),
        ("atari:breakout", "nearest: atari:Breakout"),
        ("atari:ms_pacman", "nearest: atari:MsPacman"),
        ("Pong", "nearest: atari:Pong"),
        ("atari:Nothing", "unknown environment atari:Nothing"),
    ],
)
def test_misspelt_games(name, message):
    with pytest.raises(EnvError, match=message):
        spec_of(name, EnvsConfig())


def test_games_beside_the_benchmark():
    assert spec_of("atari:SpaceInvaders", EnvsConfig()).num_actions == 6


def test_other_resets_are_refused(monkeypatch):
    monkeypatch.setitem(ale_py.AtariVectorEnv.metadata, "autoreset_mode", None)
    monkeypatch.setattr(
        "emerald_jax.envs.atari.PROTOCOL", {**PROTOCOL, "autoreset_mode": AutoresetMode.SAME_STEP}
    )
    with pytest.raises(EnvError, match="not the next step"):
        make()
